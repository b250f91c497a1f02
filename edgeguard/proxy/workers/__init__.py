"""Several processes on one port: a supervisor that fetches policy, and workers that enforce it."""

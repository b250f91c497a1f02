"""The developer proxy: one process that builds, signs, serves, syncs and enforces a policy folder."""

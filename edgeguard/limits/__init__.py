"""Rate limits: GCRA and the scopes that share its state."""

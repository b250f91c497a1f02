"""Pulling, verifying, keeping and activating bundles; the freshness ladder."""

"""Signed bundles: bytes in, verdict out. Pure: time and bytes come in as arguments."""

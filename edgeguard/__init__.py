"""edgeguard: an egress proxy that enforces signed policy locally and fails closed."""

__version__ = "0.1.0"

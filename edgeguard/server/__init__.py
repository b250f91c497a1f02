"""The bundle server: an HTTP face over a folder. It holds no key and is trusted for nothing."""

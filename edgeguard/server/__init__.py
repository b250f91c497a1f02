"""The bundle server: an ASGI application over a directory. It holds no key."""

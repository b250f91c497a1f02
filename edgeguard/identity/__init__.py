"""Who is asking: the client that owns the connection, the person behind a request."""

"""What the service answers, as plain values: the same for HTTP and for a store without a server."""

"""The HTTP side of the service: routes, security, requests and responses."""

"""The HTTP client: URLs, TLS, connections, and failover between servers."""

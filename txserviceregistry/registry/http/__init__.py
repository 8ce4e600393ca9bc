"""The HTTP side of the registry: it checks requests and turns them into calls of the core."""

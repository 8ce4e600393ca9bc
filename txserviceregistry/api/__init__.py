"""The requests of the API: one method is one request."""

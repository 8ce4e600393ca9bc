"""Tenants, users, API keys and auth tokens."""

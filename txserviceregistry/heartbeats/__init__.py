"""Keeps services registered: registrations, heartbeats, updates and health checks."""

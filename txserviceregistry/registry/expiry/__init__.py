"""Heartbeat deadlines and expirations."""

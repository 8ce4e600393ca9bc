"""Helpers that all other layers use."""

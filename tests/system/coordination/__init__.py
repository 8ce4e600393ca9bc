"""Coordination between real processes, which are killed and stopped."""

"""
Live discovery: find services, connect to them, follow changes.
"""

"""``service-registry-wrapper``: runs any program as a registered service."""

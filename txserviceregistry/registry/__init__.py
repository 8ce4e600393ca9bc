"""
The registry: the other end of the API.

:mod:`~txserviceregistry.registry.core` has the rules, :mod:`~txserviceregistry.registry.http.resource` brings HTTP to
them,
:mod:`~txserviceregistry.registry.stores` keep what they decide, and :mod:`~txserviceregistry.registry.service` puts a
registry together.
"""

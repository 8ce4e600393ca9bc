"""A DNS server over a :class:`~txserviceregistry.discovery.Directory`. It needs dnspython, the extra ``dns``."""

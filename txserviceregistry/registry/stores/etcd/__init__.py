"""The store in etcd, which several registries share."""

#: The default prefix of all keys.
DEFAULT_PREFIX = "/txserviceregistry/"
#: The version of what is in etcd. Nodes of version 1 kept services alive by leases.
VERSION = 2

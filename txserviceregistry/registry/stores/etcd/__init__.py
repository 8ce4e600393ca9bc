"""The store in etcd, which several registries share."""

#: The default prefix of all keys.
DEFAULT_PREFIX = "/txserviceregistry/"

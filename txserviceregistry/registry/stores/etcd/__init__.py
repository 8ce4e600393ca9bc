"""A store that several registries share: etcd."""

#: What all keys begin with unless told otherwise.
DEFAULT_PREFIX = "/txserviceregistry/"

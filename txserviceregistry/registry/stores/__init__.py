"""
Stores: one contract (:mod:`~txserviceregistry.registry.stores.interfaces`), kept in memory, in sqlite, or in etcd.
"""

"""
Stores: one interface (:mod:`~txserviceregistry.registry.stores.interfaces`), over memory, SQLite or etcd.
"""

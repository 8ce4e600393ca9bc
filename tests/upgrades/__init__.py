"""
Data that releases wrote, for tests of the releases after them: a database and the keys of an etcd, with what was in
them. A file stays as it is; a release that changes a format adds its own by ``python -m tests.upgrades.files VERSION``.
"""

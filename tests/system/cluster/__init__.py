"""
A cluster of real processes, three members of etcd and three registries, to which is done what nights do to clusters.

These are rows of the fault table as well: ``trial tests.system.cluster`` runs each of them small, and
``python -m tests.system.faults.report tests.system.cluster`` at full length.
"""

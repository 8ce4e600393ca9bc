"""
A cluster of real processes, three members of etcd and three registries, to which is done what nights do to clusters.

These are rows of the fault table as well: ``trial tests.cluster`` runs each of them small, and
``python -m tests.faults.report tests.cluster`` at full length.
"""

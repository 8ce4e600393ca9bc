"""
Proof under faults: real processes (applications, registries, and a proxy of ours between them) to which everything is
done that a bad night does, and what has to be true all the same.

``trial tests.system.faults`` runs each row small, ``python -m tests.system.faults.report`` at full length, and writes
the table of ``docs/reliability-tests.rst``.
"""

"""
``tests.unit`` starts no process and needs no etcd; ``tests.system`` has the rest. Common modules are beside them.
"""

from __future__ import annotations

from pathlib import Path

#: The folder of the project.
ROOT = Path(__file__).parents[1]
#: scrypt's smallest cost, for the API keys of registries that run in the tests' process.
CHEAP = 2

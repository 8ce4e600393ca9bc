"""Ids of requests in processes that were one."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

_FORKS = """
import os
from txserviceregistry.registry.http.requestlog import newTxnId
newTxnId()
os.fork()
os.write(1, (newTxnId() + "\\n").encode())
"""


class TxnIdTests(SynchronousTestCase):
    """Ids of requests."""

    def test_differInProcessesThatWereOne(self) -> None:
        """After a fork, by which a process goes into the background, each of the two goes on with ids of its own."""
        said = subprocess.run([sys.executable, "-c", _FORKS], stdout=subprocess.PIPE, check=True).stdout.split()
        self.assertEqual(len(set(said)), 2)

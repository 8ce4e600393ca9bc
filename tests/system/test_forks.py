"""Processes that were one: ids of requests, and lookups of host names."""

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


_LOOKUPS = """
import os, time
from queue import Empty, SimpleQueue
from twisted.internet._resolver import GAIResolver
from txserviceregistry.http.agent import hostName

class Reactor:
    getThreadPool = None
    seconds = staticmethod(time.monotonic)

    def __init__(self):
        self.nameResolver = GAIResolver(self)
        self.calls = SimpleQueue()

    def callFromThread(self, function, *arguments):
        self.calls.put((function, arguments))

def lookUp():
    reactor, found = Reactor(), []
    hostName(reactor, "localhost", 80).resolve().addCallback(found.extend)
    try:
        while not found:
            function, arguments = reactor.calls.get(timeout=60)
            function(*arguments)
    except Empty:
        pass
    return bool(found)

lookUp()
os.fork()
os.write(1, b"%d\\n" % lookUp())
"""


class TxnIdTests(SynchronousTestCase):
    """Ids of requests."""

    def test_differInProcessesThatWereOne(self) -> None:
        """After a fork, by which a process goes into the background, each of the two goes on with ids of its own."""
        said = subprocess.run([sys.executable, "-c", _FORKS], stdout=subprocess.PIPE, check=True).stdout.split()
        self.assertEqual(len(set(said)), 2)


class LookupTests(SynchronousTestCase):
    """Lookups in threads, which only one of the two processes has."""

    def test_goOnInBoth(self) -> None:
        """After a fork, both processes resolve host names."""
        said = subprocess.run([sys.executable, "-c", _LOOKUPS], stdout=subprocess.PIPE, check=True).stdout.split()
        self.assertEqual(said, [b"1", b"1"])

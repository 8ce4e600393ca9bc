"""
A pool of workers that share 64 queues: start it several times, and each process has a part of the queues.

    twistd -ny examples/workerpool.py
"""

from __future__ import annotations

from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.task import deferLater

from txserviceregistry import Client
from txserviceregistry.coordination import Assignment, Partitioner

QUEUES = [f"queue-{number}" for number in range(64)]


async def consume(assignment: Assignment) -> None:
    """Work on a queue until it moves to another process."""
    print(f"takes {assignment.item}", flush=True)
    try:
        while assignment.isValid:
            await deferLater(reactor, 1)
    finally:
        # The queue moves when this is done.
        print(f"puts {assignment.item} away", flush=True)


application = Application("workerpool")
partitioner = Partitioner(Client.fromSettings(), "/examples/workerpool", QUEUES, consume)
partitioner.setServiceParent(application)

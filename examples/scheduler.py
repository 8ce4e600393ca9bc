"""
A scheduler that must run once: start it on several hosts, and one of them runs the jobs.

    twistd -ny examples/scheduler.py
"""

from __future__ import annotations

from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.task import deferLater

from txserviceregistry import Client
from txserviceregistry.coordination import Election, Leadership


async def lead(leadership: Leadership) -> None:
    """Run a job every ten seconds, until another process leads."""
    print(f"leads, fence {leadership.fence}", flush=True)
    try:
        while leadership.isValid:
            print("runs the job", flush=True)
            await deferLater(reactor, 10)
    finally:
        print("does not lead any more", flush=True)


application = Application("scheduler")
Election(Client.fromSettings(), "/examples/scheduler", lead).setServiceParent(application)

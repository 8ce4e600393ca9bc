"""Threads that keep no process from ending."""

from __future__ import annotations

from functools import partial
from threading import Thread

from twisted.python.threadpool import ThreadPool


class DaemonThreadPool(ThreadPool):
    """A thread pool whose work may hang at the end of the process: a host name's lookup, a write into a pipe."""

    # As a plain class attribute it would become a method from Python 3.14 on.
    threadFactory = staticmethod(partial(Thread, daemon=True))  # type: ignore[assignment] # makes threads, as the class does

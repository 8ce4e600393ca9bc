"""
What heartbeats cost a registry: ``python -m benchmarks.heartbeats``.

The registry is a second process; this one sends it batches of 1,000 heartbeats over one connection, then single ones,
each with the token that the last one brought. The registry's CPU time is all of it: reading, checking, answering, and
the writing of ``last_seen`` that comes later. The rates are those of one connection, with the waiting for each answer
and with what this process does.
"""

from __future__ import annotations

import time
from contextlib import closing

from .harness import Api, Figure, registry, run

SERVICES = 1000


def measured(costs, count, work):
    """:return: microseconds of the registry's CPU for each of so many heartbeats, and how many of them in a second."""
    costs.since()
    began = time.monotonic()
    work()
    took = time.monotonic() - began
    return 1e6 * costs.since() / count, count / took


def figuresOf(store, api, costs, batches, singles):
    beats = [{"id": id, **api.create(id)} for id in (f"service-{number:04}" for number in range(SERVICES))]

    def together():
        nonlocal beats
        for _ in range(batches):
            beats = api.beatTogether(beats)

    def alone():
        id, token = beats[0]["id"], beats[0]["token"]
        for _ in range(singles):
            token = api.beat(id, token)["token"]

    for how, count, work in (
        (f"in batches of {SERVICES:,}", batches * SERVICES, together),
        ("one by one, over one connection", singles, alone),
    ):
        cpu, rate = measured(costs, count, work)
        yield Figure(f"registry's CPU per heartbeat, {store}, {how}", cpu, "µs")
        yield Figure(f"heartbeats, {store}, {how}", rate, "/s")


def measure(quick):
    """See the module."""
    batches, singles = (30, 500) if quick else (300, 5000)
    figures = []
    for store in ("sqlite", "memory"):
        with registry(store=store) as measuredOne, closing(Api(measuredOne.home)) as api:
            figures += figuresOf(store, api, measuredOne.costs, batches, singles)
    return figures


if __name__ == "__main__":
    run(__doc__, measure)

"""
Heartbeats at a registry: ``python -m benchmarks.heartbeats``.

Single heartbeats over 50 connections, from wrk, are set beside the same requests to a bare twisted.web resource that
parses and answers the same JSON: registry (over sqlite, with its access log and without) and resource take turns, each
in a process of its own. The ratio is the median of those of the rounds. Neither of the two writes Twisted's own access
log. Unless it is told not to (``parsePOSTFormSubmission=False``, as by the registry), twisted.web looks for forms in
whatever is posted: so there is a second bare resource, that was told. Then come heartbeats in batches of 1,000. The
registry's CPU time is all of it: reading, checking, answering, and the writing of ``last_seen`` that comes later.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack, closing
from tempfile import TemporaryDirectory

from .harness import Api, Costs, Figure, registry, run
from .load import Load, bare

SERVICES = 1000
ALONE = 100
CONNECTIONS = 50
TOGETHER = "batches"


def beatsOf(api):
    """Create the services. :return: a heartbeat of each; a token counts as long as its service lives."""
    return [{"id": id, **api.create(id)} for id in (f"service-{number:04}" for number in range(SERVICES))]


def requestsOf(path, beats):
    # Only some services send single heartbeats, so that none expires on a slow machine; batches have all.
    return [("POST", f"{path}/services/{beat['id']}/heartbeat", {"token": beat["token"]}) for beat in beats[:ALONE]]


def contenders(stack):
    """
    :return: by name the load of what single heartbeats can be sent to, and a load of batches.
    """
    loads, together = {}, None
    for name, log in (("registry", None), ("registry with access log", "access.log")):
        home = stack.enter_context(TemporaryDirectory())
        options = {} if log is None else {"accessLog": f"{home}/{log}"}
        measured = stack.enter_context(registry(home, **options))
        api = stack.enter_context(closing(Api(home)))
        beats = beatsOf(api)
        headers = {"Content-Type": "application/json", "X-Auth-Token": api.authToken}
        loads[name] = Load(api.root, measured.costs, home, headers)
        loads[name].prepare(requestsOf(api.path, beats))
        if log is None:
            together = Load(api.root, measured.costs, stack.enter_context(TemporaryDirectory()), headers)
            together.prepare([("POST", f"{api.path}/heartbeats", {"heartbeats": beats})])
            for of, forms in (("bare resource", True), ("bare resource without forms", False)):
                port, pid = stack.enter_context(bare(forms=forms))
                folder = stack.enter_context(TemporaryDirectory())
                loads[of] = Load(f"http://127.0.0.1:{port}", Costs(pid), folder, headers)
                loads[of].prepare(requestsOf(api.path, beats))
    return loads, together


def measure(quick):
    """See the module."""
    seconds, rounds = (1, 3) if quick else (3, 9)
    with ExitStack() as stack:
        loads, together = contenders(stack)
        outcomes = {name: [] for name in (*loads, TOGETHER)}
        for number in range(rounds + 1):
            for name, load in (*loads.items(), (TOGETHER, together)):
                outcome = load.run(seconds, 2 if load is together else CONNECTIONS)
                if number:
                    outcomes[name].append(outcome)
    batches = outcomes.pop(TOGETHER)
    figures = []
    for name, atLeast in (("registry", 0.85), ("registry with access log", 0.75)):
        pairs = list(zip(outcomes[name], outcomes["bare resource"], strict=True))
        ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)
        figures.append(Figure(f"rate, {name} / bare resource", ratio, "x", atLeast=atLeast))
        ratio = statistics.median(theirs.cpu / ours.cpu for ours, theirs in pairs)
        figures.append(Figure(f"rate per CPU, {name} / bare resource", ratio, "x"))
    pairs = zip(outcomes["registry"], outcomes["bare resource without forms"], strict=True)
    ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)
    figures.append(Figure("rate, registry / bare resource without forms", ratio, "x"))
    for name, of in outcomes.items():
        figures.append(Figure(f"rate, {name}", statistics.median(each.rate for each in of), "/s"))
        figures.append(Figure(f"CPU, {name}", statistics.median(each.cpu for each in of), "µs"))
    cpu = statistics.median(each.cpu for each in batches) / SERVICES
    figures.append(Figure(f"rate per CPU, batches of {SERVICES:,}", 1e6 / cpu, "/s", atLeast=90_000))
    figures.append(Figure(f"CPU, batches of {SERVICES:,}", cpu, "µs"))
    return figures


if __name__ == "__main__":
    run(__doc__, measure)

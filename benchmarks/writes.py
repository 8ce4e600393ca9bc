"""
Writes to a registry: ``python -m benchmarks.writes``.

Services are created and configuration values set, from wrk, by 50 clients at once, at a registry over sqlite
(``synchronous=FULL``) that answers each only after its commit; the same bodies are posted to a bare twisted.web
resource that parses them, answers JSON, and keeps nothing. The two take turns, and a ratio is the median of those of
the rounds. CPU is that of the process, the thread that writes the file included.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack, closing
from itertools import count
from tempfile import TemporaryDirectory

from .harness import Api, Costs, Figure, registry, run
from .load import Load, bare

CLIENTS = 50
# More than any registry answers in a second.
RATE = 9000

NUMBERS = count()


def creates(path, amount, method="POST"):
    payload = {
        "heartbeat_timeout": 120,
        "tags": ["www", "production"],
        "metadata": {"host": "192.0.2.1", "port": "8000", "version": "1.2.3"},
    }
    return [(method, f"{path}/services", {"id": f"service-{next(NUMBERS)}", **payload}) for _ in range(amount)]


def sets(path, amount, method="PUT"):
    return [(method, f"{path}/configuration/value-{next(NUMBERS)}", {"value": "192.0.2.1"}) for _ in range(amount)]


def measure(quick):
    """See the module."""
    seconds, rounds = (1, 3) if quick else (3, 7)
    outcomes = {}
    with ExitStack() as stack:
        home = stack.enter_context(TemporaryDirectory())
        measured = stack.enter_context(registry(home))
        api = stack.enter_context(closing(Api(home)))
        port, pid = stack.enter_context(bare())
        headers = {"Content-Type": "application/json", "X-Auth-Token": api.authToken}
        loads = {
            "registry": Load(api.root, measured.costs, home, headers),
            "bare resource": Load(
                f"http://127.0.0.1:{port}", Costs(pid), stack.enter_context(TemporaryDirectory()), headers
            ),
        }
        for number in range(rounds + 1):
            for what, requests in (("creates", creates), ("configuration sets", sets)):
                for name, load in loads.items():
                    method = () if name == "registry" else ("POST",)
                    load.prepare(requests(api.path, seconds * RATE, *method))
                    outcome = load.run(seconds, CLIENTS)
                    if number:
                        outcomes.setdefault((what, name), []).append(outcome)
    figures = []
    for what in ("creates", "configuration sets"):
        ours, theirs = outcomes[what, "registry"], outcomes[what, "bare resource"]
        pairs = list(zip(ours, theirs, strict=True))
        ratio = statistics.median(one.rate / other.rate for one, other in pairs)
        figures.append(Figure(f"{what}, registry / bare resource", ratio, "x", atLeast=0.65))
        ratio = statistics.median(other.cpu / one.cpu for one, other in pairs)
        figures.append(Figure(f"{what} per CPU, registry / bare resource", ratio, "x"))
    for (what, name), of in outcomes.items():
        figures.append(Figure(f"{what}, {name}", statistics.median(each.rate for each in of), "/s"))
        figures.append(Figure(f"CPU, {what}, {name}", statistics.median(each.cpu for each in of), "µs"))
    return figures


if __name__ == "__main__":
    run(__doc__, measure)

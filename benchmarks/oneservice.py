"""
One service, per heartbeat: ``python -m benchmarks.oneservice``.

Each contender is a process of its own with one connection, and heartbeats one service of one registry (over sqlite, in
another process) as fast as it gets answers, always with the token of the last answer:

* HeartBeater, alone and batched, with an interval of 0 s: everything that a heartbeat does is done, its timer and its
  deadline included, and only the waiting is left out;
* treq.post(url, json=...) and response.json() in a loop, with no deadline and no care for failures;
* the same with aiohttp's client;
* an etcd lease that is kept alive through aetcd, for comparison.
"""

from __future__ import annotations

from contextlib import ExitStack, closing

from .etcd import etcd
from .harness import Api, Contender, Figure, alternate, registry, run

_TIMEOUT = 120
_CONTENDERS = "benchmarks.contenders"


def measure(quick: bool) -> list[Figure]:
    """See the module."""
    beats, rounds = (300, 3) if quick else (500, 21)
    with ExitStack() as stack:
        home = stack.enter_context(registry()).home
        api = stack.enter_context(closing(Api(home)))

        def contender(*arguments: str) -> Contender:
            return stack.enter_context(closing(Contender("-m", _CONTENDERS, *arguments)))

        def token(id: str) -> str:
            return api.create(id, _TIMEOUT)["token"]

        def loop(name: str) -> Contender:
            url = f"{api.url}/services/by-{name}/heartbeat"
            return contender(name, url, api.authToken, token(f"by-{name}"))

        def heartBeater(id: str, *options: str) -> Contender:
            return contender("heartbeater", str(home), id, str(_TIMEOUT), token(id), *options)

        contenders = {
            "HeartBeater alone": heartBeater("alone"),
            "HeartBeater batched": heartBeater("batched", "batched"),
            "treq": loop("treq"),
            "aiohttp": loop("aiohttp"),
            "etcd lease (aetcd)": contender("aetcd", str(stack.enter_context(etcd())), str(_TIMEOUT)),
        }
        costs = alternate(contenders, beats, rounds)
    figures = [Figure(f"CPU, {name}", 1e6 * cost.cpu, "µs") for name, cost in costs.items()]
    figures += [Figure(f"time, {name}", 1e6 * cost.wall, "µs") for name, cost in costs.items()]
    for name in list(contenders)[:2]:
        cpu = costs[name].cpu
        figures += [
            Figure(f"CPU, {name} / treq", cpu / costs["treq"].cpu, "x", atMost=0.58),
            Figure(f"CPU, {name} / aiohttp", cpu / costs["aiohttp"].cpu, "x", atMost=1.15),
        ]
    return figures


if __name__ == "__main__":
    run(__doc__, measure)

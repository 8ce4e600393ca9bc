"""
More load than one Python process can make: wrk, and the bare twisted.web resource that a registry is set beside.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import attrs

from .harness import Costs, serving

# wrk's script: it sends the requests of a file (a line each: method, path and body, with tabs in between) one after
# the other, over and over, and tells at the end what came of it.
_SCRIPT = """
local requests, number = {}, 0

init = function(arguments)
    for line in io.lines(arguments[1]) do
        local method, path, body = line:match("^(.-)\\t(.-)\\t(.*)$")
        requests[#requests + 1] = wrk.format(method, path, nil, body ~= "" and body or nil)
    end
end

request = function()
    number = number % #requests + 1
    return requests[number]
end

done = function(summary, latency, sent)
    local errors = summary.errors
    io.write(string.format(
        '\\n{"requests": %d, "seconds": %f, "refused": %d, "lost": %d, "median": %f, "percentile99": %f}\\n',
        summary.requests, summary.duration / 1e6, errors.status, errors.connect + errors.read + errors.write +
        errors.timeout, latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""

# A resource as anybody would begin to write one: it parses the JSON that it is sent, and answers what the registry
# answers: to a heartbeat with a token, to a subscriber with two events. Twisted's own access log is not written, nor
# formatted.
_BARE = """
import json, sys
from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site

SERVICE = {"id": "service-1000-10", "heartbeat_timeout": 120, "tags": [], "metadata": {}}
EVENT = {"id": "3f8c2b1e-c9d0-11f0-8000-0123456789ab", "timestamp": 1795700716671, "type": "service.join"}
METADATA = {"count": 2, "limit": 100, "next_marker": None, "next_href": None}

class Bare(Resource):
    isLeaf = True

    def render_GET(self, request):
        request.setHeader(b"Content-Type", b"application/json; charset=UTF-8")
        metadata = {**METADATA, "marker": request.args[b"marker"][0].decode()}
        return json.dumps({"values": [{**EVENT, "payload": SERVICE}] * 2, "metadata": metadata}).encode()

    def render_POST(self, request):
        body = json.loads(request.content.read())
        request.setHeader(b"Content-Type", b"application/json; charset=UTF-8")
        return json.dumps({"token": body.get("token", "3f8c2b1e-c9d0-11f0-8000-0123456789ab")}).encode()

site = Site(Bare(), parsePOSTFormSubmission=len(sys.argv) == 1)
site.log = lambda request: None
port = reactor.listenTCP(0, site, interface="127.0.0.1")
print(port.getHost().port, flush=True)
reactor.run()
"""


@attrs.frozen
class Outcome:
    """
    The outcome of some load.

    :ivar rate: answers in a second.
    :ivar cpu: microseconds of the server's CPU for each.
    :ivar median: milliseconds that the median one took.
    :ivar percentile99: milliseconds that 99 of 100 stayed below.
    """

    rate: float
    cpu: float
    median: float
    percentile99: float


class Load:
    """
    Requests for a server.

    :param url: of the server, without a path.
    :param costs: of the server.
    :param home: a folder for what wrk reads.
    :param headers: of every request.
    """

    def __init__(self, url: str, costs: Costs, home: str | Path, headers: Mapping[str, str]) -> None:
        if shutil.which("wrk") is None:
            raise SystemExit("This benchmark needs wrk (apt-get install wrk)")
        self._url = url
        self._costs = costs
        self._script = Path(home, "load.lua")
        self._script.write_text(_SCRIPT)
        self._requests = Path(home, "requests")
        self._headers = headers

    def prepare(self, requests: Iterable[tuple[str, str, Any]]) -> None:
        """The requests to send: of each request the method, the path, and the body, which becomes JSON; or ``None``."""
        self._requests.write_text(
            "".join(
                f"{method}\t{path}\t{'' if body is None else json.dumps(body)}\n" for method, path, body in requests
            )
        )

    def run(self, seconds: float, connections: int = 50) -> Outcome:
        """
        Send.

        :raises SystemExit: if a request was refused or lost.
        """
        headers = [part for name, value in self._headers.items() for part in ("-H", f"{name}: {value}")]
        command = [
            "wrk",
            "--timeout",
            "10s",
            "-t1",
            f"-c{connections}",
            f"-d{seconds:g}s",
            "-s",
            str(self._script),
            *headers,
        ]
        self._costs.since()
        result = subprocess.run(
            [*command, self._url, "--", str(self._requests)], stdout=subprocess.PIPE, text=True, check=True
        )
        cpu = self._costs.since()
        told = json.loads(result.stdout.strip().rpartition("\n")[2])
        if told["refused"] or told["lost"]:
            raise SystemExit(f"Of {told['requests']} requests {told['refused']} were refused, {told['lost']} lost")
        return Outcome(
            told["requests"] / told["seconds"], 1e6 * cpu / told["requests"], told["median"], told["percentile99"]
        )


def bare(*, forms: bool = True) -> AbstractContextManager[tuple[str, int]]:
    """
    Run the bare resource in a process of its own.

    :param forms: whether its site looks for forms in what is posted, as twisted.web's do unless they are told not to.
    :return: gives its port, and the process.
    """
    return serving("-c", _BARE, *([] if forms else ["no forms"]))

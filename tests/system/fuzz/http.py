"""
Requests of all kinds, made by schemathesis from ``/openapi.json``, for registries with each store::

    python -m tests.system.fuzz.http [--requests 20000] [--seed N]

Schemathesis knows what is valid and what is nearly so; what exists is known here: ids, keys, tokens and markers that
the registry has given out are put in place of invented ones most of the time. No answer may be a 5xx, each has to
conform to the description, and to the framing that the API promises.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from base64 import b64encode
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.system.fuzz.rules import integer
from tests.system.fuzz.server import Server

STORES = ("sqlite", "memory")
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# Of a valid request for these it may still turn out that it is not: by the id in the path, the time, the namespace, or
# because both headers, or one field without another, are there.
DEPENDS = {"updateService", "listEvents", "listNamespace", "setValue", "removeValue", "streamEvents", "releaseLock"}
# How many of what a registry has given out are remembered: the oldest are forgotten first.
REMEMBERED = 20
# How many services and values are there, at least, before an operation is asked for.
STOCK = 5
TIMEOUT = 30.0
# To invent something takes ten times as long as to ask for it: it is asked for so often, each time a little otherwise.
TIMES = 2
# How many things are invented for an operation before it is the next one's turn.
EXAMPLES = 8


class Target:
    """
    A registry, and what is known of it.

    :ivar counts: how many answers there were, by what was asked for and by code.
    """

    def __init__(self, server: Server) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()
        self._server = server
        self._session = requests.Session()
        self._session.trust_env = False
        self._responseIds: set[str] = set()
        self._services: dict[str, str] = {}
        self._locks: dict[str, str] = {}
        self._keys: deque[str] = deque(maxlen=REMEMBERED)
        self._events: deque[str] = deque(maxlen=REMEMBERED)
        self._made = 0
        body = {"auth": {"RAX-KSKEY:apiKeyCredentials": server.credentials}}
        answer = self._session.post(server.root + "/v2.0/tokens", json=body, timeout=TIMEOUT)
        token = answer.json()["access"]["token"]
        self._token, self._tenant = token["id"], token["tenant"]["id"]

    def stock(self) -> None:
        """
        See to it that something is there to be asked for.
        """
        base = f"{self._server.root}/v1.0/{self._tenant}"
        headers = {"X-Auth-Token": self._token}
        while len(self._services) < STOCK:
            id = self._nextName()
            service = {"id": id, "heartbeat_timeout": 120, "tags": ["stock"], "metadata": {"port": "80"}}
            answer = self._session.post(base + "/services", json=service, headers=headers, timeout=TIMEOUT)
            if answer.status_code != 201:
                # There is no room for more until some have expired.
                break
            self._keepService(id, answer.json()["token"])
        while len(self._keys) < STOCK:
            key = f"/stock/{self._nextName()}"
            value = {"value": "x"}
            answer = self._session.put(f"{base}/configuration{key}", json=value, headers=headers, timeout=TIMEOUT)
            if answer.status_code != 204:
                break
            self._keys.append(key)

    def _nextName(self) -> str:
        self._made += 1
        return f"stock-{self._made}"

    def ask(self, case: Any, mode: GenerationMode, chance: random.Random) -> None:
        """
        Ask what *case* says, mostly for what exists and as a user that may, and look at the response.
        """
        name = case.operation.definition.raw.get("operationId", "")
        known = chance.random() < 0.9
        headers = self._headers(chance)
        valid = mode is GenerationMode.POSITIVE and name not in DEPENDS
        if "tenant" in case.path_parameters and known:
            case.path_parameters = {**case.path_parameters, **self._path(case.path_parameters, chance)}
        case.query = self._query(name, case.query, chance)
        if isinstance(case.body, dict):
            case.body = self._body(name, case, mode, chance)
            if chance.random() < 0.01:
                case.body = {**case.body, "padding": "x" * 6_000}
                valid = False
        if name == "authenticate" or not known or headers.get("X-Auth-Token") != self._token:
            valid = False
        if name == "streamEvents":
            # The response to a GET does not end.
            case.method = "HEAD"
        response = case.call(
            base_url=self._server.root, session=self._session, headers=headers, timeout=TIMEOUT, allow_redirects=False
        )
        self.counts[case.operation.label, response.status_code] += 1
        assert response.status_code < 500, (case.as_curl_command(), response.content, self._server.log())
        # A key that ends with a slash is a namespace, and what answers is another operation.
        namesNamespace = str(case.path_parameters.get("configurationId", "")).endswith("/")
        if not namesNamespace and case.method != "HEAD":
            case.validate_response(response, checks=CHECKS, headers=headers)
        self._checkFraming(response, isHead=case.method == "HEAD")
        if response.status_code == 400 and valid:
            fault = json.loads(response.content)
            assert fault["type"] != "badRequest", (case.as_curl_command(), fault)
        self._remember(name, case, response)

    # -- what to ask

    def _headers(self, chance: random.Random) -> dict[str, str]:
        drawn = chance.random()
        if drawn < 0.06:
            return {}
        if drawn < 0.14:
            return {"Authorization": f"Bearer {self._token}"}
        if drawn < 0.18:
            credentials = self._server.credentials
            pair = f"{credentials['username']}:{credentials['apiKey']}"
            return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
        return {"X-Auth-Token": "none-of-ours" if drawn > 0.96 else self._token}

    def _path(self, invented: Mapping[str, Any], chance: random.Random) -> dict[str, str]:
        path = {"tenant": self._tenant}
        if "serviceId" in invented and self._services and chance.random() < 0.7:
            path["serviceId"] = chance.choice(list(self._services))
        if "configurationId" in invented and self._keys and chance.random() < 0.5:
            path["configurationId"] = chance.choice(self._keys)
        if "namespace" in invented and self._keys and chance.random() < 0.7:
            path["namespace"] = chance.choice(self._keys)[: chance.choice((5, 10, 500))].rstrip("/") or "/"
        return path

    def _query(self, name: str, invented: Any, chance: random.Random) -> Any:
        query = dict(invented or {})
        if name == "listEvents":
            if self._events and chance.random() < 0.6:
                query["marker"] = chance.choice(self._events)
            if self._events and str(query.get("wait")) == "1":
                # There is news, so that the request does not wait.
                query.update(marker=self._events[0], type="service.join")
            else:
                query.pop("wait", None)
        elif "marker" in query and chance.random() < 0.5:
            query["marker"] = chance.choice([*self._services, *self._keys, "x"])
        return query

    def _body(self, name: str, case: Any, mode: GenerationMode, chance: random.Random) -> Any:
        body = case.body
        if name == "authenticate" and mode is GenerationMode.POSITIVE and chance.random() < 0.97:
            # Wrong ones are answered slowly, on purpose.
            kind = chance.choice(("RAX-KSKEY:apiKeyCredentials", "passwordCredentials"))
            key = self._server.credentials["apiKey"]
            given = {"username": self._server.credentials["username"], "apiKey": key, "password": key}
            return {"auth": {kind: given}}
        if name == "acquireLock" and isinstance(body, dict) and isinstance(body.get("wait"), int):
            # Locks that are held stay so.
            return {**body, "wait": min(body["wait"], 0)}
        if name == "heartbeat" and "token" in body and chance.random() < 0.7:
            token = self._services.get(str(case.path_parameters.get("serviceId")))
            return {**body, "token": token} if token is not None else body
        if name == "acquireLock" and integer(body.get("wait"), 1, 60) is None:
            # Nothing would be released in the meantime.
            return {**body, "wait": 0}
        if name in ("heartbeatLock", "releaseLock") and self._locks and chance.random() < 0.7:
            lock, token = chance.choice(list(self._locks.items()))
            return {**body, "name": lock, **({"token": token} if "token" in body else {})}
        if name == "heartbeats" and isinstance(body.get("heartbeats"), list) and chance.random() < 0.7:
            heartbeats = [{"id": id, "token": token} for id, token in self._services.items()]
            heartbeats += [{"lock": lock, "token": token} for lock, token in self._locks.items()]
            return {**body, "heartbeats": [*heartbeats, *body["heartbeats"]][:1000]}
        return body

    # -- what came back

    def _checkFraming(self, response: Any, isHead: bool) -> None:
        headers = response.headers
        assert "transfer-encoding" not in headers, headers
        assert response.http_version == "1.1", response.http_version
        if response.status_code == 204:
            # Bytes of a body after it would be read as the next answer, and be none.
            assert not response.content and "content-length" not in headers and "content-type" not in headers, headers
        elif not isHead:
            assert headers["content-length"] == [str(len(response.content))], headers
        (responseId,) = headers["x-response-id"]
        assert responseId not in self._responseIds, responseId
        self._responseIds.add(responseId)
        if response.status_code >= 400 and b'"txnId"' in response.content:
            assert json.loads(response.content)["txnId"] == responseId

    def _remember(self, name: str, case: Any, response: Any) -> None:
        if name and response.content and response.status_code in (200, 201):
            body = json.loads(response.content)
            if name == "createService":
                self._keepService(case.body["id"], body["token"])
            elif name == "heartbeat":
                self._keepService(str(case.path_parameters["serviceId"]), body["token"])
            elif name == "acquireLock":
                self._locks[case.body["name"]] = body["token"]
                while len(self._locks) > REMEMBERED:
                    self._locks.pop(next(iter(self._locks)))
            elif name == "heartbeats":
                for value in body["values"]:
                    if "id" not in value:
                        continue  # that of a lock
                    if "token" in value:
                        self._keepService(value["id"], value["token"])
                    else:
                        self._services.pop(value["id"], None)
            elif name == "listEvents":
                self._events.extend(event["id"] for event in body["values"][:3])
        elif name == "setValue" and response.status_code == 204:
            self._keys.append(str(case.path_parameters["configurationId"]))
        elif response.status_code == 404 or (response.status_code == 204 and case.method == "DELETE"):
            gone = case.path_parameters
            self._services.pop(str(gone.get("serviceId")), None)
            if gone.get("configurationId") in self._keys:
                self._keys.remove(gone["configurationId"])

    def _keepService(self, id: str, token: str) -> None:
        self._services.pop(id, None)
        self._services[id] = token
        while len(self._services) > REMEMBERED:
            self._services.pop(next(iter(self._services)))


class Fuzz:
    """
    Asks the same of several registries.

    :param servers: they run.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self.targets = [Target(server) for server in servers]
        schema = schemathesis.openapi.from_dict(servers[0].description())
        operations = [result.ok() for result in schema.get_all_operations()]
        # The pages beside the API take nothing that could be invented.
        self._strategies = [
            (operation.as_strategy(generation_mode=mode), mode)
            for operation in operations
            for mode in MODES
            if mode is GenerationMode.POSITIVE or operation.path_parameters or operation.body
        ]

    @property
    def counts(self) -> Counter[tuple[str, int]]:
        """How many answers there were, by what was asked for and by code."""
        return sum((target.counts for target in self.targets), Counter())

    def round(self, number: int, examples: int) -> None:
        """
        Ask each operation for valid and for invalid things.

        :param number: decides which.
        :param examples: how many of each, at most.
        """
        for place, (strategy, mode) in enumerate(self._strategies):
            try:
                self._run(strategy, mode, number * len(self._strategies) + place, examples)
            except Unsatisfiable:
                # Of some operations everything is valid.
                pass

    def _run(self, strategy: Any, mode: GenerationMode, number: int, examples: int) -> None:
        # The registries change as they are asked: what fails can't be made smaller by asking again.
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @seed(number)
        @given(strategy, st.integers(0, 2**32))
        def ask(case: Any, chance: int) -> None:
            path, query, body = case.path_parameters, case.query, case.body
            for again in range(TIMES):
                for target in self.targets:
                    case.path_parameters, case.query, case.body = path, query, body
                    target.ask(case, mode, random.Random(chance + again))

        for target in self.targets:
            target.stock()
        ask()


def rounds(fuzz: Fuzz, first: int, wanted: int) -> Iterator[int]:
    """Go on until *wanted* requests have been made, and tell after each round how many there are."""
    number = first
    while fuzz.counts.total() < wanted:
        fuzz.round(number, EXAMPLES)
        number += 1
        yield fuzz.counts.total()


def main(arguments: Sequence[str], write: Callable[[str], object] = print) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.system.fuzz.http", description="Fuzz registries over HTTP.")
    parser.add_argument("--requests", type=int, default=20_000, metavar="N", help="at least so many; 20,000")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="to repeat a run; a new one each time")
    options = parser.parse_args(arguments)
    first = random.randrange(10**6) if options.seed is None else options.seed
    write(f"seed {first}")
    began = time.monotonic()
    with ExitStack() as stack:
        fuzz = Fuzz([stack.enter_context(Server(store)) for store in STORES])
        for count in rounds(fuzz, first, options.requests):
            write(f"{count} requests, {time.monotonic() - began:.0f} s")
    for operation in dict.fromkeys(operation for operation, _ in fuzz.counts):
        write(f"{operation}: {_codes({code: n for (each, code), n in fuzz.counts.items() if each == operation})}")
    codes: Counter[int] = Counter()
    for (_, code), n in fuzz.counts.items():
        codes[code] += n
    took = time.monotonic() - began
    write(f"{codes.total()} requests in {took:.0f} s, every answer as described: {_codes(codes)}")


def _codes(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{count} x {code}" for code, count in sorted(counts.items()))


if __name__ == "__main__":
    main(sys.argv[1:])

"""
100,000 services in one tenant: ``python -m benchmarks.scale``.

It stands beside one with 100 services, each over sqlite in a process of its own. One connection asks both in turn for
the same things, and what is compared is how long the answers take: the median one, and the one that 99 of 100 are
faster than. The file that the large one starts from, with 100,000 services and 1,000,000 events, is made here by the
store's own statements. A third registry then has 10,000 services that expire in one second.
"""

from __future__ import annotations

import http.client
import json
import random
import statistics
import time
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import attrs

from txserviceregistry.registry.model import NewService
from txserviceregistry.registry.stores.sqlite import file as sqlitefile
from txserviceregistry.registry.stores.sqlite.tables import Tables
from txserviceregistry.registry.uuids import EventIds, HeartbeatTokens, position, positionOf

from .harness import Api, Figure, registry, run

MANY, FEW = 100_000, 100
EVENTS = 1_000_000
# Every so many services have the tag that is asked for.
TAGGED = 10
PAGE, SHORT = 100, 10
ATTEMPTS = 3
# From one old event to the next, in units of 100 ns.
STEP = 1000

METADATA = {"host": "192.0.2.1", "port": "8000", "version": "1.2.3"}


# So many events of configuration values: one by one they would take minutes.
_OLD_EVENTS = """
    WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < ?1)
    INSERT INTO events (tenant, position, timestamp, type, payload)
    SELECT ?2, ?3 + ?4 * number, 1700000000000 + number, 4,
        '{"configuration_value_id":"counter","old_value":"' || (number - 1) || '","new_value":"' || number || '"}'
    FROM numbers
    WHERE ?1 > 0
"""


def payload(number):
    return {"tags": [f"zone-{number % TAGGED}", "production"], "metadata": METADATA}


def name(number):
    return f"service-{number:06}"


def fill(home, services, events, timeout=120):
    """
    Put services, and events beside those of their registrations, into the file of a registry that is not running.

    :return: a heartbeat token of each service.
    """
    connection = sqlitefile.connect(str(Path(home, "registry.sqlite")))
    tables = Tables(connection, time.time)
    try:
        (tenant,) = (user.tenant for user in tables.listUsers())
        tokens = HeartbeatTokens(tables.secret(), time.time)
        connection.execute(_OLD_EVENTS, (events - services, tenant, positionOf(time.time() - 1800), STEP))
        first = []
        for some in range(0, services, 1000):
            with tables.transaction():
                made = tables.createServices(
                    [
                        (tenant, NewService(name(number), timeout, **payload(number)), services)
                        for number in range(some, min(services, some + 1000))
                    ]
                )
            first += [tokens.first(tenant, one.id, one.incarnation) for one in made]
        tables.cutLog()
        return first
    finally:
        tables.close()


@attrs.define
class Asking:
    """
    Asks one registry for the same few things, over one connection.

    :ivar tokens: of each of its services.
    :ivar took: by what was asked for, the seconds that each answer took.
    """

    api: Api
    tokens: list[str]
    took: dict[str, list[float]] = attrs.field(factory=dict)
    _connection: http.client.HTTPConnection = attrs.field(init=False)

    def __attrs_post_init__(self):
        self._connection = http.client.HTTPConnection(urlsplit(self.api.root).netloc)

    @property
    def services(self):
        return len(self.tokens)

    def ask(self, what, method, path, body=None):
        """:return: the answer."""
        headers = {"X-Auth-Token": self.api.authToken}
        data = None if body is None else json.dumps(body)
        began = time.perf_counter()
        self._connection.request(method, self.api.path + path, data, headers)
        answer = self._connection.getresponse()
        data = answer.read()
        self.took.setdefault(what, []).append(time.perf_counter() - began)
        assert answer.status in (200, 201, 204, 404), (answer.status, data)
        return json.loads(data) if data else None

    def beat(self, number):
        self.ask("heartbeat", "POST", f"/services/{name(number)}/heartbeat", {"token": self.tokens[number]})

    def read(self):
        number = random.randrange(self.services)
        # So that there are as many in every page.
        first = name(random.randrange(self.services - PAGE + 1))
        tagged = name(random.randrange((self.services - PAGE) // 2 + 1))
        self.ask("one service", "GET", f"/services/{name(number)}")
        self.ask("page of a list", "GET", f"/services?marker={first}&limit={SHORT}")
        self.ask("page by tag", "GET", f"/services?tag=zone-{number % TAGGED}&marker={tagged}&limit={SHORT}")

    def close(self):
        """End the connection."""
        self._connection.close()


def percentile(values, part):
    return sorted(values)[int(len(values) * part)]


def compared(large, small):
    for what in small.took:
        for name, of in (("median", statistics.median), ("p99", lambda took: percentile(took, 0.99))):
            ratio = of(large.took[what]) / of(small.took[what])
            title = f"{what}, {name}, {large.services:,} services / {small.services:,}"
            yield Figure(title, ratio, "x", atMost=1.5)
    for what in small.took:
        yield Figure(f"{what}, median", 1000 * statistics.median(large.took[what]), "ms")


def feed(asking, events, rounds):
    """A page at the end of the feed beside one at its beginning. The events of both are of one kind, and as long."""
    (first,) = asking.ask("", "GET", "/events?limit=1&type=configuration_value.update")["values"]
    ids = EventIds(time.time, first["id"][19:])
    # Those of services come last, and are longer.
    places = {"early": 1000, "late": events - asking.services - PAGE}
    markers = {place: ids.idAt(position(first["id"]) + STEP * (number - 1)) for place, number in places.items()}
    for _ in range(rounds):
        for place, marker in markers.items():
            page = asking.ask(place, "GET", f"/events?marker={marker}&limit={PAGE}")
            assert [page["values"][0]["id"], page["metadata"]["count"]] == [marker, PAGE]
    late, early = (statistics.median(asking.took[place]) for place in ("late", "early"))
    title = f"page of {PAGE} events, at event {places['late']:,} / {places['early']:,}"
    yield Figure(title, late / early, "x", atMost=1.1)


def started(home):
    """Start a registry over a file. :return: how many seconds it took until it answered."""
    began = time.monotonic()
    with registry(home) as measured, closing(Api(measured.home)):
        return time.monotonic() - began


def expirations(count):
    """
    Start a registry whose services all expire in one second, and go on asking for everything.
    """
    with TemporaryDirectory() as home:
        started(home)
        tokens = fill(home, count, count, timeout=3)
        with registry(home) as measured, closing(Api(home)) as api, closing(Asking(api, tokens)) as asking:
            measured.costs.since()
            beating = api.create("beating")["token"]
            number, longest = 0, {}
            # They expire in the first of these times; in the second one no service does.
            for when in ("expirations", "peace"):
                asking.took.clear()
                ends = time.monotonic() + 8
                while time.monotonic() < ends:
                    number += 1
                    asking.ask("heartbeat", "POST", "/services/beating/heartbeat", {"token": beating})
                    asking.ask("create", "POST", "/services", {"id": f"new-{number}", "heartbeat_timeout": 120})
                    asking.ask("configuration set", "PUT", "/configuration/value", {"value": str(number)})
                    asking.read()
                longest[when] = {what: 1000 * max(took) for what, took in asking.took.items()}
                assert not asking.ask("", "GET", f"/services?limit=1&marker={name(0)}")["values"]
    for what, took in longest["expirations"].items():
        yield Figure(f"{what}, longest while {count:,} services expire", took, "ms", atMost=50)
        yield Figure(f"{what}, longest while none expires", longest["peace"][what], "ms")


def measure(quick):
    """See the module."""
    figures = []
    many, events, rounds = (5_000, 20_000, 200) if quick else (MANY, EVENTS, 3000)
    with ExitStack() as stack:
        homes, tokens = {}, {}
        for services, inFeed in ((many, events), (FEW, FEW)):
            homes[services] = stack.enter_context(TemporaryDirectory())
            started(homes[services])
            tokens[services] = fill(homes[services], services, inFeed)
        starts = [started(homes[many]) for _ in range(ATTEMPTS)]
        title = f"start with {many:,} services and {events:,} events"
        figures.append(Figure(title, statistics.median(starts), "s", atMost=2))
        askings, measured = [], {}
        for services, home in homes.items():
            measured[services] = stack.enter_context(registry(home))
            api = stack.enter_context(closing(Api(home)))
            askings.append(stack.enter_context(closing(Asking(api, tokens[services]))))
        large, small = askings
        # All of them have beaten, as they would have.
        for asking in askings:
            beats = [{"id": name(number), "token": token} for number, token in enumerate(asking.tokens)]
            for first in range(0, len(beats), 1000):
                asking.api.beatTogether(beats[first : first + 1000])
        memory = (measured[many].costs.memory() - measured[FEW].costs.memory()) / (many - FEW) / 1024
        figures.append(Figure("memory per service", memory, "KiB", atMost=1.25))
        for _ in range(rounds):
            for asking in askings:
                asking.beat(random.randrange(asking.services))
                asking.read()
        figures += compared(large, small)
        figures += feed(large, events, rounds // 10)
    figures += expirations(many // 10)
    return figures


if __name__ == "__main__":
    run(__doc__, measure)

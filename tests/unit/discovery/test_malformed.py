"""Malformed responses: a directory, a watcher and a feed retry, and end in the right state."""

from __future__ import annotations

import json
from typing import Any

import treq
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.http.messages import WholeResponse

from ..api.test_shapes import JUNK, MISSING, changed, places
from .test_directoryproperty import World, changes

# Bodies that are not the JSON of any response.
RAW = [
    b"",
    b"null",
    b"[" * 100_000,
    b'{"access":' * 900 + b"1" + b"}" * 900,
    b'{"values": [' + b"9" * 5000 + b"]}",
    b'{"values": [NaN], "metadata": {"next_marker": null}}',
    b'{"values": [], "metadata": {"next_marker": "aaa"}}',
    b'{"values": [{"id": "x"}], "metadata": {"next_marker": null}}',
]


class Changing:
    """
    A network that changes responses.

    :ivar plan: for each of the next successful responses, which place of it is changed (by number) and what it becomes,
        or the whole body.
    """

    def __init__(self, agent: Any) -> None:
        self.agent = agent
        self.plan: list[tuple[int, Any] | bytes] = []

    def request(self, *request: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._changed(self.agent.request(*request)))

    async def _changed(self, answer: Deferred[Any]) -> Any:
        response = await answer
        body = await treq.content(response)
        if self.plan and response.code == 200:
            todo = self.plan.pop(0)
            body = todo if isinstance(todo, bytes) else self._wrong(body, *todo)
        return WholeResponse(response.code, response.headers, body)

    def _wrong(self, body: bytes, number: int, junk: Any) -> bytes:
        value = json.loads(body)
        # A member may be another text, or be left out of a list, and nothing would show that it is wrong.
        wrong = [
            at
            for at, now in places(value)
            if (type(now) is not type(junk) and not isinstance(junk, str) and junk is not MISSING)
            or (junk is MISSING and at and isinstance(at[-1], str))
        ]
        return json.dumps(changed(value, wrong[number % len(wrong)], junk)).encode()


plans = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 1000), st.sampled_from([*JUNK, None, MISSING])),
        st.sampled_from(RAW),
    ),
    max_size=6,
)


class MalformedTests(SynchronousTestCase):
    """Random programs, and random changes of the registry's responses."""

    @given(st.lists(st.one_of(*changes, st.tuples(st.just("change"), plans)), max_size=15), plans)
    def test_recover(self, program: list[tuple[Any, ...]], first: list[Any]) -> None:
        """At the end each has what the registry has. No gap was reported, and each event was delivered once."""
        network: Any = None

        def between(agent: Any) -> Any:
            nonlocal network
            network = Changing(agent)
            network.plan = list(first)
            return network

        world = World(self, 0.0, "wait", between=between)
        for step in program:
            if step[0] == "change":
                network.plan.extend(step[1])
            else:
                world.do(step)
        network.plan.clear()
        world.settle(200)
        self.assertEqual([mirror.stale for mirror in world.mirrors], [0.0, 0.0, 0.0])
        self.assertEqual({s["id"]: s["tags"] for s in world.directory.services()}, world.reported)
        self.assertEqual({s["id"]: s["tags"] for s in world.listing()}, world.reported)
        self.assertEqual(dict(world.watcher), world.values())
        self.assertEqual(world.gaps, [])
        ids = [event["id"] for event in world.events]
        self.assertEqual(len(ids), len(set(ids)))
        # If the feed could not be read at first, it begins with later events.
        self.assertEqual(ids, world.feedOfAll()[len(world.feedOfAll()) - len(ids) :])
        world.end()
        self.assertEqual(world.fake.clock.getDelayedCalls(), [])

    def test_aPageOfSomethingElse(self) -> None:
        """The three retry after pages that are not pages of events."""
        world = World(self, 0.0, "wait")
        page = b'{"values": [{"id": "x"}], "metadata": {"count": 1, "next_marker": null}}'
        world.fake.answerNext(200, page, "application/json", count=5, when=lambda request: "/events" in request.path)
        world.do(("create", "aaa", 120, []))
        world.fake.advance(60)
        self.assertEqual([service["id"] for service in world.directory.services()], ["aaa"])
        self.assertEqual([event["type"] for event in world.events], ["service.join"])
        world.end()

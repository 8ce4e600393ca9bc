"""
Expiration by vote: one node's part of the protocol, without input, output or time.

A service expires when every node has voted that it received no heartbeat for one timeout. A node publishes its open
votes and its answers to the votes of others as its :class:`Status`. A vote *closes* a registration on a node, from the
moment at which that node has found the deadline passed until the vote ends: a heartbeat may be acknowledged only after
a touch, a write that makes the expiration fail.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

import attrs

from . import VERSION

#: Tenant and incarnation: the id of the event with which the service joined.
Registration = tuple[str, str]
#: The node that opened the vote, and the vote's number there.
VoteId = tuple[str, int]


@attrs.frozen
class Evidence:
    """A node's notes from the opening of a vote."""

    seen: int  # the revision of the registration's last touch
    joins: int  # the revision of the last join of a node
    timestamp: int  # when the deadline passed, in milliseconds since the epoch


@attrs.frozen
class Status:
    """The published part of a node's state; *serial* grows."""

    serial: int
    # The node's open votes by number, each with its registrations in a fixed order.
    votes: Mapping[int, Sequence[Registration]] = attrs.Factory(dict)
    # To the open votes of others: the seconds left of the registrations that have some, by their place.
    answers: Mapping[VoteId, Mapping[int, float]] = attrs.Factory(dict)

    def toJSON(self, positionOf: Callable[[Registration], int]) -> dict[str, Any]:
        """*positionOf* returns the feed position in an incarnation, which names it within its tenant."""
        votes = {
            number: [
                [tenant, [positionOf(each) for each in group]]
                for tenant, group in groupby(registrations, key=lambda each: each[0])
            ]
            for number, registrations in self.votes.items()
        }
        answers: dict[str, dict[int, dict[int, float]]] = {}
        for (node, number), left in self.answers.items():
            # The remaining time stays above zero.
            answers.setdefault(node, {})[number] = {place: round(each, 3) or 0.001 for place, each in left.items()}
        return {"v": VERSION, "serial": self.serial, "votes": votes, "answers": answers}

    @classmethod
    def of(cls, kept: Any, incarnationAt: Callable[[str, int], str]) -> Status:
        """The reverse; may raise `ValueError`."""
        try:
            votes = {
                int(number): [
                    (str(tenant), incarnationAt(tenant, int(each))) for tenant, group in groups for each in group
                ]
                for number, groups in kept["votes"].items()
            }
            answers = {
                (str(node), int(number)): {int(place): float(left) for place, left in seconds.items()}
                for node, numbers in kept["answers"].items()
                for number, seconds in numbers.items()
            }
            return cls(int(kept["serial"]), votes, answers)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a node's status: {error!r}") from None


@attrs.define(eq=False)
class _Vote:
    items: dict[Registration, Evidence]
    answers: dict[str, Mapping[int, float]] = attrs.Factory(dict)
    # Registrations whose transaction is under way; None until all members have answered.
    undecided: set[Registration] | None = None


@attrs.define(eq=False)
class _Question:
    """Another node's open vote, this node's answer, and the registrations for which any answer was above 0."""

    registrations: Sequence[Registration]
    answer: Mapping[int, float] | None = None
    alive: set[Registration] = attrs.Factory(set)


@attrs.define(eq=False, slots=False)
class Votes:
    """One node's votes, its answers, and the registrations that they close."""

    # The name of this node, which no other node has or had.
    _node: str
    # Until a registration's deadline as this node knows it; 0 or less if it has passed or the registration is unknown,
    # and the full timeout while a touch is under way.
    _secondsLeft: Callable[[Registration], float]
    # Called with a registration of an own vote, and the seconds left at a node with a later heartbeat.
    _onAlive: Callable[[Registration, float], None]
    # Called with a registration that no vote closes any more.
    _onOpen: Callable[[Registration], None]
    # Called with the number of an own vote, and a registration without a heartbeat anywhere. The caller deletes the
    # record, and calls decided() when the outcome is known.
    _onExpired: Callable[[int, Registration, Evidence], object]
    # Whether the status differs from the last one that status() returned.
    isChanged: bool = True
    _closed: dict[str, dict[str, set[VoteId]]] = attrs.Factory(dict)
    _own: dict[int, _Vote] = attrs.Factory(dict)
    _questions: dict[VoteId, _Question] = attrs.Factory(dict)
    # The last serial of each other member; -1 before the first that can be read.
    members: dict[str, int] = attrs.Factory(dict)
    _number: int = 0
    _serial: int = 0

    # -- heartbeats

    def closed(self, tenant: str) -> Mapping[str, Collection[VoteId]]:
        """A tenant's closed incarnations, with the votes that close each."""
        return self._closed.get(tenant, {})

    def closing(self, registration: Registration) -> frozenset[VoteId]:
        """The votes that close a registration now, for :meth:`touched` after a touch."""
        tenant, incarnation = registration
        return frozenset(self.closed(tenant).get(incarnation, ()))

    def touched(self, registration: Registration, votes: Collection[VoteId]) -> None:
        """A touch has succeeded that was sent when these votes closed the registration."""
        for each in votes:
            self._reopen(registration, each)

    # -- own votes

    @property
    def listed(self) -> int:
        return sum(len(vote.items) for vote in self._own.values())

    def open(self, registrations: Mapping[Registration, Evidence]) -> None:
        """Open a vote about registrations whose deadline has passed."""
        self._number += 1
        self._own[self._number] = _Vote(dict(registrations))
        for each in registrations:
            self._close(each, (self._node, self._number))
        self.isChanged = True
        self._settle()

    def isInVote(self, registration: Registration) -> bool:
        return any(registration in vote.items for vote in self._own.values())

    def decided(self, number: int, registration: Registration) -> None:
        if (vote := self._own.get(number)) is not None and vote.undecided is not None:
            vote.undecided.discard(registration)
            if not vote.undecided:
                self._end(number)

    def giveUp(self) -> None:
        """End the own votes, except those whose transactions are under way."""
        for number in [number for number, vote in self._own.items() if vote.undecided is None]:
            self._end(number)

    # -- the votes of others

    def answer(self) -> None:
        """Answer the open votes of others that are not answered yet. Not called at a tick that finds a stall."""
        for id, question in self._questions.items():
            if question.answer is None:
                left = [self._secondsLeft(each) for each in question.registrations]
                question.answer = {place: seconds for place, seconds in enumerate(left) if seconds > 0}
                for registration, seconds in zip(question.registrations, left, strict=True):
                    if seconds <= 0 and registration not in question.alive:
                        self._close(registration, id)
                self.isChanged = True

    def observe(self, node: str, status: Status) -> None:
        """Another member has published a status. One whose serial is not greater than the last one is ignored."""
        if status.serial <= self.members.get(node, -1):
            return
        self.members[node] = status.serial
        for number, registrations in status.votes.items():
            self._questions.setdefault((node, number), _Question(registrations))
        for id in [id for id in self._questions if id[0] == node and id[1] not in status.votes]:
            self._drop(id)
        for id, answer in status.answers.items():
            if id[0] == self._node:
                if id[1] in self._own:
                    self._own[id[1]].answers.setdefault(node, answer)
            elif id in self._questions:
                question = self._questions[id]
                for place in answer:
                    if 0 <= place < len(question.registrations):
                        question.alive.add(question.registrations[place])
                        self._reopen(question.registrations[place], id)
        self._settle()

    def leave(self, node: str) -> None:
        """The key of another member is gone: own votes are given up, because it may have received heartbeats."""
        self.giveUp()
        self.members.pop(node, None)
        for id in [id for id in self._questions if id[0] == node]:
            self._drop(id)

    def status(self) -> Status:
        self._serial += 1
        self.isChanged = False
        answers = {id: each.answer for id, each in self._questions.items() if each.answer is not None}
        return Status(self._serial, {number: list(vote.items) for number, vote in self._own.items()}, answers)

    def _settle(self) -> None:
        """Decide the own votes that all members have answered."""
        for number, vote in list(self._own.items()):
            if vote.undecided is not None or not self.members.keys() <= vote.answers.keys():
                continue
            vote.undecided = set(vote.items)
            for place, each in enumerate(vote.items):
                left = max((answer.get(place, 0.0) for answer in vote.answers.values()), default=0.0)
                if left > 0:
                    vote.undecided.discard(each)
                    self._reopen(each, (self._node, number))
                    self._onAlive(each, left)
            if not vote.undecided:
                self._end(number)
            for each in [each for each in vote.items if each in vote.undecided]:
                self._onExpired(number, each, vote.items[each])

    def _end(self, number: int) -> None:
        for each in self._own.pop(number).items:
            self._reopen(each, (self._node, number))
        self.isChanged = True

    def _drop(self, id: VoteId) -> None:
        question = self._questions.pop(id)
        for each in question.registrations:
            self._reopen(each, id)
        self.isChanged = self.isChanged or question.answer is not None

    def _close(self, registration: Registration, id: VoteId) -> None:
        tenant, incarnation = registration
        self._closed.setdefault(tenant, {}).setdefault(incarnation, set()).add(id)

    def _reopen(self, registration: Registration, id: VoteId) -> None:
        tenant, incarnation = registration
        votes = self._closed.get(tenant, {}).get(incarnation)
        if votes is None:
            return
        votes.discard(id)
        if not votes:
            del self._closed[tenant][incarnation]
            if not self._closed[tenant]:
                del self._closed[tenant]
            self._onOpen(registration)

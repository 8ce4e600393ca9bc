"""
The report of an application under test: lines of JSON that it prints (:func:`note`), and the test's side of them
(:class:`Journal`).

All times are seconds of the monotonic clock, which is one for all processes of a machine.
"""

from __future__ import annotations

import json
import sys
import time
from enum import Enum
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from tests.system.processes import PATIENCE, Child, reactor

__all__ = ["STALL", "Application", "Operation", "Outcome", "note"]


#: In the line that an application logs when its reactor stood still.
STALL = "reactor stood still"


def note(kind: str, **members: object) -> None:
    """In the application: print a line, at once."""
    sys.stdout.write(json.dumps({"kind": kind, "at": time.monotonic(), **members}) + "\n")
    sys.stdout.flush()


class Outcome(Enum):
    """An application's knowledge about an operation."""

    underWay = "under way"
    #: The registry has said that it is done.
    acknowledged = "acknowledged"
    #: No answer, or one that says nothing: it may have been done.
    unknown = "unknown"
    #: The registry has said no. (A DELETE that was sent again may be refused because the first one had been done.)
    refused = "refused"


@attrs.define
class Operation:
    """
    One thing that an application asked for.

    :ivar what: ``set``, ``unset`` (a configuration value), ``create`` or ``remove`` (a service).
    :ivar id: the key, or the service.
    :ivar value: what was set, and nothing else ever is.
    :ivar error: the name of the exception, if there was one.
    """

    what: str
    id: str
    value: str | None
    begun: float
    ended: float | None = None
    outcome: Outcome = Outcome.underWay
    error: str | None = None


class Application(Child):
    """
    The process of an application, from the test's side.

    :ivar operations: all that it asked for, in the order in which it began; see :meth:`take`.
    :ivar states: of each of its services, the states as they came: ``(at, state)``.
    :ivar troubles: what it heard of registrations that failed: ``(id, name of the exception)``.
    :ivar log: the lines of its log, warnings and worse.
    :ivar keptAlive: the services that it keeps alive by a bare HeartBeater,
    :ivar everKeptAlive: all that it has ever kept alive so, and
    :ivar lost: those of which the HeartBeater gave up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.states: dict[str, list[tuple[float, str]]] = {}
        self.troubles: list[tuple[str, str]] = []
        self.log: list[str] = []
        self.keptAlive: set[str] = set()
        self.everKeptAlive: set[str] = set()
        self.lost: set[str] = set()
        self._byNumber: dict[int, Operation] = {}
        self._line = ""
        self._news: list[tuple[str, Deferred[None]]] = []

    def outReceived(self, data: bytes) -> None:
        """See ProcessProtocol. A line of the journal is not kept as output."""
        *lines, self._line = (self._line + data.decode()).split("\n")
        for line in lines:
            if line.startswith("{"):
                self.hear(json.loads(line))
            else:
                super().outReceived(f"{line}\n".encode())

    def tell(self, *command: object) -> None:
        """Give the application a command; see :mod:`tests.system.faults.application`."""
        transport: Any = self.transport
        transport.write(" ".join(map(str, command)).encode() + b"\n")

    def says(self, text: str) -> Deferred[None]:
        """Wait for the next line of this kind (``started``, ``paused``, ``stopped``) from now on."""
        heard: Deferred[None] = Deferred()
        self._news.append((text, heard))
        return heard.addTimeout(PATIENCE, reactor)

    def forget(self) -> None:
        """Keep no troubles, and of the log only stalls: on a busy machine a first request may have timed out."""
        self.troubles.clear()
        self.log = [line for line in self.log if STALL in line]

    def take(self) -> list[Operation]:
        """The operations since the last time. Those that are under way stay here."""
        taken = [each for each in self.operations if each.outcome is not Outcome.underWay]
        self.operations = [each for each in self.operations if each.outcome is Outcome.underWay]
        return taken

    @property
    def services(self) -> set[str]:
        """The ids of its RegisteredServices that are not stopped."""
        return {id for id, states in self.states.items() if states[-1][1] != "stopped"}

    @property
    def stayed(self) -> set[str]:
        """The ids of RegisteredServices that were stopped, and whose deregistration had no response in time."""
        return {
            id for id in self.states if any(f"Deregistration of service {id} failed: no" in line for line in self.log)
        }

    def isRegistered(self, id: str) -> bool:
        """Whether it takes its service for registered."""
        return bool(self.states.get(id)) and self.states[id][-1][1] == "registered"

    def processEnded(self, reason: Any) -> None:
        """See ProcessProtocol."""
        waiting, self._news = self._news, []
        for kind, heard in waiting:
            heard.errback(AssertionError(f"ended before it was {kind}:\n{self.output}\n{self.errors}"))
        super().processEnded(reason)

    def hear(self, line: dict[str, Any]) -> None:
        """Take up a line."""
        kind, at = line["kind"], line["at"]
        if kind == "begun":
            operation = Operation(line["what"], line["id"], line.get("value"), at)
            self._byNumber[line["number"]] = operation
            self.operations.append(operation)
        elif kind == "ended":
            operation = self._byNumber.pop(line["number"])
            operation.ended = at
            operation.outcome = Outcome(line["outcome"])
            operation.error = line.get("error")
        elif kind == "state":
            self.states.setdefault(line["id"], []).append((at, line["state"]))
        elif kind == "trouble":
            self.troubles.append((line["id"], line["error"]))
        elif kind == "log":
            self.log.append(line["text"])
        elif kind == "keptAlive":
            self.keptAlive.add(line["id"])
            self.everKeptAlive.add(line["id"])
        elif kind == "resting":
            self.keptAlive.discard(line["id"])
        elif kind == "lost" and line["id"] in self.keptAlive:
            # One that is resting may have been removed by now, without an answer that said so.
            self.lost.add(line["id"])
        waiting, self._news = self._news, []
        for wanted, heard in waiting:
            if wanted == kind:
                heard.callback(None)
            else:
                self._news.append((wanted, heard))

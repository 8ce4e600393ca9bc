"""The interface of stores that several registries use at the same time, and what such a store tells them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from .interfaces import IStore, ServiceSummary


class IStoreListener(Interface):
    """
    Receives the changes of a shared store, which may be the registry's own, and its questions about deadlines. A
    registration is named by its tenant and its incarnation.
    """

    def appeared(service: ServiceSummary) -> None:
        """A service is there, new or changed. It has a full timeout if it was unknown or its timeout is another."""

    def renew(registration: tuple[str, str]) -> None:
        """Give a service a full timeout from now on: another registry has updated its timeout."""

    def vanished(tenant: str, id: str, incarnation: str) -> None:
        """This incarnation of a service is gone."""

    def eventAdded(tenant: str, type: str | None) -> None:
        """The tenant's feed has a new event of this type; ``None`` for any number of any types."""

    def synchronized(services: Sequence[ServiceSummary]) -> None:
        """All services as they are now: some changes may have been missed."""

    def suspend() -> None:
        """The store is unavailable: heartbeats elsewhere are not noticed, and none is acknowledged here."""

    def renewAll() -> None:
        """Give every service a full timeout from now on."""

    def secondsLeft(registration: tuple[str, str]) -> float:
        """Seconds until the deadline as known here; 0 or less if it has passed, or for an unknown registration."""

    def timeout(registration: tuple[str, str]) -> float:
        """The heartbeat timeout in seconds; 0 for an unknown registration."""

    def due(count: int) -> Mapping[tuple[str, str], int]:
        """Up to *count* registrations whose deadline has passed, with it, each until :meth:`lookAgain` or a new one."""

    def lookAgain(registration: tuple[str, str]) -> None:
        """Let :meth:`due` return a registration again, if its deadline has passed then."""

    def leaveTo(registration: tuple[str, str], seconds: float) -> None:
        """Another registry has a later deadline, in so many seconds: :meth:`due` returns it after a heartbeat here."""

    def expired(registration: tuple[str, str]) -> None:
        """This registry has persisted the expiration."""

    def ended(registration: tuple[str, str]) -> None:
        """The registration has ended by what another registry did."""


class ISharedStore(IStore):
    """
    A store that several registries use at the same time. Each of them acknowledges heartbeats from memory, and a
    service expires when all of them agree that they received none for one timeout.
    """

    isNew: bool = Attribute("Whether, when it was opened, there had never been a user in it.")
    isValid: bool = Attribute("Whether this registry may acknowledge heartbeats now.")
    members: Sequence[str] = Attribute("The names of the registries that share it now, this one's first.")

    def join(listener: IStoreListener) -> Deferred[None]:
        """Join the registries that share the store, and notify *listener*. Fires when all services have been read."""

    def tick() -> None:
        """Take part in the votes. Called several times a second, but not when this process has stalled."""

    def closed(tenant: str) -> Container[str]:
        """The incarnations of those services whose heartbeats have to be admitted before they are acknowledged."""

    def admit(tenant: str, incarnation: str) -> Deferred[bool]:
        """Let a heartbeat of a closed service pass. Fires with whether this incarnation is there."""

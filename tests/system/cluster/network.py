"""
The network between the sites of a cluster, each a member of etcd with the registry next to it: a site can be cut off.
"""

from __future__ import annotations

import re
from typing import Any

from tests.system.etcd.relay import Relay
from txserviceregistry.util.deferred import returnsDeferred

__all__ = ["Network", "PeerRelay"]

# How a member of etcd introduces itself to another.
_SENDER = re.compile(rb"^X-Server-From: ([0-9a-f]+)\r?$", re.MULTILINE)


class PeerRelay(Relay):
    """
    Stands where other members reach one member of etcd, and knows by their requests who they are.

    :ivar cut: the ids, as etcd writes them, of those from whom nothing comes through, and to whom nothing goes back.
    """

    def __init__(self, reactor: Any, port: int) -> None:
        super().__init__(reactor, port)
        self.cut: set[str] = set()
        self._senders: dict[Any, str] = {}

    def passes(self, end: Any, data: bytes) -> None:
        """See :meth:`Relay.passes`."""
        found = _SENDER.search(data)
        if found is not None:
            self._senders[end] = found[1].decode("ascii")
            if self._senders[end] in self.cut:
                self._hold(end)

    def cutFrom(self, sender: str) -> None:
        """Let nothing through between this member and another."""
        self.cut.add(sender)
        for end, its in self._senders.items():
            if its == sender:
                self._hold(end)

    def _hold(self, end: Any) -> None:
        for each in (end, end.other):
            if each is not None:
                each.hold()

    def heal(self) -> None:
        """See :meth:`Relay.heal`."""
        self.cut.clear()
        for end in list(self._senders):
            for each in (end, end.other):
                if each is not None:
                    each.letGo()
        super().heal()

    def lost(self, end: Any) -> None:
        """See :meth:`Relay.lost`."""
        self._senders.pop(end, None)
        super().lost(end)


class Network:
    """
    All relays of a cluster, of which one site can be cut off from the others.

    A cut link passes nothing on, in either direction: nothing is refused, and sent bytes arrive when it is over.

    :param reactor: connects and listens.
    :param peers: the ports of etcd's members for each other.
    :param clients: their ports for the registries.
    :param site: the number of the one that can be cut off.
    """

    def __init__(self, reactor: Any, peers: list[int], clients: list[int], site: int) -> None:
        self.site = site
        self.peers = [PeerRelay(reactor, port) for port in peers]
        self._toSite = Relay(reactor, clients[site])
        self._fromSite = {number: Relay(reactor, port) for number, port in enumerate(clients) if number != site}
        self._clients = clients
        self._all = [*self.peers, self._toSite, *self._fromSite.values()]
        for relay in self._all:
            relay.start()

    def etcdOf(self, site: int) -> str:
        """The URLs of all members, as the registry of a site reaches them."""
        urls = []
        for number, port in enumerate(self._clients):
            isFar = (number == self.site) is not (site == self.site)
            relay = self._toSite if number == self.site else self._fromSite[number]
            urls.append(relay.url if isFar else f"http://127.0.0.1:{port}")
        return ",".join(urls)

    def cutOff(self, id: str) -> None:
        """
        Cut the site off.

        :param id: of its member, as etcd writes it among members.
        """
        self._toSite.hang()
        for relay in self._fromSite.values():
            relay.hang()
        for number, relay in enumerate(self.peers):
            if number == self.site:
                relay.hang()
            else:
                relay.cutFrom(id)

    def heal(self) -> None:
        """End it."""
        for relay in self._all:
            relay.heal()

    @returnsDeferred
    async def stop(self) -> None:
        """Leave nothing behind."""
        for relay in self._all:
            await relay.stop()

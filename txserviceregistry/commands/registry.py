"""
``twistd -n service-registry``: runs the registry.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.python import usage
from twisted.python.failure import Failure

from ..clock import useMonotonic
from ..registry.service import DEFAULT_LISTEN, RegistryService, StartFailed
from ..settings import defaultDataDir
from .process import OneLineOptions, endProcess, say

__all__ = ["Options", "RegistryProcess", "checkEndpoint", "makeService"]

_STORES = ("sqlite", "memory")


def checkEndpoint(option: str, description: str) -> str:
    """
    :param option: the option that it was given with.
    :param description: an endpoint string of Twisted's, such as ``tcp:8880:interface=127.0.0.1``.
    :return: the same.
    :raises twisted.python.usage.UsageError: if it is none.
    """
    from twisted.internet import reactor

    try:
        serverFromString(reactor, description)
    except Exception as error:
        # What the parsers raise is anything from ValueError to RuntimeError, with texts that rarely help.
        raise usage.UsageError(
            f"--{option} {description!r} is no endpoint string ({error}); an example is {DEFAULT_LISTEN}"
        ) from None
    return description


class Options(OneLineOptions):
    """The options of ``twistd service-registry``."""

    command = "service-registry"
    synopsis = "[--listen ENDPOINT]… [--data-dir DIR] [--store sqlite|memory]"
    longdesc = (
        "Runs a service registry. On its first start it makes a user and writes the user's credentials to a file "
        "'raxrc' in the data directory, where the tools and clients on this machine find them. "
        "Example: twistd -n service-registry --listen tcp:8880:interface=127.0.0.1"
    )
    optParameters = [
        ["data-dir", "d", None, "Folder for the registry's data (default: ~/.local/state/txserviceregistry)."],
        [
            "store",
            "s",
            "sqlite",
            "Where data is kept: sqlite (a file in the data directory) or memory (lost at the end).",
        ],
    ]

    def __init__(self) -> None:
        usage.Options.__init__(self)
        self["listen"] = []

    def opt_listen(self, description: str) -> None:
        """Endpoint to listen on; may be given several times [default: tcp:8880:interface=127.0.0.1]."""
        self["listen"].append(checkEndpoint("listen", description))

    opt_l = opt_listen

    def postOptions(self) -> None:
        """
        Check and complete what was given.

        :raises twisted.python.usage.UsageError: if something can't be used.
        """
        if self["store"] not in _STORES:
            raise usage.UsageError(f"--store {self['store']!r} is none of {', '.join(_STORES)}")
        self["listen"] = self["listen"] or [DEFAULT_LISTEN]
        self["data-dir"] = self["data-dir"] or defaultDataDir()


class RegistryProcess(Service):
    """
    A registry as a process's main business: says where it listens, and ends the process if it can't.
    """

    name = "service-registry"

    def __init__(self, reactor: Any, registry: RegistryService) -> None:
        self.registry = registry
        self._reactor = reactor

    def startService(self) -> None:
        """Start the registry."""
        Service.startService(self)
        self.registry.startService()
        self.registry.whenListening().addCallbacks(self._listening, self._failed)

    def stopService(self) -> Deferred[None]:
        """
        :return: fires when the registry has stopped.
        """
        Service.stopService(self)
        return self.registry.stopService()

    def _listening(self, ports: list[IListeningPort]) -> None:
        say(f"The registry listens on {', '.join(self.registry.urls)}")
        say(f"Credentials for this machine are in {self.registry.raxrcPath}")

    def _failed(self, failure: Failure) -> None:
        if self.running:
            failure.trap(StartFailed)
            endProcess(self._reactor, f"twistd service-registry: {failure.getErrorMessage()}")


def makeService(options: Options) -> IService:
    """What twistd calls."""
    from twisted.internet import reactor

    useMonotonic(reactor)
    registry = RegistryService(
        reactor, dataDir=options["data-dir"], store=options["store"], endpoints=options["listen"]
    )
    return RegistryProcess(reactor, registry)

"""
The state file of a RegisteredService: what the next process has to know to continue the service.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.interfaces import IReactorTime

from ..util.files import WriteOutage
from ..util.logs import Logger
from ..util.outage import Outage
from .desired import DesiredState
from .fields import wantsHost
from .tokenfile import TokenFile

_SHARED = (
    "Service {serviceId} runs without its state file {path}, which another process uses. A process that replaces the "
    "other one waits until the id is free. Give processes that run side by side a file each"
)


class StateFile:
    """
    Keeps the heartbeat token and the updates of one service in a file, if there is one.

    It is used from :meth:`open` to :meth:`close`. While another process has the file, or it can't be written, the
    service runs without it, and the log says so once.

    :param path: the file; ``None`` for none.
    :param desired: the service's desired state, as the program's arguments have it.
    :param log: the log.
    :param clock: tells how long it could not be written.
    """

    def __init__(self, path: str | None, desired: DesiredState, log: Logger, clock: IReactorTime) -> None:
        self._file = None if path is None else TokenFile(path, desired.serviceId)
        self._desired = desired
        self._sharing = Outage(log, clock, _SHARED, serviceId=desired.serviceId, path=path)
        loss = f"a restarted program can't continue service {desired.serviceId}"
        self._writing = WriteOutage(path or "", log, clock, loss)
        # The fields as the arguments of the program have them, and those that neither an update nor another argument
        # has changed since an earlier process.
        self._given: Mapping[str, Any] = desired.fields
        self._unchanged: frozenset[str] = frozenset()
        self._token: str | None = None
        self._provenToken: str | None = None
        # The file from open() to close().
        self._open: TokenFile | None = None

    @property
    def hasFile(self) -> bool:
        """Whether there is a file."""
        return self._file is not None

    def open(self) -> None:
        """Use the file from now on."""
        self._open = self._file
        self._sharing.succeeded()

    def _claimed(self) -> TokenFile | None:
        """
        The file, if this process owns it.

        :raises OSError: if it can't be locked or created.
        """
        if self._open is None or self._open.claim():
            return self._open
        self._sharing.failed()
        return None

    def restore(self) -> list[str]:
        """
        Adopt the updates that an earlier process left, except of fields whose arguments have changed since.

        :return: the heartbeat tokens that it left, the best one first.
        """
        try:
            file = self._claimed()
        except OSError:
            # Logged when there is a token to keep.
            return []
        kept = {} if file is None else file.load()
        if kept and self._desired.fields is self._given:
            given, updated = (kept[name] if isinstance(kept.get(name), dict) else {} for name in ("given", "updated"))
            same = {name for name, value in self._given.items() if given.get(name) == value}
            self._unchanged = frozenset(same - updated.keys())
            changes = self._desired.understood(updated)
            self._desired.change({name: value for name, value in changes.items() if name in same})
        tokens = [token for token in (kept.get("token"), kept.get("provenToken")) if isinstance(token, str)]
        return list(dict.fromkeys(tokens))

    def adopt(self, found: Mapping[str, Any]) -> None:
        """Adopt the updates that the service has in the registry, of fields that this program did not change."""
        fields = dict(found)
        if wantsHost(self._given["metadata"]):
            fields["metadata"] = {name: value for name, value in found["metadata"].items() if name != "host"}
        self._desired.change(
            {name: fields[name] for name in self._unchanged if fields[name] != self._desired.fields[name]}
        )
        self._unchanged = frozenset()

    def keep(self, token: str, proven: str | None = None) -> None:
        """
        Write the next token.

        :param proven: the last token that the registry accepted.
        """
        self._token = token
        self._provenToken = proven
        self.save()

    def save(self) -> None:
        """Write the updates of the service."""
        try:
            file = self._claimed()
            if file is None:
                return
            updated = {name: value for name, value in self._desired.fields.items() if value != self._given[name]}
            file.save(token=self._token, given=self._given, updated=updated, provenToken=self._provenToken)
        except OSError as error:
            self._writing.notWritten(error)
        else:
            self._writing.succeeded()

    def forgetToken(self) -> None:
        """The service can't be continued."""
        self._token = self._provenToken = None
        if self._file is not None and self._file.isOurs:
            self._file.remove()

    def close(self) -> None:
        """Write nothing any more."""
        self._open = None

    def release(self) -> None:
        """Let another process have the file."""
        if self._file is not None:
            self._file.release()

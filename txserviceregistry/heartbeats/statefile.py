"""The state file of a RegisteredService: what the next process has to know to continue the service."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from io import FileIO
from pathlib import Path
from typing import Any
from weakref import WeakSet

from twisted.internet.interfaces import IReactorTime

from ..util.files import checkPath, replaceFile
from ..util.logs import Logger, Outage, writeOutage
from .desired import DesiredState, wantsHost

_SHARED = (
    "Service {serviceId} runs without its state file {path}, which another process uses. A process that replaces the "
    "other one waits until the id is free. Give processes that run side by side a file each"
)
_claims: WeakSet[FileIO] = WeakSet()


def _leaveThemToTheParent() -> None:
    # A child that is forked would keep the claim beyond its parent's end. Closing its copy does not end the claim.
    for claim in list(_claims):
        claim.close()


os.register_at_fork(after_in_child=_leaveThemToTheParent)


def claimed(path: str) -> FileIO | None:
    """
    Claim a file by a lock on another one beside it, until the result is closed or the process ends. ``None`` if there
    is another claim; ``OSError`` if the lock file can't be created.
    """
    # Not another .token: web1.token may be an id of the wrapper too.
    beside = f"{path}.claim"
    checkPath(beside)
    claim = FileIO(beside, "a", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o600))
    try:
        flock(claim.fileno(), LOCK_EX | LOCK_NB)
    except BlockingIOError:
        claim.close()
        return None
    except OSError:
        pass  # a file system without locks
    _claims.add(claim)
    return claim


class StateFile:
    """
    Keeps the heartbeat token and the updates of one service in a file, if there is one, from :meth:`open` to
    :meth:`close`. While another process has the file, or it can't be written, the service runs without it.
    """

    def __init__(self, path: str | None, desired: DesiredState, log: Logger, clock: IReactorTime) -> None:
        self.path = path
        self._desired = desired
        self._sharing = Outage(log, clock, _SHARED, serviceId=desired.serviceId, path=path)
        loss = f"a restarted program can't continue service {desired.serviceId}"
        self._writing = writeOutage(path or "", log, clock, loss)
        # The arguments of the program, and the fields that nothing has changed since an earlier process.
        self._given: Mapping[str, Any] = desired.fields
        self._unchanged: frozenset[str] = frozenset()
        # The next token, and the last one that the registry accepted.
        self._tokens: tuple[str | None, str | None] = None, None
        self._claim: FileIO | None = None
        self._isOpen = False

    def open(self) -> None:
        self._isOpen = True
        self._sharing.succeeded()

    def _usable(self) -> str | None:
        """The file, if it is open and this process owns it; ``OSError`` if it can't be locked or created."""
        if self.path is None or not self._isOpen:
            return None
        if self._claim is None or self._claim.closed:
            self._claim = claimed(self.path)
        if self._claim is None:
            self._sharing.failed()
            return None
        return self.path

    def restore(self) -> list[str]:
        """
        Adopt the updates that an earlier process left, except of fields whose arguments have changed since. Returns the
        heartbeat tokens that it left, the best one first.
        """
        kept: Any = None
        # If it can't be claimed, that is logged when there is a token to keep.
        with suppress(OSError, ValueError, RecursionError):
            path = self._usable()
            kept = None if path is None else json.loads(Path(path).read_bytes())
        if not isinstance(kept, dict) or kept.get("id") != self._desired.serviceId:
            return []
        if self._desired.fields is self._given:
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
        """Write the next token, and the last one that the registry accepted."""
        self._tokens = token, proven
        self.save()

    def save(self) -> None:
        try:
            path = self._usable()
            if path is None:
                return
            fields, given = self._desired.fields, self._given
            content = {
                "id": self._desired.serviceId,
                "token": self._tokens[0],
                "given": given,
                "updated": {name: value for name, value in fields.items() if value != given[name]},
                "provenToken": self._tokens[1],
            }
            replaceFile(path, json.dumps(content))
        except OSError as error:
            self._writing.failed(reason=error.strerror or type(error).__name__)
        else:
            self._writing.succeeded()

    def forgetToken(self) -> None:
        self._tokens = None, None
        if self.path is not None and self._claim is not None and not self._claim.closed:
            # If it can't be removed: the token of a service that has ended does no harm.
            with suppress(OSError):
                os.unlink(self.path)

    def close(self) -> None:
        self._isOpen = False

    def release(self) -> None:
        if self._claim is not None:
            self._claim.close()

"""
The file that keeps a service's last heartbeat token and its updates. One running process owns it at a time.
"""

from __future__ import annotations

import json
import os
from io import FileIO
from typing import Any
from weakref import WeakSet

from ..util.files import lockFile, replaceFile
from ..util.ownership import checkPath

# Windows has no such flag.
_NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)

_claims: WeakSet[FileIO] = WeakSet()


def _leaveThemToTheParent() -> None:
    # A child that is forked, and executes nothing, has a copy of each descriptor, which would keep the claim beyond its
    # parent's end. Closing the copy does not end the claim.
    for claim in list(_claims):
        claim.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leaveThemToTheParent)


class TokenFile:
    """
    A file that holds one service's last heartbeat token and its updates, replaced as a whole each time.

    Call :meth:`claim` before any other method. The claim is a lock on a file beside it, which the system releases when
    the process ends.

    :ivar path: its path.
    """

    def __init__(self, path: str, serviceId: str) -> None:
        self.path = path
        self._serviceId = serviceId
        self._claim: FileIO | None = None

    @property
    def isOurs(self) -> bool:
        """Whether it is claimed."""
        return self._claim is not None and not self._claim.closed

    def claim(self) -> bool:
        """
        Make it ours, until :meth:`release`.

        :return: false if another owner has it, in this process or in another one.
        :raises OSError: if the lock file can't be created.
        """
        if self.isOurs:
            return True
        # Not another .token: web1.token may be an id of the wrapper too.
        beside = f"{self.path}.claim"
        checkPath(beside)
        claim = FileIO(beside, "a", opener=lambda path, flags: os.open(path, flags | _NO_FOLLOW, 0o600))
        try:
            lockFile(claim.fileno())
        except BlockingIOError:
            claim.close()
            return False
        except OSError:
            # A file system without locks; it is as if the system had none.
            pass
        self._claim = claim
        _claims.add(claim)
        return True

    def release(self) -> None:
        """End the claim. The content stays."""
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.close()

    def load(self) -> dict[str, Any]:
        """The content; empty if it is of another service or the file can't be read."""
        try:
            with open(self.path, encoding="utf-8") as file:
                kept = json.load(file)
        except (OSError, ValueError, RecursionError):
            return {}
        return kept if isinstance(kept, dict) and kept.get("id") == self._serviceId else {}

    def save(self, **content: object) -> None:
        """:raises OSError: if it can't be written; it keeps its old content then."""
        replaceFile(self.path, json.dumps({"id": self._serviceId, **content}))

    def remove(self) -> None:
        """Forget the token."""
        try:
            os.unlink(self.path)
        except OSError:
            # Gone, or not to be removed: a token of a service that has ended does no harm.
            pass

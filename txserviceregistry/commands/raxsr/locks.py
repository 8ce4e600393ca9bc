"""``raxsr locks`` and ``raxsr lock``: show locks, end them, and run a command while holding one."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from ...errors import LockHeld
from ...util.parsing import parseDuration
from ..outcome import UsageError, typeOf
from .base import ListCommand, RaxsrCommand, ShowCommand, explainedToken
from .execute import RunningCommand
from .output import Column, metadata, text, timestamp
from .parser import Parser

if TYPE_CHECKING:
    from ...coordination import Held

_COLUMNS = {
    "name": Column("Name"),
    "holder": text("Holder"),
    "fence": Column("Fence"),
    "timeout": Column("Timeout"),
    "acquired_at": timestamp("Acquired At"),
    "metadata": metadata("Metadata"),
}

# As flock and other programs have it: a failure that is temporary (EX_TEMPFAIL).
_HELD = 75
# The share of the timeout in which a command must end when its lock was lost.
_GRACE = 0.05


class List(ListCommand):
    """Show the locks that are held."""

    example = "raxsr locks list -f json"
    columns = _COLUMNS
    important = ("holder", "acquired_at", "timeout", "fence")
    paged = "locks"

    async def perform(self) -> Any:
        return await self.onePageOrAll(self.client.locks.list)


class Get(ShowCommand):
    """Show one lock."""

    example = "raxsr locks get /billing/scheduler"
    columns = _COLUMNS
    idOf = "lock's name"
    kind = "lock"

    async def perform(self) -> Any:
        return await self.client.locks.get(self.parsed.id)


class Release(RaxsrCommand):
    """
    Release a lock.

    With --token, your own lock is free at once. With --force, the registry refuses the heartbeats of another holder,
    and the lock is free when that holder's timeout has passed. With --force --now it is free at once: use that only if
    the holder no longer works with it.
    """

    example = "raxsr locks release /billing/scheduler --force"
    idOf = "lock's name"
    kind = "lock"

    def addArguments(self, parser: Parser) -> None:
        how = parser.add_mutually_exclusive_group(required=True)
        how.add_argument("--token", metavar="TOKEN", help="a token of the lock")
        how.add_argument("--force", action="store_true", help="end a lock that another process holds")
        parser.add_argument("--now", action="store_true", help="with --force: do not wait for the holder's timeout")

    def complete(self) -> None:
        if self.parsed.now and not self.parsed.force:
            raise UsageError("--now can only be given with --force")

    async def perform(self) -> Any:
        name = self.parsed.id
        if self.parsed.force:
            await self.client.locks.forceRelease(name, now=self.parsed.now)
            if not self.parsed.now:
                return f'Lock "{name}" takes no more heartbeats: it is free when its timeout has passed'
        else:
            with explainedToken(f'lock "{name}"'):
                await self.client.locks.release(name, self.parsed.token)
        return f'Lock "{name}" has been released'


class Lock(RunningCommand):
    """
    Run a command while holding a lock, which at most one process at a time holds.

    The command has raxsr's streams, and the fence of the lock in SERVICE_REGISTRY_FENCE. The exit code is the command's
    own, 128 + N after signal N, and 75 if another holds the lock with --nonblock or until --wait is over. When the lock
    is lost, the command gets SIGTERM, and SIGKILL before another process can hold the lock; the exit code is 1 then.
    """

    example = "raxsr lock /billing/report --nonblock -- /opt/billing/report --daily"
    usage = "NAME [--nonblock | --wait SECONDS] [--timeout SECONDS]"
    idOf = "lock's name"

    def addArguments(self, parser: Parser) -> None:
        super().addArguments(parser)
        how = parser.add_mutually_exclusive_group()
        how.add_argument("-n", "--nonblock", action="store_true", help="do not wait for the lock")
        shown = "wait for the lock no longer than this"
        how.add_argument("-w", "--wait", type=typeOf(parseDuration), metavar="SECONDS", help=shown)
        parser.add_argument(
            "--timeout",
            type=int,
            default=15,
            metavar="SECONDS",
            help="3 to 120 (default: 15): another can hold the lock so many seconds after raxsr was killed",
        )

    def runProgram(self, program: str) -> int:
        try:
            code: int = self.ask()
        except LockHeld as error:
            holder = f" by {error.holder}" if error.holder else ""
            self.program.complain(f'the lock "{self.parsed.id}" is held{holder}. The command was not run')
            return _HELD
        return code

    async def perform(self) -> Any:
        from ...coordination import Lock

        try:
            lock = Lock(self.client, self.parsed.id, self.parsed.timeout)
        except ValueError as error:
            raise UsageError(f"--timeout: {error}") from None
        async with await lock.acquire(0 if self.parsed.nonblock else self.parsed.wait) as held:
            return await self._run(held)

    async def _run(self, held: Held) -> int:
        from twisted.internet.defer import CancelledError
        from twisted.internet.threads import deferToThread

        from ...util.deferred import waitFor
        from ..wrapper.process import exitCode, startChild

        environment = {**os.environb, b"SERVICE_REGISTRY_FENCE": str(held.fence).encode()}
        child = startChild(self.parsed.command, environment, frozenset())
        deferToThread(os.waitpid, child.pid, 0).addCallback(lambda ended: child.ended.callback(ended[1]))
        losses: list[str] = []

        def lost(reason: str) -> None:
            losses.append(reason)
            self.program.complain(f'the lock "{self.parsed.id}" was lost: {reason}. The command is ended')
            child.signal(signal.SIGTERM)
            self.client.clock.callLater(self.parsed.timeout * _GRACE, child.signal, signal.SIGKILL)

        held.lost.addCallback(lost)
        while True:
            try:
                status = await waitFor(child.ended)
            except CancelledError:
                # A signal has reached raxsr. The lock is held until the command has ended.
                child.signal(signal.SIGTERM)
            else:
                return 1 if losses else exitCode(status)

"""``raxsr lock``: runs a command while it holds a lock."""

from __future__ import annotations

import argparse
import os
import signal
from typing import TYPE_CHECKING, Any

from ..outcome import UsageError
from .base import RaxsrCommand, addId
from .parser import Parser

if TYPE_CHECKING:
    from ...client import Client
    from ...coordination import Held

# As flock and other programs have it: a failure that is temporary (EX_TEMPFAIL).
_HELD = 75
# The part of the timeout that a command has to end in when its lock was lost.
_GRACE = 0.05


class Lock(RaxsrCommand):
    """
    Run a command while holding a lock, which at most one process at a time holds.

    The command has raxsr's streams, and the fence of the lock in SERVICE_REGISTRY_FENCE. The exit code is the command's
    own, 128 + N after signal N, and 75 if another holds the lock with --nonblock or until --wait is over. When the lock
    is lost, the command gets SIGTERM, and SIGKILL before another process can hold the lock; the exit code is 1 then.
    """

    example = "raxsr lock /billing/report --nonblock -- /opt/billing/report --daily"

    def addArguments(self, parser: Parser) -> None:
        parser.usage = "%(prog)s NAME [--nonblock | --wait SECONDS] [--timeout SECONDS] -- COMMAND [ARGUMENT]…"
        parser.takesCommand = True
        addId(parser, "lock's name")
        how = parser.add_mutually_exclusive_group()
        how.add_argument("-n", "--nonblock", action="store_true", help="do not wait for the lock")
        how.add_argument("-w", "--wait", type=float, metavar="SECONDS", help="wait for the lock no longer than this")
        parser.add_argument(
            "--timeout",
            type=int,
            default=15,
            metavar="SECONDS",
            help="3 to 120 (default: 15): another can hold the lock so many seconds after raxsr was killed",
        )

    def hasOutput(self, parsed: argparse.Namespace) -> bool:
        # The output is the command's.
        return False

    def take_action(self, parsed: argparse.Namespace) -> int:
        if not parsed.command:
            raise UsageError("give the command to run, and its arguments, after --")

        # This imports Twisted, which help does not need.
        from ...errors import LockHeld
        from ..wrapper.process import CantStart, findProgram

        try:
            findProgram(parsed.command[0])
            code: int = self.ask(parsed)
        except CantStart as error:
            self.app.complain(str(error))
            return error.exitCode
        except LockHeld as error:
            holder = f" by {error.holder}" if error.holder else ""
            self.app.complain(f'the lock "{parsed.id}" is held{holder}. The command was not run')
            return _HELD
        return code

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        from ...coordination import Lock

        try:
            lock = Lock(client, parsed.id, parsed.timeout)
        except ValueError as error:
            raise UsageError(f"--timeout: {error}") from None
        if parsed.wait is not None and not parsed.wait >= 0:
            raise UsageError("--wait must be 0 seconds or more")
        async with await lock.acquire(0 if parsed.nonblock else parsed.wait) as held:
            return await self._run(client, held, parsed)

    async def _run(self, client: Client, held: Held, parsed: argparse.Namespace) -> int:
        from twisted.internet.defer import CancelledError
        from twisted.internet.threads import deferToThread

        from ...util.deferred import waitFor
        from ..wrapper.process import exitCode, startChild

        environment = {**os.environb, b"SERVICE_REGISTRY_FENCE": str(held.fence).encode()}
        child = startChild(parsed.command, environment, frozenset())
        deferToThread(os.waitpid, child.pid, 0).addCallback(lambda ended: child.ended.callback(ended[1]))
        losses: list[str] = []

        def lost(reason: str) -> None:
            losses.append(reason)
            self.app.complain(f'the lock "{parsed.id}" was lost: {reason}. The command is ended')
            child.signal(signal.SIGTERM)
            client.clock.callLater(parsed.timeout * _GRACE, child.signal, signal.SIGKILL)

        held.lost.addCallback(lost)
        while True:
            try:
                status = await waitFor(child.ended)
            except CancelledError:
                # A signal has reached raxsr. The lock is held until the command has ended.
                child.signal(signal.SIGTERM)
            else:
                return 1 if losses else exitCode(status)

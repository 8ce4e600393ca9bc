"""
Console scripts in this process: each runs in a thread, as if it were alone there, and its reactor is the test's.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from io import TextIOWrapper
from typing import Any, TypeVar
from unittest import mock

import attrs
from twisted.internet import reactor as globalReactor
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.threads import blockingCallFromThread, deferToThread

from tests import CHEAP
from txserviceregistry.commands import backup, users
from txserviceregistry.commands.raxsr import running
from txserviceregistry.registry.identity import Identity

reactor: Any = globalReactor
_T = TypeVar("_T")
# A script replaces parts of the process, which has them once: one script runs at a time.
_lock = DeferredLock()


@attrs.frozen
class Ended:
    """The output of a program, and its exit code (minus N: the signal N)."""

    out: str
    err: str
    code: int

    @property
    def json(self) -> Any:
        """The output as JSON."""
        return json.loads(self.out)


def withoutSettings() -> dict[str, str]:
    """This process's environment, without what configures this project's programs."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("RAXSR_", "XDG_"))}


def _onTheReactor(_: Any, work: Callable[[], Coroutine[Deferred[Any], Any, _T]]) -> _T:
    """In the place of ``runReactor``: the reactor runs already."""
    result: _T = blockingCallFromThread(reactor, lambda: Deferred.fromCoroutine(work()))
    return result


@contextlib.contextmanager
def _alone(arguments: Sequence[str], environment: Mapping[str, str], folder: str, streams: Any) -> Iterator[None]:
    """Give the process the arguments, the environment and so on that the script's own process would have."""
    before = os.getcwd()
    with contextlib.ExitStack() as stack:
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            stack.enter_context(mock.patch.object(sys, name, stream))
        stack.enter_context(mock.patch.object(sys, "argv", list(arguments)))
        for module in (running, users):
            stack.enter_context(mock.patch.object(module, "runReactor", _onTheReactor))
            stack.enter_context(mock.patch.object(module, "useMonotonic", lambda reactor: None))
            stack.enter_context(mock.patch.object(module, "globalLogBeginner"))
        stack.enter_context(mock.patch.object(users, "Identity", partial(Identity, cost=CHEAP)))
        # This process stays what it is.
        for each in (backup, users):
            stack.enter_context(mock.patch.object(each, "becomeOwner"))
        stack.callback(time.tzset)
        stack.enter_context(mock.patch.dict(os.environ, environment, clear=True))
        time.tzset()
        stack.callback(os.chdir, before)
        os.chdir(folder)
        yield


def _run(
    main: Callable[[], int],
    arguments: Sequence[str],
    environment: Mapping[str, str],
    folder: str,
    stdin: bytes,
    stdout: str | None,
) -> Ended:
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    # Files, which have descriptors, as the streams of a process have.
    with contextlib.ExitStack() as files:
        given, out, err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        if stdout is not None:
            out = files.enter_context(open(stdout, "wb", buffering=0))
        given.write(stdin)
        given.seek(0)
        streams = [TextIOWrapper(each, encoding=encoding) for each in (given, out, err)]
        with _alone(arguments, environment, folder, streams):
            code = main()
        for stream in streams[1:]:
            stream.flush()
        err.seek(0)
        if stdout is not None:
            return Ended("", err.read().decode(), code)
        out.seek(0)
        return Ended(out.read().decode(), err.read().decode(), code)


async def runScript(
    main: Callable[[], int],
    *arguments: str,
    environment: Mapping[str, str],
    folder: str,
    stdin: bytes = b"",
    stdout: str | None = None,
) -> Ended:
    """
    Run a console script to its end.

    :param main: the script.
    :param arguments: its arguments, after the program's name.
    :param environment: all of its environment.
    :param folder: where it runs.
    :param stdin: what it reads.
    :param stdout: a file that it writes to, instead of what is returned.
    """
    return await _lock.run(deferToThread, _run, main, ["program", *arguments], environment, folder, stdin, stdout)

"""The logger of this package; outages in the log; listeners whose errors are logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Generic, ParamSpec, cast

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger as _Logger
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from ..errors import UNKNOWN_OUTCOME
from .fields import escaped

_P = ParamSpec("_P")


class Logger(_Logger):
    """Escapes the texts in its events, which may come from outside: none adds lines, or is obeyed by a terminal."""

    def __get__(self, instance: object, owner: type | None = None) -> Logger:
        return cast(Logger, super().__get__(instance, owner))

    def emit(self, level: LogLevel, format: str | None = None, **kwargs: object) -> None:
        values = {name: escaped(value) if isinstance(value, str) else value for name, value in kwargs.items()}
        super().emit(level, format, **values)


class Outage:
    """
    Something that can fail for a while: it logs a line *after* so many failures, and one when that ends. An outage that
    begins sooner than *calm* seconds after another one ends only when nothing has failed for as long. The first refusal
    of each type, given as *cause*, has a line too: the registry may be back, but with other users.
    """

    def __init__(
        self,
        log: Logger,
        clock: IReactorTime,
        begins: str,
        ends: str | None = None,
        *,
        level: LogLevel = LogLevel.warn,
        after: int = 1,
        calm: float = 0.0,
        **values: object,
    ) -> None:
        self._log, self._clock = log, clock
        self._begins, self._ends = begins, ends
        self._level, self._after, self._calm = level, after, calm
        self._values, self.isOn = values, False
        self._failures, self._began, self._isCalm = 0, 0.0, True
        self._kinds: tuple[type | None, ...] = ()  # of the errors that were logged, None for no response
        # The last failure of all, and the end of the last outage.
        self._failed = self._ended = -math.inf

    def failed(
        self, failure: Failure | None = None, *, isCertain: bool = False, cause: object = None, **values: object
    ) -> None:
        """It failed. An unexpected *failure*, logged with its traceback, or a certain one begins an outage at once."""
        self._failed = now = self._clock.seconds()
        kind = None if cause is None or isinstance(cause, UNKNOWN_OUTCOME) else type(cause)
        if self.isOn and kind in self._kinds:
            return
        self._failures += 1
        if self._failures == 1:
            self._began = now
        if self._failures < self._after and failure is None and not isCertain:
            return
        if not self.isOn:
            self.isOn, self._isCalm, self._kinds = True, now - self._ended >= self._calm, ()
        self._kinds += (kind,)
        self._values = {**self._values, **values}
        if failure is None:
            self._log.emit(self._level, self._begins, **self._values)
        else:
            self._log.failure(self._begins, failure, self._level, **self._values)

    def succeeded(self, **values: object) -> None:
        now = self._clock.seconds()
        if self.isOn and not self._isCalm and now - self._failed < self._calm:
            return
        wasOn, self.isOn, self._failures = self.isOn, False, 0
        if wasOn:
            self._ended = now
        if wasOn and self._ends is not None:
            self._log.info(self._ends, **{**self._values, **values, "seconds": now - self._began})


def writeOutage(path: str, log: Logger, clock: IReactorTime, loss: str) -> Outage:
    """A file that can't be written, for a *reason*; *loss* is the consequence, as a clause."""
    begins = "File {path} can't be written: {reason}. Until it can, {loss}"
    return Outage(log, clock, begins, "File {path} is written again", path=path, loss=loss)


@attrs.define(eq=False)
class Listeners(Generic[_P]):
    """Functions to call in the order in which they were added. Each may add and end others."""

    _log: Logger
    _what: str
    # A key for each, because the same function may be added twice.
    _entries: dict[object, Callable[_P, object]] = attrs.field(factory=dict, init=False)

    def add(self, listener: Callable[_P, object]) -> Callable[[], None]:
        """Call *listener* from now on, until the function that is returned is called."""
        key = object()
        self._entries[key] = listener

        def end() -> None:
            self._entries.pop(key, None)

        return end

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Callable[_P, object]]:
        for key in tuple(self._entries):
            listener = self._entries.get(key)
            if listener is not None:
                yield listener

    def call(self, *args: _P.args, **kwargs: _P.kwargs) -> None:
        for listener in self:
            try:
                listener(*args, **kwargs)
            except BaseException:
                # Not only Exception: asyncio's CancelledError, for example, must not end the caller either.
                self._log.failure("Listener to {what} failed", what=self._what)

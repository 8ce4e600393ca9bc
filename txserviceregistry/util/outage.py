"""Outages in the log: one line when something begins to fail, and one when it works again."""

from __future__ import annotations

import math

from twisted.internet.interfaces import IReactorTime
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from .logs import Logger


class Outage:
    """
    Something that can fail for a while: one line is logged when that begins, and one when it ends.

    :param begins: the first line, for example ``Event feed unreachable (retrying): {reason}``. Its values are *values*
        and those given to :meth:`failed`.
    :param ends: the second line; ``None`` for none. It has the values of the first one, those given to
        :meth:`succeeded`, and ``{seconds}``, counted from the first failure.
    :param level: the level of the first line.
    :param after: how many failures in a row begin an outage: 2 if the first one is followed by a retry at once.
    :param calm: seconds. An outage that begins sooner after another one ends only when nothing has failed for as long.
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
        self._log = log
        self._clock = clock
        self._begins = begins
        self._ends = ends
        self._level = level
        self._after = after
        self._calm = calm
        self._values = values
        #: Whether it has begun.
        self.isOn = False
        self._failures = 0
        # When the first failure of this outage was, the last one, and the end of the outage before.
        self._began = 0.0
        self._failed = self._ended = -math.inf
        self._isCalm = True

    def failed(self, failure: Failure | None = None, *, isCertain: bool = False, **values: object) -> None:
        """
        It failed; *values* are for the log.

        :param failure: an unexpected error. It is logged with its traceback, and begins an outage at once.
        :param isCertain: whether another try can't succeed, so that an outage begins at once.
        """
        self._failed = now = self._clock.seconds()
        if self.isOn:
            return
        self._failures += 1
        if self._failures == 1:
            self._began = now
        if self._failures < self._after and failure is None and not isCertain:
            return
        self.isOn = True
        self._isCalm = now - self._ended >= self._calm
        self._values = {**self._values, **values}
        if failure is None:
            self._log.emit(self._level, self._begins, **self._values)
        else:
            self._log.failure(self._begins, failure, self._level, **self._values)

    def succeeded(self, **values: object) -> None:
        """It succeeded; *values* are for the log."""
        now = self._clock.seconds()
        if self.isOn and not self._isCalm and now - self._failed < self._calm:
            return
        self._failures = 0
        if not self.isOn:
            return
        self.isOn = False
        self._ended = now
        if self._ends is not None:
            self._log.info(self._ends, **{**self._values, **values, "seconds": now - self._began})

"""The logger of this package."""

from __future__ import annotations

from typing import cast

from twisted.logger import Logger as _Logger
from twisted.logger import LogLevel

from .escaping import escaped


class Logger(_Logger):
    """A logger that escapes the texts in its events, which may come from outside: none adds lines or is obeyed."""

    def __get__(self, instance: object, owner: type | None = None) -> Logger:
        return cast(Logger, super().__get__(instance, owner))

    def emit(self, level: LogLevel, format: str | None = None, **kwargs: object) -> None:
        """See :class:`twisted.logger.Logger`."""
        values = {name: escaped(value) if isinstance(value, str) else value for name, value in kwargs.items()}
        super().emit(level, format, **values)

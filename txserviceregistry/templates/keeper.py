"""Keeping files current: render, put, and wait for the next change."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import attrs
from twisted.internet.task import deferLater

from ..discovery.directory import THRESHOLD
from ..util.backoff import Backoff
from ..util.logs import Logger, Outage
from .rendering import NotCurrent, Renderer, TemplateFailed, Views

if TYPE_CHECKING:
    from ..client import Client

# Seconds between two tries after a failure.
_SHORTEST_RETRY = 1.0
_LONGEST_RETRY = 60.0
# Seconds until the next look at views that are stale.
_STALE_RETRY = 0.5


@attrs.frozen
class Job:
    """A template and its destination: *put* takes the text, and returns whether it is another one than before."""

    name: str
    renderer: Renderer
    put: Callable[[str], Awaitable[bool]]


class TemplateKeeper:
    """
    Renders templates: :meth:`run` each time something changes, or :meth:`once`.

    :param quiet: seconds without a change until files are rendered again.
    :param longest: seconds after the first change until they are rendered even if more changes come.
    """

    _log = Logger()

    def __init__(
        self,
        client: Client,
        jobs: Sequence[Job],
        quiet: float = 0.0,
        longest: float = 0.0,
        *,
        panicThreshold: float = THRESHOLD,
        allowEmpty: bool = False,
        randomNumber: Callable[[], float] = random.random,
    ) -> None:
        self._clock = client.clock
        self._views = Views(client, panicThreshold, allowEmpty)
        self._quiet = quiet
        self._longest = longest
        self._backoff = Backoff(_SHORTEST_RETRY, _LONGEST_RETRY, randomNumber)
        begins, ends = "Template {name} failed (retrying): {reason}", "Template {name} succeeded after {seconds:.0f} s"
        self._jobs = {job: Outage(self._log, self._clock, begins, ends, name=job.name) for job in jobs}

    async def once(self) -> None:
        """Render each template once, as soon as all that it needs is known; raises :class:`TemplateFailed`."""
        try:
            for job in self._jobs:
                await self._update(job)
        except TemplateFailed as error:
            raise TemplateFailed(f"template {job.name} failed: {error}") from None
        finally:
            await self._views.stop()

    async def run(self) -> None:
        """Keep all files current, until this is cancelled."""
        try:
            while True:
                seen = self._views.version
                if await self._updateAll():
                    self._backoff.reset()
                    if self._views.version == seen:
                        await self._views.whenChanged()
                elif self._views.version == seen:
                    delay = max(self._backoff.next(), _SHORTEST_RETRY)
                    await self._views.whenChanged().addTimeout(delay, self._clock, lambda _, seconds: None)
                if self._views.version != seen:
                    await self._untilQuiet()
        finally:
            await self._views.stop()

    async def _updateAll(self) -> bool:
        """Make all files current; whether that succeeded."""
        isDone = True
        for job, outage in self._jobs.items():
            try:
                await self._update(job)
            except TemplateFailed as error:
                isDone = False
                outage.failed(reason=str(error))
            else:
                outage.succeeded()
        return isDone

    async def _update(self, job: Job) -> None:
        """Make a file current, once what it needs is known."""
        while True:
            try:
                text = job.renderer.render(self._views)
                break
            except NotCurrent:
                await self._views.whenReady()
                if not self._views.areCurrent:
                    await deferLater(self._clock, _STALE_RETRY)
        if await job.put(text):
            self._log.info("Template {name} rendered", name=job.name)

    async def _untilQuiet(self) -> None:
        end, seen = self._clock.seconds() + self._longest, -1
        while self._views.version != seen:
            seen, left = self._views.version, end - self._clock.seconds()
            if left < 0:
                return
            await deferLater(self._clock, min(self._quiet, left))

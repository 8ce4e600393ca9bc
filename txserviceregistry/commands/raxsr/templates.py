"""Templates of files: rendering over views of the registry, checks, replacement, reloads, and the next change."""

from __future__ import annotations

import os
import random
import re
import shlex
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import attrs
from jinja2 import FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from twisted.internet.defer import TimeoutError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from ...client import Client
from ...discovery.balancing import instanceOf
from ...discovery.directory import THRESHOLD, Directory, Suspects
from ...discovery.mirror import ConfigurationWatcher
from ...types import Service
from ...util.deferred import Backoff, Waiters
from ...util.fields import isEnabled, takesWork, weightOf
from ...util.files import replaceFile, replacement
from ...util.logs import Logger, Outage
from ..wrapper.process import CantStart, runShell
from .configuration import prefixOf

_View = TypeVar("_View", Directory, ConfigurationWatcher)

# Characters without a meaning in the syntax of configuration files: names, addresses, numbers and URLs.
_WORD = re.compile(r"[A-Za-z0-9._:/@%+\-\[\]]+")
# Seconds between two tries after a failure.
_SHORTEST_RETRY = 1.0
_LONGEST_RETRY = 60.0
# Seconds until the next look at views that are stale.
_STALE_RETRY = 0.5
# The most characters of a text. Nested loops could fill the memory.
_LONGEST_TEXT = 16 << 20
# Seconds after which a check or a reload is killed.
_COMMAND_SECONDS = 60.0


class TemplateFailed(Exception):
    """The text, one line, says why."""


class NotCurrent(Exception):
    """A view is not complete yet, or stale."""


def _forTemplates(service: Service) -> dict[str, Any]:
    """A service for templates. Host, port and address are undefined if its metadata have no valid ones."""
    metadata, instance = service["metadata"], instanceOf(service)
    found = {
        "id": service["id"],
        "tags": service["tags"],
        "metadata": metadata,
        "weight": weightOf(metadata),
        "state": service.get("state", "up") if isEnabled(metadata) else "out",
    }
    # Any client that can write chooses the host, and templates put it into configuration files.
    if instance is None or not _WORD.fullmatch(instance.host):
        missing = StrictUndefined(f"the metadata of service {service['id']!r} have no valid host and port")
        return {**found, "host": missing, "port": missing, "address": missing}
    return {**found, "host": instance.host, "port": instance.port, "address": instance.netloc}


class Views:
    """The content of a registry. The *functions* of templates raise NotCurrent if their result is not known now."""

    def __init__(self, client: Client, panicThreshold: float = THRESHOLD, allowEmpty: bool = False) -> None:
        self.changes: Waiters[None] = Waiters()
        self._directory = Directory(client)
        self._suspects = Suspects(self._directory, client.clock, panicThreshold)
        self._suspects.onChange(lambda kind, service: self.changes.fire(None))
        self._watcher = ConfigurationWatcher(client)
        self._watcher.onChange(lambda change: self.changes.fire(None))
        self._allowEmpty = allowEmpty
        self.functions: dict[str, Callable[..., Any]] = {
            "services": self._services,
            "service": self._service,
            "value": self._value,
            "values": self._values,
        }

    @property
    def version(self) -> int:
        """Grows with every change."""
        return sum(view.version for view in self._started())

    async def whenReady(self) -> bool:
        """Wait until all views that were asked for are complete; whether none is stale."""
        await gatherResults([view.whenReady() for view in self._started()])
        return not any(view.stale for view in self._started())

    async def stop(self) -> None:
        for view in self._started():
            await view.stopService()

    def _services(self, tag: str | None = None, *, all: bool = False, empty: bool = False) -> list[dict[str, Any]]:
        _current(self._directory)
        listed = self._suspects.services() if tag is None else self._suspects.forTag(tag)
        found = [_forTemplates(each) for each in listed if all or takesWork(each)]
        if not all:
            found = [each for each in found if isinstance(each["port"], int)]
        if not found and not empty and not self._allowEmpty:
            which = "" if tag is None else f" with tag {tag!r}"
            raise TemplateFailed(f"no service{which} can receive connections (--allow-empty renders it nevertheless)")
        return found

    def _service(self, id: str) -> dict[str, Any] | Undefined:
        found = _current(self._directory).get(id)
        return StrictUndefined(f"there is no service {id!r}") if found is None else _forTemplates(found)

    def _value(self, key: str) -> str | Undefined:
        found = _current(self._watcher).get(key)
        return StrictUndefined(f"there is no configuration value {key!r}") if found is None else found

    def _values(self, namespace: str) -> dict[str, str]:
        """The values below a namespace, by the part of the key that is below it."""
        prefix = prefixOf(namespace)
        values = _current(self._watcher).items()
        return {key[len(prefix) :]: value for key, value in values if key.startswith(prefix)}

    def _started(self) -> list[Directory | ConfigurationWatcher]:
        return [view for view in (self._directory, self._watcher) if view.running]


def _current(view: _View) -> _View:
    if not view.running:
        view.startService()
    if view.stale:
        raise NotCurrent
    return view


def word(value: object) -> str:
    """A filter: the text, if it is one word that is safe in any configuration file, or else an error."""
    text = str(value)
    if not _WORD.fullmatch(text):
        raise TemplateFailed(f"{text[:40]!r} is not one word of letters, digits and . _ : / @ % + - [ ]")
    return text


class Template:
    """A template in a file, for :meth:`Target.put`. It is read again when it has changed, and can include others."""

    def __init__(self, path: str, put: Callable[[str], Awaitable[bool]]) -> None:
        self.path, self.put = path, put
        folder, self._name = os.path.split(os.path.abspath(path))
        self._environment = ImmutableSandboxedEnvironment(
            loader=FileSystemLoader(folder),
            undefined=StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters["word"] = word

    def render(self, views: Views) -> str:
        """The text now; raises NotCurrent or TemplateFailed."""
        try:
            parts, left = [], _LONGEST_TEXT
            for part in self._environment.get_template(self._name).generate(views.functions):
                left -= len(part)
                if left < 0:
                    raise TemplateFailed(f"the text is longer than {_LONGEST_TEXT >> 20} MiB. Check the loops")
                parts.append(part)
            return "".join(parts)
        except (NotCurrent, TemplateFailed):
            raise
        except TemplateError as error:
            line = f" (line {error.lineno})" if isinstance(error, TemplateSyntaxError) else ""
            raise TemplateFailed(f"{error.message or type(error).__name__}{line}") from None
        except Exception as error:
            # A template is a program: it may divide by zero.
            raise TemplateFailed(f"{type(error).__name__}: {error}") from None


async def runCommand(command: str) -> None:
    """Run a shell command; TemplateFailed if it fails, or does not end. It is killed when this is cancelled."""
    from twisted.internet import reactor

    try:
        # A reactor has the methods of a clock.
        problem = await runShell(command, os.environb, inThread=True).addTimeout(_COMMAND_SECONDS, reactor)
    except TimeoutError:
        raise TemplateFailed(f"{command!r} did not end within {_COMMAND_SECONDS:.0f} s") from None
    except CantStart as error:
        raise TemplateFailed(f"{command!r} failed: {error}") from None
    if problem is not None:
        raise TemplateFailed(f"{command!r} failed with {problem}")


@attrs.define(eq=False, repr=False, slots=False)
class Target:
    """A file that is kept current. *check* and *reload* are commands; ``{}`` in *check* is the new file's path."""

    path: str = attrs.field(converter=os.path.realpath)
    _check: str | None = None
    _reload: str | None = None
    _run: Callable[[str], Awaitable[None]] = runCommand

    def __attrs_post_init__(self) -> None:
        folder, name = os.path.split(self.path)
        # The old file, from before a change until the reload has succeeded; a NUL if there was none.
        self._old = os.path.join(folder, f".{name}.before-reload")
        # Whether the file was changed and the reload has not succeeded: the process may have been killed.
        self._isPending = os.path.lexists(self._old)

    def content(self) -> str | None:
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise TemplateFailed(f"{self.path} is not a regular file, and is not replaced")
            with open(self.path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TemplateFailed(f"can't read {self.path}: {error.strerror}") from None

    async def put(self, text: str) -> bool:
        """Make *text* the content, and reload; whether that was necessary. After a TemplateFailed it is the old one."""
        isChanged = text != self.content()
        if not isChanged and not self._isPending:
            return False
        try:
            try:
                if isChanged:
                    await self._replace(text)
                if self._reload is not None:
                    await self._run(self._reload)
            except BaseException:
                # A restart of the program finds what it has now, if anything. If this fails, the next failure tries it.
                with suppress(OSError):
                    if Path(self._old).read_bytes() != b"\0":
                        os.replace(self._old, self.path)
                raise
            if os.path.lexists(self._old):
                os.unlink(self._old)
        except OSError as error:
            raise TemplateFailed(f"can't write {self.path}: {error.strerror}") from None
        except UnicodeError:
            raise TemplateFailed(f"can't write {self.path}: the text has characters that UTF-8 has not") from None
        self._isPending = False
        return True

    async def _replace(self, text: str) -> None:
        """Check the text, and make it the file's content. Mode and owner stay."""
        like = os.stat(self.path) if os.path.exists(self.path) else None
        with replacement(self.path, text, isDurable=True, like=like) as new:
            if like is None:
                umask = os.umask(0o077)
                os.umask(umask)
                os.chmod(new, 0o666 & ~umask)
            if self._check is not None:
                await self._run(self._check.replace("{}", shlex.quote(new)))
            if self._reload is not None and not os.path.lexists(self._old):
                before = b"\0" if like is None else Path(self.path).read_bytes()
                replaceFile(self._old, before, isDurable=True, like=like)
            self._isPending = self._reload is not None
            os.rename(new, self.path)


@attrs.define(eq=False, repr=False, slots=False)
class TemplateKeeper:
    """Renders templates when nothing has changed for *quiet* seconds, and at the latest *longest* after a change."""

    _log: ClassVar[Logger] = Logger()

    _clock: IReactorTime
    _views: Views
    _templates: Sequence[Template]
    _quiet: float = 0.0
    _longest: float = 0.0
    _random: Callable[[], float] = random.random

    async def once(self) -> None:
        """Render each template once; :class:`TemplateFailed` if that fails."""
        try:
            for template in self._templates:
                await self._update(template)
        except TemplateFailed as error:
            raise TemplateFailed(f"template {template.path} failed: {error}") from None
        finally:
            await self._views.stop()

    async def run(self) -> None:
        """Keep all files current, until this is cancelled."""
        views, backoff = self._views, Backoff(_SHORTEST_RETRY, _LONGEST_RETRY, self._random)
        begins, ends = "Template {name} failed (retrying): {reason}", "Template {name} succeeded after {seconds:.0f} s"
        outages = {each: Outage(self._log, self._clock, begins, ends, name=each.path) for each in self._templates}
        try:
            while True:
                seen = views.version
                for template, outage in outages.items():
                    try:
                        await self._update(template)
                    except TemplateFailed as error:
                        outage.failed(reason=str(error))
                    else:
                        outage.succeeded()
                if not any(outage.isOn for outage in outages.values()):
                    backoff.reset()
                    if views.version == seen:
                        await views.changes.wait()
                elif views.version == seen:
                    delay = max(backoff.next(), _SHORTEST_RETRY)
                    await views.changes.wait().addTimeout(delay, self._clock, lambda _, seconds: None)
                if views.version != seen:
                    await self._untilQuiet()
        finally:
            await views.stop()

    async def _update(self, template: Template) -> None:
        """Make a file current, once what it needs is known."""
        while True:
            try:
                text = template.render(self._views)
                break
            except NotCurrent:
                if not await self._views.whenReady():
                    await deferLater(self._clock, _STALE_RETRY)
        if await template.put(text):
            self._log.info("Template {name} rendered", name=template.path)

    async def _untilQuiet(self) -> None:
        end, seen = self._clock.seconds() + self._longest, -1
        while self._views.version != seen:
            seen, left = self._views.version, end - self._clock.seconds()
            if left < 0:
                return
            await deferLater(self._clock, min(self._quiet, left))

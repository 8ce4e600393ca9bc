"""Rendering: Jinja2 templates over views of the registry, which are started when a template first asks for them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from twisted.internet.defer import Deferred, gatherResults

from ..discovery.balancing import instanceOf
from ..discovery.directory import THRESHOLD, Directory, Suspects
from ..discovery.watcher import ConfigurationWatcher
from ..types import Service
from ..util.deferred import Waiters
from ..util.fields import isEnabled, takesWork, weightOf

if TYPE_CHECKING:
    from ..client import Client

_View = TypeVar("_View", Directory, ConfigurationWatcher)

# Characters without a meaning in the syntax of configuration files: names, addresses, numbers and URLs.
_WORD = re.compile(r"[A-Za-z0-9._:/@%+\-\[\]]+")

# The most characters of a text. Nested loops could fill the memory.
_LONGEST_TEXT = 16 << 20


class TemplateFailed(Exception):
    """A template can't be rendered; the text, one line, says why."""


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
    """
    The content of a registry for templates.

    :param allowEmpty: whether there may be tags without a service that can receive connections.
    :ivar functions: the functions of templates. They raise NotCurrent if their result is not known now.
    """

    def __init__(self, client: Client, panicThreshold: float = THRESHOLD, allowEmpty: bool = False) -> None:
        self._directory = Directory(client)
        self._suspects = Suspects(self._directory, client.clock, panicThreshold)
        self._suspects.onChange(lambda kind, service: self._changes.fire(None))
        self._watcher = ConfigurationWatcher(client)
        self._watcher.onChange(lambda change: self._changes.fire(None))
        self._allowEmpty = allowEmpty
        self._changes: Waiters[None] = Waiters()
        self.functions: dict[str, Callable[..., Any]] = {
            "services": self._services,
            "service": self._service,
            "value": self._value,
            "values": self._values,
        }

    @property
    def version(self) -> int:
        """Grows with every change."""
        return self._suspects.version + sum(view.version for view in self._started())

    @property
    def areCurrent(self) -> bool:
        """Whether all views that were asked for equal the registry."""
        return not any(view.stale for view in self._started())

    def whenChanged(self) -> Deferred[None]:
        return self._changes.wait()

    def whenReady(self) -> Deferred[Any]:
        """Fires when all views that were asked for are complete."""
        return gatherResults([view.whenReady() for view in self._started()])

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
        prefix = f"/{namespace.strip('/')}/" if namespace.strip("/") else "/"
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


class Renderer:
    """A template in the file *path*. It is read again when it has changed, and can include files in its folder."""

    def __init__(self, path: str) -> None:
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
        except TemplateSyntaxError as error:
            raise TemplateFailed(f"{error.message} (line {error.lineno})") from None
        except TemplateError as error:
            raise TemplateFailed(error.message or type(error).__name__) from None
        except Exception as error:
            # A template is a program: it may divide by zero.
            raise TemplateFailed(f"{type(error).__name__}: {error}") from None

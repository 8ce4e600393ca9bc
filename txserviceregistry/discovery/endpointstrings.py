r"""
Endpoint strings: ``registry:TAG[:strategy=…][:timeout=…]`` for clients, and
``registered:id=…[:tags=…][:metadata=…][:heartbeatTimeout=…]:endpoint=…`` for servers.

twistd reads such strings before it becomes a daemon: here nothing is connected, opened or scheduled.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar
from weakref import finalize

import attrs
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from zope.interface import implementer

from ..errors import InvalidSettings, ServiceRegistryError
from ..util.deferred import returnsDeferred
from ..util.fields import HEARTBEAT_TIMEOUTS, ID_RULE, SERVICE_ID, parseMetadata, parseTags
from ..util.logs import Logger
from .balancing import strategyNamed
from .directory import THRESHOLD, checkedThreshold
from .endpoints import CONNECT_TIMEOUT, RegisteredEndpoint, RegistryEndpoint, Shared, checkedConnectTimeout, share

_CLIENT_KEYS = ("tag", "strategy", "timeout", "region", "zone", "panicThreshold")
_SERVER_KEYS = ("id", "tags", "metadata", "heartbeatTimeout", "endpoint")
_log = Logger()

_T = TypeVar("_T")


@implementer(IStreamClientEndpoint)
@attrs.define(eq=False)
class SharedRegistryEndpoint:
    """A RegistryEndpoint over the directory that all strings share, from its first connect until it is garbage."""

    _reactor: Any
    _tag: str
    _options: Mapping[str, Any]
    _shared: Shared | None = attrs.field(default=None, init=False)
    _end: Callable[[], object] = attrs.field(default=lambda: None, init=False)
    _endpoint: Any = attrs.field(default=None, init=False)

    @returnsDeferred
    async def connect(self, protocolFactory: IProtocolFactory) -> IProtocol:
        """See RegistryEndpoint; fails with InvalidSettings too, if no settings name the registry."""
        if self._shared is None or self._shared.ending is not None:
            self._end()
            user = object()
            self._shared = shared = share(self._reactor, user)
            # The garbage collector runs in any thread, and within any call.
            self._end = end = finalize(self, self._reactor.callFromThread, shared.release, user)
            end.atexit = False
            self._endpoint = RegistryEndpoint(self._reactor, shared.directory, self._tag, **self._options)
        # This coroutine refers to the endpoint until it ends.
        protocol: IProtocol = await self._endpoint.connect(protocolFactory)
        return protocol


def _orExit(reactor: Any, error: ServiceRegistryError | ValueError) -> BaseException:
    """The error itself, or while a twistd starts, what ends it with this error in one line instead of a traceback."""
    # "python -m twisted" is twist.
    program = os.path.basename(sys.argv[0].removesuffix("/__main__.py")).removesuffix(".py")
    if program in ("twist", "twistd", "twisted") and not getattr(reactor, "running", False):
        return SystemExit(f"{program}: {error}")
    return error


def _exits(parse: Callable[..., _T]) -> Callable[..., _T]:
    """*parse*, whose errors end a twistd that starts with one line."""

    @wraps(parse)
    def parseOrExit(reactor: Any, *args: str, **kwargs: str) -> _T:
        try:
            return parse(reactor, *args, **kwargs)
        except ValueError as error:
            raise _orExit(reactor, error)

    return parseOrExit


@_exits
def parseRegistry(reactor: Any, *args: str, **kwargs: str) -> SharedRegistryEndpoint:
    """``registry:TAG``, with the parameters of RegistryEndpoint; ``region=`` and ``zone=`` are its *near*."""
    for name in kwargs:
        if name not in _CLIENT_KEYS:
            raise ValueError(f"registry: unknown parameter {name!r} (known: {', '.join(_CLIENT_KEYS)})")
    tags = [*args, *([kwargs["tag"]] if "tag" in kwargs else [])]
    if len(tags) != 1 or not tags[0]:
        raise ValueError(
            r"registry: one tag is required, as in registry:web:strategy=random (a colon within a tag is written \:)"
        )
    near = {name: kwargs.pop(name) for name in ("region", "zone") if name in kwargs}
    options: dict[str, Any] = {name: value for name, value in kwargs.items() if name != "tag"}
    try:
        strategyNamed(options.get("strategy", "random"))
        checkedConnectTimeout(options.get("timeout", CONNECT_TIMEOUT))
        checkedThreshold(options.get("panicThreshold", THRESHOLD))
    except ValueError as error:
        raise ValueError(f"registry: {error}") from None
    return SharedRegistryEndpoint(reactor, tags[0], {**options, "near": near})


@_exits
def parseRegistered(reactor: Any, *args: str, **kwargs: str) -> RegisteredEndpoint:
    r"""
    ``registered:id=ID:endpoint=ENDPOINT``, with ``tags=``, ``metadata=`` and ``heartbeatTimeout=``. A comma within a
    tag or a value is escaped with two backslashes (``\\,``), because the string's own parser removes one.
    """
    unknown = [name for name in kwargs if name not in _SERVER_KEYS]
    if args or unknown:
        raise ValueError(_unquoted(args, unknown, kwargs))
    for name in ("id", "endpoint"):
        if not kwargs.get(name):
            raise ValueError(rf"registered: {name}= is missing, as in registered:id=web1:endpoint=tcp\:8080")
    id, nested = kwargs["id"], kwargs["endpoint"]
    if not SERVICE_ID.fullmatch(id):
        raise ValueError(f"registered: id={id} is not valid: it has {ID_RULE}")
    timeout = kwargs.get("heartbeatTimeout", "30")
    if not re.fullmatch("[0-9]{1,3}", timeout) or int(timeout) not in HEARTBEAT_TIMEOUTS:
        raise ValueError(f"registered: heartbeatTimeout={timeout} is not a whole number of seconds from 3 to 120")
    try:
        metadata = parseMetadata(kwargs.get("metadata", ""))
    except ValueError as error:
        raise ValueError(rf"registered: metadata: {error}; in an endpoint string that is \\,")
    tags = parseTags(kwargs.get("tags", ""))

    def use(user: object) -> Shared:
        try:
            return share(reactor, user)
        except InvalidSettings as error:
            raise _orExit(reactor, error)

    return RegisteredEndpoint(use, _nested(reactor, nested), id, int(timeout), tags, metadata)


def _nested(reactor: Any, description: str) -> Any:
    try:
        return serverFromString(reactor, description)
    except RuntimeError:
        # Twisted's parser raises this for a backslash at the end.
        raise ValueError(rf"registered: endpoint={description} ends in a backslash that escapes nothing")
    except (TypeError, ValueError, LookupError, OSError) as error:
        raise ValueError(f"registered: endpoint={description} is not a server endpoint: {error}")


def _unquoted(args: Sequence[str], unknown: Sequence[str], kwargs: Mapping[str, str]) -> str:
    pieces = [*args, *(f"{name}={kwargs[name]}" for name in unknown)]
    nested = kwargs.get("endpoint")
    if nested is not None and ":" in nested:
        # The endpoint was quoted, another value was not.
        return (
            f"registered: unknown parameter {':'.join(pieces)!r} (known: {', '.join(_SERVER_KEYS)}). "
            r"A colon within a value is written \:"
        )
    values = {name: kwargs[name] for name in _SERVER_KEYS if name in kwargs}
    wrong = "the colons of the wrapped endpoint have to be escaped"
    whole = ":".join([nested, *pieces] if nested is not None else pieces)
    if nested is None and len(pieces) <= (1 if "id" in values else 2) and re.match("[a-z][a-z0-9]*:", pieces[-1]):
        # The endpoint was quoted. A value before it can only be the id.
        wrong, whole = "each value needs a name", pieces[-1]
        values.update({"id": pieces[0]} if len(pieces) == 2 else {})
    values = {"id": "web1", **values, "endpoint": whole}
    right = ":".join(f"{name}={quoteStringArgument(values[name])}" for name in _SERVER_KEYS if name in values)
    return f"registered: {wrong}. Write registered:{right}"

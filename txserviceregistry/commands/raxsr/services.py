"""``raxsr services``, ``locks``, ``account`` and ``console``."""

from __future__ import annotations

import math
import webbrowser
from collections.abc import Callable
from functools import partial
from typing import Any

from ...errors import NotFound, ServiceExists
from ...util.fields import ID_RULE, parseDuration, parseMetadata, parseTags
from ..console import CommandFailed, UsageError, typeOf
from .command import Argument, Run, argument, command, oneOf
from .output import columns

COLUMNS = columns("id heartbeat_timeout last_seen tags metadata", id="Service ID")
#: Limits the services to those with a tag.
TAG = argument("--tag", metavar="TAG", help="only services with this tag")

_ID = {"idOf": "service's id", "kind": "service"}
_NO_STATES = "this registry has no states of services. Use: raxsr services update ID --add-metadata status=disabled"
_tags = typeOf(parseTags)
_pairs = typeOf(lambda text: list(parseMetadata(text).items()))


def _timeout(shown: str, **more: Any) -> Argument:
    shown = f"time without a heartbeat after which the service expires, 3 to 120{shown}"
    return argument("--heartbeat-timeout", type=int, metavar="SECONDS", help=shown, **more)


def _entries(option: str, parse: Callable[[str], Any], metavar: str, shown: str) -> Argument:
    return argument(option, type=parse, action="extend", metavar=metavar, help=shown)


_FIELDS = (
    _entries("--tags", _tags, "TAG,…", r"its tags; \, is a comma inside of a tag"),
    _entries("--metadata", _pairs, "KEY=VALUE,…", "its metadata, the same way"),
)


@command("services list", "--tag www -f json", TAG, columns=COLUMNS, paged="services")
async def listServices(run: Run) -> Any:
    """Show the services that are registered."""
    services, tag = run.client.services, run.parsed.tag
    return await run.onePageOrAll(services.list if tag is None else partial(services.listForTag, tag))


@command("services get", "web1", columns=COLUMNS, **_ID)
async def get(run: Run) -> Any:
    """Show one service."""
    return await run.client.services.get(run.parsed.id)


@command(
    "services create",
    "web1 --heartbeat-timeout 60 --tags www,api --metadata port=8000,host=10.0.0.1",
    _timeout(" (default: 30)", default=30),
    *_FIELDS,
    columns=columns("id heartbeat_timeout token", id="Service ID"),
    idOf=f"service's id, {ID_RULE}",
)
async def create(run: Run) -> Any:
    """
    Register a service.

    It expires when its heartbeat timeout passes without a heartbeat. "raxsr services heartbeat" needs the token that is
    shown.
    """
    id, timeout = run.parsed.id, run.parsed.heartbeat_timeout
    fields = {"tags": run.parsed.tags or [], "metadata": dict(run.parsed.metadata or [])}
    try:
        body, _ = await run.client.services.create(id, timeout, fields)
    except ServiceExists:
        choice = "Choose another id, remove it, or wait until it expires"
        raise CommandFailed(f'the service "{id}" already exists. {choice}') from None
    return {"id": id, "heartbeat_timeout": timeout, **body}


@command(
    "services heartbeat",
    "web1 --token 2d7ff6e8-c8e9-11f0-8de9-0242ac120002 -f value -c token",
    argument("--token", required=True, metavar="TOKEN", help="the token that its creation or last heartbeat has shown"),
    columns=columns("id token", id="Service ID"),
    **_ID,
)
async def heartbeat(run: Run) -> Any:
    """
    Send a heartbeat for a service, which then expires a heartbeat timeout later.

    The next heartbeat needs the token that is shown.
    """
    return {"id": run.parsed.id, **await run.client.services.heartbeat(run.parsed.id, run.parsed.token)}


@command(
    "services update",
    r"web1 --tags www --metadata status=disabled,note=down\, for now",
    _timeout(""),
    *_FIELDS,
    _entries("--add-metadata", _pairs, "KEY=VALUE,…", "metadata to add, or to give another value"),
    _entries("--remove-metadata", _tags, "KEY,…", "keys of metadata to remove"),
    **_ID,
)
async def update(run: Run) -> str:
    """
    Change a service.

    --heartbeat-timeout, --tags and --metadata replace the old value as a whole; what is not given stays.
    --add-metadata and --remove-metadata change single entries: the service is read and then written, so another
    client's change in between is lost.
    """
    parsed, services = run.parsed, run.client.services
    added, removed = dict(parsed.add_metadata or []), parsed.remove_metadata or []
    metadata = None if parsed.metadata is None else dict(parsed.metadata)
    both = sorted(set(added).intersection(removed))
    if both:
        raise UsageError(f"--add-metadata and --remove-metadata both name {both[0]!r}")
    if added or removed:
        if metadata is not None:
            raise UsageError("--metadata replaces all: it can't be given with --add-metadata or --remove-metadata")
        metadata = {**(await services.get(parsed.id))["metadata"], **added}
        metadata = {key: value for key, value in metadata.items() if key not in removed}
    fields = {"heartbeat_timeout": parsed.heartbeat_timeout, "tags": parsed.tags, "metadata": metadata}
    changes = {name: value for name, value in fields.items() if value is not None}
    if not changes:
        raise UsageError("nothing to change: give --heartbeat-timeout, --tags or --metadata")
    await services.update(parsed.id, changes)
    return f'Service "{parsed.id}" has been updated'


@command("services remove", "web1", **_ID)
async def remove(run: Run) -> str:
    """Remove a service."""
    await run.client.services.remove(run.parsed.id)
    return f'Service "{run.parsed.id}" has been removed'


# -- states


_BELONGS = "The state belongs to the ID. It survives restarts of the service, and may be set before it is registered."
_DRAIN = f"Drain a service: it gets no new work, and existing connections go on.\n\n{_BELONGS}"
_NOTHING_NEW = "Clients send it nothing new, and Prometheus does not scrape it."
_OUT = f"Take a service out of use: it receives no traffic.\n\n{_NOTHING_NEW}\n{_BELONGS}"


def _declareState(state: str, done: str, example: str, help: str) -> None:
    def duration(text: str) -> tuple[str, int]:
        return f" for {text}", math.ceil(parseDuration(text, "1s", "30d"))

    shown = "end the state after this time: 90s, 10m, 24h, up to 30d"

    @command(
        f"services {state}",
        example,
        argument("--reason", default="", metavar="TEXT", help="the reason, for other operators; up to 255 characters"),
        argument("--for", dest="duration", type=typeOf(duration), default=("", None), metavar="TIME", help=shown),
        idOf="service's id",
        help=help,
    )
    async def setState(run: Run) -> str:
        during, seconds = run.parsed.duration
        try:
            await run.client.services.setState(run.parsed.id, state, run.parsed.reason, expiresIn=seconds)
        except NotFound:
            raise CommandFailed(_NO_STATES) from None
        return f'Service "{run.parsed.id}" {done}{during}'


_declareState("drain", "gets no new work", 'web1 --reason "rack move" --for 10m', _DRAIN)
_declareState("out", "receives no traffic", 'web1 --reason "broken disk"', _OUT)
_declareState("up", "is up", "web1", "Put a service back into use.")


@command(
    "services states",
    "-f json",
    columns=columns("id state expires_at reason", id="Service ID", expires_at="Ends"),
    paged="states",
)
async def states(run: Run) -> Any:
    """Show the states that were set for services."""
    try:
        return await run.onePageOrAll(run.client.services.listStates)
    except NotFound:
        raise CommandFailed(_NO_STATES) from None


# -- locks


_LOCK_COLUMNS = columns("name holder fence timeout acquired_at metadata")
_NAME = {"idOf": "lock's name", "kind": "lock"}


@command("locks list", "-f json", columns=_LOCK_COLUMNS, paged="locks")
async def listLocks(run: Run) -> Any:
    """Show the locks that are held."""
    return await run.onePageOrAll(run.client.locks.list)


@command("locks get", "/billing/scheduler", columns=_LOCK_COLUMNS, **_NAME)
async def getLock(run: Run) -> Any:
    """Show one lock."""
    return await run.client.locks.get(run.parsed.id)


@command(
    "locks release",
    "/billing/scheduler --force",
    oneOf(
        argument("--token", metavar="TOKEN", help="a token of the lock"),
        argument("--force", action="store_true", help="end a lock that another process holds"),
        required=True,
    ),
    argument("--now", action="store_true", help="with --force: do not wait for the holder's timeout"),
    **_NAME,
)
async def release(run: Run) -> str:
    """
    Release a lock.

    With --token, your own lock is free at once. With --force, the registry refuses the heartbeats of another holder,
    and the lock is free when that holder's timeout has passed. With --force --now it is free at once: use that only if
    the holder no longer works with it.
    """
    name, token, now = run.parsed.id, run.parsed.token, run.parsed.now
    if now and token is not None:
        raise UsageError("--now can only be given with --force")
    if token is not None:
        await run.client.locks.release(name, token)
    else:
        await run.client.locks.forceRelease(name, now=now)
        if not now:
            return f'Lock "{name}" takes no more heartbeats: it is free when its timeout has passed'
    return f'Lock "{name}" has been released'


# -- the account


@command("account rate-limits", "", columns=columns("rate window used limit"), shows="list")
async def rateLimits(run: Run) -> Any:
    """Show the rate limits of the account, and how much of them is used."""
    limits = await run.client.account.getLimits()
    return [{"rate": path, **rate} for path, rate in limits["rate"].items()]


@command("account resource-limits", "-f json", columns=columns("resource limit"), shows="list")
async def resourceLimits(run: Run) -> Any:
    """Show the maximum number of objects of each kind in the account."""
    limits = await run.client.account.getLimits()
    return [{"resource": kind, "limit": limit} for kind, limit in limits["resource"].items()]


@command(
    "console",
    "--print",
    argument("--print", action="store_true", help="only print the link, which works once and within a minute"),
)
async def console(run: Run) -> str:
    """Open the registry's web console in a browser, without typing the API key."""
    try:
        link = await run.client.account.createConsoleLink()
    except NotFound:
        raise CommandFailed("the registry has no web console (it may be turned off with --console off)") from None
    if run.parsed.print:
        return link["href"]
    if webbrowser.open(link["href"]):
        return "The console is open in the browser"
    return f"Open this link in a browser within {link['expires_in']} seconds: {link['href']}"

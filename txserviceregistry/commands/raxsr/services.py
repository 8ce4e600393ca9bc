"""``raxsr services``, ``account`` and ``console``: services and their states, the account's limits, the web console."""

from __future__ import annotations

import math
import webbrowser
from functools import partial
from typing import Any

from ...errors import NotFound, ServiceExists
from ...util.fields import ID_RULE
from ...util.parsing import parseDuration, parseMetadata, parseTags
from ..console import CommandFailed, UsageError, typeOf
from .command import Argument, Run, argument, command
from .output import Column, metadata, tags, text, timestamp

COLUMNS = {
    "id": Column("Service ID"),
    "heartbeat_timeout": Column("Heartbeat Timeout"),
    "last_seen": timestamp("Last Seen"),
    "tags": tags("Tags"),
    "metadata": metadata("Metadata"),
}
#: Limits the services to those with a tag.
TAG = argument("--tag", metavar="TAG", help="only services with this tag")

_ID = {"idOf": "service's id", "kind": "service"}
_NO_STATES = "this registry has no states of services. Use: raxsr services update ID --add-metadata status=disabled"


def _fields(timeout: int | None) -> list[Argument]:
    """The fields of a service, whose default *timeout* may be none."""
    shown = "time without a heartbeat after which the service expires, 3 to 120"
    shown += "" if timeout is None else f" (default: {timeout})"
    return [
        argument("--heartbeat-timeout", type=int, default=timeout, metavar="SECONDS", help=shown),
        argument(
            "--tags", type=_tags, action="extend", metavar="TAG,…", help=r"its tags; \, is a comma inside of a tag"
        ),
        argument("--metadata", type=_pairs, action="extend", metavar="KEY=VALUE,…", help="its metadata, the same way"),
    ]


_tags = typeOf(parseTags)
_pairs = typeOf(lambda text: list(parseMetadata(text).items()))


@command(
    "services list",
    "--tag www -f json",
    TAG,
    columns=COLUMNS,
    shows="list",
    important=("metadata", "tags", "last_seen", "heartbeat_timeout"),
    paged="services",
)
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
    *_fields(30),
    columns={name: COLUMNS[name] for name in ("id", "heartbeat_timeout")} | {"token": Column("Token")},
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
    columns={"id": COLUMNS["id"], "token": Column("Token")},
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
    *_fields(None),
    *(
        argument(option, type=parse, action="extend", default=[], metavar=metavar, help=shown)
        for option, parse, metavar, shown in (
            ("--add-tags", _tags, "TAG,…", "tags to add"),
            ("--remove-tags", _tags, "TAG,…", "tags to remove"),
            ("--add-metadata", _pairs, "KEY=VALUE,…", "metadata to add, or to give another value"),
            ("--remove-metadata", _tags, "KEY,…", "keys of metadata to remove"),
        )
    ),
    **_ID,
)
async def update(run: Run) -> str:
    """
    Change a service.

    --heartbeat-timeout, --tags and --metadata replace the old value as a whole; what is not given stays. The other
    options add to the tags and metadata of the service, or remove some: the service is read and then written, so
    another client's change in between is lost.
    """
    parsed = run.parsed
    changes: dict[str, Any] = {
        "heartbeat_timeout": parsed.heartbeat_timeout,
        "tags": parsed.tags,
        "metadata": None if parsed.metadata is None else dict(parsed.metadata),
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    # Tags are the keys of pairs without a value.
    amendments: dict[str, tuple[dict[str, Any], list[str]]] = {
        "tags": (dict.fromkeys(parsed.add_tags), parsed.remove_tags),
        "metadata": (dict(parsed.add_metadata), parsed.remove_metadata),
    }
    amendments = {name: both for name, both in amendments.items() if any(both)}
    for name, (added, removed) in amendments.items():
        both = sorted(set(added).intersection(removed))
        if both:
            raise UsageError(f"--add-{name} and --remove-{name} both name {both[0]!r}")
        if name in changes:
            raise UsageError(f"--{name} replaces all: it can't be given with --add-{name} or --remove-{name}")
    if not changes and not amendments:
        raise UsageError("nothing to change: give --heartbeat-timeout, --tags or --metadata")

    service: Any = await run.client.services.get(parsed.id) if amendments else None
    for name, (added, removed) in amendments.items():
        present = service[name] if name == "metadata" else dict.fromkeys(service[name])
        left = {key: value for key, value in {**present, **added}.items() if key not in removed}
        changes[name] = left if name == "metadata" else list(left)
    await run.client.services.update(parsed.id, changes)
    return f'Service "{parsed.id}" has been updated'


@command("services remove", "web1", **_ID)
async def remove(run: Run) -> str:
    """Remove a service."""
    await run.client.services.remove(run.parsed.id)
    return f'Service "{run.parsed.id}" has been removed'


# -- states


_STATE = (
    argument("--reason", default="", metavar="TEXT", help="the reason, for other operators; up to 255 characters"),
    argument(
        "--for",
        dest="duration",
        type=typeOf(lambda text: (text, math.ceil(parseDuration(text, "1s", "30d")))),
        default=("", None),
        metavar="TIME",
        help="end the state after this time: 90s, 10m, 24h, up to 30d",
    ),
)


def _declareState(state: str, done: str, example: str, help: str) -> None:
    @command(f"services {state}", example, *_STATE, idOf="service's id", help=help)
    async def setState(run: Run) -> str:
        limit, seconds = run.parsed.duration
        try:
            await run.client.services.setState(run.parsed.id, state, run.parsed.reason, expiresIn=seconds)
        except NotFound:
            raise CommandFailed(_NO_STATES) from None
        duration = f" for {limit}" if limit else ""
        return f'Service "{run.parsed.id}" {done}{duration}'


_BELONGS = "The state belongs to the ID. It survives restarts of the service, and may be set before it is registered."
_DRAIN = f"Drain a service: it gets no new work, and existing connections go on.\n\n{_BELONGS}"
_OUT = f"""\
Take a service out of use: it receives no traffic.

Clients send it nothing new, and Prometheus does not scrape it.
{_BELONGS}"""
_declareState("drain", "gets no new work", 'web1 --reason "rack move" --for 10m', _DRAIN)
_declareState("out", "receives no traffic", 'web1 --reason "broken disk"', _OUT)
_declareState("up", "is up", "web1", "Put a service back into use.")


@command(
    "services states",
    "-f json",
    columns={
        "id": Column("Service ID"),
        "state": Column("State"),
        "expires_at": timestamp("Ends"),
        "reason": text("Reason"),
    },
    shows="list",
    important=("state", "reason", "expires_at"),
    paged="states",
)
async def states(run: Run) -> Any:
    """Show the states that were set for services."""
    try:
        return await run.onePageOrAll(run.client.services.listStates)
    except NotFound:
        raise CommandFailed(_NO_STATES) from None


# -- the account


@command(
    "account rate-limits",
    "",
    columns={"rate": Column("Rate"), "window": Column("Window"), "used": Column("Used"), "limit": Column("Limit")},
    shows="list",
)
async def rateLimits(run: Run) -> Any:
    """Show the rate limits of the account, and how much of them is used."""
    limits = await run.client.account.getLimits()
    return [{"rate": path, **rate} for path, rate in limits["rate"].items()]


@command(
    "account resource-limits",
    "-f json",
    columns={"resource": Column("Resource"), "limit": Column("Limit")},
    shows="list",
)
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

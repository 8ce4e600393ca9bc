"""``raxsr template``: keeps files of other programs up to date, rendered from templates."""

from __future__ import annotations

import difflib
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from ...util.parsing import boundedNumber, parseDuration
from ..console import CommandFailed, UsageError, printable, typeOf
from .command import Run, argument, command

if TYPE_CHECKING:
    from ...templates.keeper import Job, Target


def _wait(text: str) -> tuple[float, float]:
    quiet, colon, longest = text.partition(":")
    found = parseDuration(quiet), parseDuration(longest if colon else quiet)
    if found[0] > found[1]:
        raise ValueError(f"{text!r}: QUIET is longer than LONGEST")
    return found


@command(
    "template",
    "'haproxy.j2:/etc/haproxy/haproxy.cfg:systemctl reload haproxy' --check 'haproxy -c -f {}'",
    argument(
        "templates",
        nargs="+",
        metavar="SOURCE:DESTINATION[:RELOAD COMMAND]",
        help="the template, the file to render it to, and a shell command to run when the file has changed",
    ),
    argument(
        "--check",
        action="append",
        default=[],
        metavar="COMMAND",
        help="a shell command that fails if a new file is not valid; {} in it is the file's path. Give one for all "
        "templates, or one for each, in their order",
    ),
    argument(
        "--wait",
        type=typeOf(_wait),
        default="1s:10s",
        metavar="QUIET:LONGEST",
        help="render when nothing has changed for QUIET, and at the latest LONGEST after a change (default: 1s:10s)",
    ),
    argument(
        "--panic-threshold",
        type=typeOf(partial(boundedNumber, least=0.0, most=1.0)),
        default=0.5,
        metavar="PART",
        help="if more than this share of a tag's services, 0 to 1, expires at once, they stay in use "
        "(default: 0.5; 0: never)",
    ),
    argument("--once", action="store_true", help="render each template once, and exit"),
    argument("--dry-run", action="store_true", help="show what would change, and change and run nothing"),
    argument("--allow-empty", action="store_true", help="render a template even if one of its tags has no service"),
)
async def template(run: Run) -> None:
    """
    Render templates to files, such as those of nginx or HAProxy, and keep them up to date.

    A template is a Jinja2 file. In it, services("www") are the services with a tag that can receive connections, and
    service("web1"), value("/production/color") and values("/production") one service, a value, and the values below a
    namespace. A file is replaced only by one that passed its check, and only when it differs; then the reload command
    runs. While the registry is unreachable, files stay as they are. The command runs until Ctrl-C.
    """
    from ...templates.keeper import TemplateKeeper
    from ...templates.rendering import TemplateFailed

    parsed = run.parsed
    options = {"panicThreshold": parsed.panic_threshold, "allowEmpty": parsed.allow_empty}
    keeper = TemplateKeeper(run.client, _jobs(parsed), *parsed.wait, **options)
    with run.loggedNotes():
        try:
            await (keeper.once() if parsed.once or parsed.dry_run else keeper.run())
        except TemplateFailed as error:
            raise CommandFailed(str(error)) from None


def _jobs(parsed: Any) -> list[Job]:
    from ...templates.keeper import Job, Target
    from ...templates.rendering import Renderer

    checks = parsed.check or [None]
    if len(checks) not in (1, len(parsed.templates)):
        raise UsageError("give one --check, or one for each template")
    jobs, taken = [], {os.path.realpath(text.partition(":")[0]) for text in parsed.templates}
    for number, text in enumerate(parsed.templates):
        source, _, rest = text.partition(":")
        destination, _, reload = rest.partition(":")
        if not source or not destination:
            raise UsageError(f"{text!r} is not SOURCE:DESTINATION or SOURCE:DESTINATION:RELOAD COMMAND")
        if not os.path.isfile(source):
            raise UsageError(f"there is no template {source}")
        target = Target(destination, checks[number % len(checks)], reload or None)
        if target.path in taken:
            raise UsageError(f"{destination} is a template, or the destination of two. Choose another file")
        taken.add(target.path)
        put = partial(_preview, target) if parsed.dry_run else target.put
        jobs.append(Job(source, Renderer(source), put))
    return jobs


async def _preview(target: Target, text: str) -> bool:
    """Show what would be put into a file."""
    old = target.content()
    before = os.devnull if old is None else target.path
    for line in difflib.unified_diff((old or "").splitlines(), text.splitlines(), before, target.path, lineterm=""):
        print(printable(line))
    return False

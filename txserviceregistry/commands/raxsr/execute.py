"""``raxsr configuration exec``, ``lock`` and ``template``, which run other programs."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import LockHeld
from ...util.fields import boundedNumber, parseCount, parseDuration
from ..console import CommandFailed, UsageError, printable, typeOf
from .command import Run, argument, command, oneOf
from .configuration import allValues, namespace, prefixOf

if TYPE_CHECKING:
    from .templates import Target, Template

_NOT_EXECUTABLE = 126
# As flock and other programs have it: a failure that is temporary (EX_TEMPFAIL).
_HELD = 75
# The share of the timeout in which a command must end when its lock was lost.
_GRACE = 0.05

#: The beginnings of the names of variables that decide which programs run, which code a program loads, or where our
#: programs send an API key. They have this effect before the first line of a program that knows nothing of it.
PREFIXES = (
    *("LD_", "DYLD_", "_RLD", "LDR_", "PYTHON", "PERL", "RUBY", "LUA_", "GUILE_", "JULIA_", "CORECLR_", "COR_", "GIT_"),
    *("NPM_CONFIG_", "PIP_", "RAXSR_"),
)
_NAMES = """
    PATH HOME SHELL CDPATH XDG_CONFIG_HOME XDG_CONFIG_DIRS XDG_DATA_HOME XDG_DATA_DIRS ENV BASH_ENV BASHOPTS
    SHELLOPTS IFS PS4 PROMPT_COMMAND GLOBIGNORE FPATH ZDOTDIR NULLCMD READNULLCMD EDITOR VISUAL PAGER MANPAGER
    BROWSER LESSOPEN LESSCLOSE SSH_ASKPASS SUDO_ASKPASS RSYNC_RSH CVS_RSH TAR_OPTIONS MAKEFLAGS MAKEFILES CC CXX
    RUSTC_WRAPPER GOFLAGS ZIPOPT VIMINIT EXINIT RIPGREP_CONFIG_PATH KUBECONFIG AWS_CONFIG_FILE
    AWS_SHARED_CREDENTIALS_FILE GCONV_PATH GETCONF_DIR GLIBC_TUNABLES LOCPATH NLSPATH LIBPATH SHLIB_PATH RES_OPTIONS
    HOSTALIASES LOCALDOMAIN OPENSSL_CONF OPENSSL_ENGINES OPENSSL_MODULES KRB5_CONFIG TERMCAP TERMINFO TERMINFO_DIRS
    GTK_MODULES GTK_PATH GIO_EXTRA_MODULES GIO_MODULE_DIR QT_PLUGIN_PATH QT_QPA_PLATFORM_PLUGIN_PATH
    GDK_PIXBUF_MODULE_FILE GST_PLUGIN_PATH LIBMYSQL_PLUGINS LIBMYSQL_PLUGIN_DIR ODBCINI ODBCSYSINI SASL_PATH
    GSS_MECH_CONFIG HDF5_PLUGIN_PATH GDAL_DRIVER_PATH CUDA_INJECTION64_PATH NVTX_INJECTION64_PATH CLASSPATH
    JAVA_HOME JAVA_TOOL_OPTIONS JDK_JAVA_OPTIONS _JAVA_OPTIONS IBM_JAVA_OPTIONS OPENJ9_JAVA_OPTIONS BUN_OPTIONS
    BUNDLE_PATH ELIXIR_ERL_OPTIONS R_LIBS_USER R_LIBS_SITE R_PROFILE_USER R_ENVIRON_USER TCL_LIBRARY
    COVERAGE_PROCESS_START NODE_OPTIONS NODE_PATH NODE_REPL_EXTERNAL_MODULE BUNDLE_GEMFILE GEM_HOME GEM_PATH PHPRC
    PHP_INI_SCAN_DIR DOTNET_STARTUP_HOOKS DOTNET_ADDITIONAL_DEPS DOTNET_SHARED_STORE DOTNET_ROOT MONO_PATH ERL_LIBS
    ERL_FLAGS ERL_AFLAGS ERL_ZFLAGS R_LIBS R_PROFILE R_ENVIRON R_HOME TCLLIBPATH
    """
#: The other names.
NAMES = frozenset(_NAMES.split())


def _program(run: Run) -> str:
    """The path of the program after ``--``, in the user's PATH, which the values of exec may change."""
    if not run.parsed.command:
        raise UsageError("give the command to run, and its arguments, after --")

    # This imports Twisted, which help does not need.
    from ..wrapper.process import findProgram

    return os.path.abspath(findProgram(run.parsed.command[0]))


# -- configuration exec


def environmentOf(namespace: str, values: Mapping[str, str], allowed: Collection[str] = ()) -> dict[str, str]:
    """The environment variables for the values of a namespace; those of *allowed* may decide which code runs."""
    prefix = prefixOf(namespace)
    environment: dict[str, str] = {}
    keys: dict[str, str] = {}
    for key, value in values.items():
        # The namespace's own name may be a key too, which is not below it.
        if not key.startswith(prefix):
            continue
        name = re.sub(r"[^A-Z0-9]", "_", key[len(prefix) :].upper())
        name = f"_{name}" if name[0].isdigit() else name
        if name in keys:
            raise CommandFailed(f"{keys[name]} and {key} would both be the environment variable {name}")
        if "\0" in value:
            raise CommandFailed(f"the value of {key} has a NUL character, which an environment variable can't have")
        if decidesWhatRuns(name) and name not in allowed:
            raise CommandFailed(
                f"{key} would be the environment variable {name}, which decides which code runs or where API keys "
                f"are sent. Nothing was run. --allow {name} permits it"
            )
        keys[name], environment[name] = key, value
    return environment


def decidesWhatRuns(name: str) -> bool:
    """Whether an environment variable of this *name* can make a program run other code, or ours give away a key."""
    return name in NAMES or name.startswith(PREFIXES)


@command(
    "configuration exec",
    "--namespace /production/cassandra -- /opt/cassandra/bin/cassandra -f",
    namespace(required=True),
    argument(
        "--allow",
        action="append",
        default=[],
        metavar="VARIABLE",
        help="set this environment variable although it decides which code runs; may be given several times",
    ),
    argument("--require", action="store_true", help="run nothing if there are no values below the namespace"),
    takesCommand=True,
)
def execute(run: Run) -> None:
    """
    Run a command with the values of a namespace as environment variables.

    The value of /production/cassandra/listen_ip is LISTEN_IP for --namespace /production/cassandra, and
    CASSANDRA_LISTEN_IP for --namespace /production. The command takes the place of raxsr: its exit code is its own.
    It is looked up in raxsr's own PATH. Variables that decide which programs or code run (PATH, LD_PRELOAD, BASH_ENV,
    PYTHONPATH, NODE_OPTIONS and others), or where API keys are sent (RAXSR_AUTH_URL), are refused unless they are named
    with --allow.
    """
    parsed, program = run.parsed, _program(run)
    environment = environmentOf(parsed.namespace, run.ask(lambda: allValues(run)), parsed.allow)
    if not environment:
        nothing = f"there are no configuration values below {parsed.namespace}"
        if parsed.require:
            raise CommandFailed(f"{nothing}. Nothing was run (--require)")
        run.note(f"{nothing}: the command runs without them")
    sys.stdout.flush()
    sys.stderr.flush()
    # Python ignores these two, and the program would inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execve(program, parsed.command, {**os.environ, **environment})
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CommandFailed(f"{parsed.command[0]} can't be run: {reason}", _NOT_EXECUTABLE) from None


# -- lock


@command(
    "lock",
    "/billing/report --nonblock -- /opt/billing/report --daily",
    oneOf(
        argument("-n", "--nonblock", action="store_true", help="do not wait for the lock"),
        argument("-w", "--wait", type=typeOf(parseDuration), metavar="SECONDS", help="wait for it no longer than this"),
    ),
    argument(
        "--timeout",
        type=typeOf(partial(parseCount, least=3, most=120)),
        default=15,
        metavar="SECONDS",
        help="3 to 120 (default: 15): another can hold the lock so many seconds after raxsr was killed",
    ),
    idOf="lock's name",
    takesCommand=True,
)
def lock(run: Run) -> int:
    """
    Run a command while holding a lock, which at most one process at a time holds.

    The command has raxsr's streams, and the fence of the lock in SERVICE_REGISTRY_FENCE. The exit code is the command's
    own, 128 + N after signal N, and 75 if another holds the lock with --nonblock or until --wait is over. When the lock
    is lost, the command gets SIGTERM, and SIGKILL before another process can hold the lock; the exit code is 1 then.
    """
    _program(run)
    try:
        return run.ask(partial(_runHolding, run))
    except LockHeld as error:
        holder = f" by {error.holder}" if error.holder else ""
        raise CommandFailed(f'the lock "{run.parsed.id}" is held{holder}. The command was not run', _HELD) from None


async def _runHolding(run: Run) -> int:
    from twisted.internet.defer import CancelledError

    from ...coordination import Lock
    from ...util.deferred import waitFor
    from ..wrapper.process import exitCode, startChild

    parsed, losses = run.parsed, []
    lock = Lock(run.client, parsed.id, parsed.timeout)
    with run.loggedNotes():
        held = await lock.acquire(0 if parsed.nonblock else parsed.wait)
    async with held:
        environment = {**os.environb, b"SERVICE_REGISTRY_FENCE": str(held.fence).encode()}
        child = startChild(parsed.command, environment, frozenset())
        child.reapInThread()

        def lost(reason: str) -> None:
            losses.append(reason)
            run.note(f'the lock "{parsed.id}" was lost: {reason}. The command is ended', always=True)
            child.signal(signal.SIGTERM)
            run.client.clock.callLater(parsed.timeout * _GRACE, child.signal, signal.SIGKILL)

        held.lost.addCallback(lost)
        while True:
            try:
                status = await waitFor(child.ended)
                return 1 if losses else exitCode(status)
            except CancelledError:
                # A signal has reached raxsr. The lock is held until the command has ended.
                child.signal(signal.SIGTERM)


# -- template


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
    from .templates import TemplateFailed, TemplateKeeper, Views

    parsed, client = run.parsed, run.client
    views = Views(client, parsed.panic_threshold, parsed.allow_empty)
    keeper = TemplateKeeper(client.clock, views, _templates(parsed), *parsed.wait)
    with run.loggedNotes():
        try:
            if parsed.once or parsed.dry_run:
                # The views would retry what is wrong with the settings.
                await client.account.getLimits()
            await (keeper.once() if parsed.once or parsed.dry_run else keeper.run())
        except TemplateFailed as error:
            raise CommandFailed(str(error)) from None


def _templates(parsed: Any) -> list[Template]:
    from .templates import Target, Template

    checks = parsed.check or [None]
    if len(checks) not in (1, len(parsed.templates)):
        raise UsageError("give one --check, or one for each template")
    templates, taken = [], {os.path.realpath(os.path.expanduser(text).partition(":")[0]) for text in parsed.templates}
    for number, text in enumerate(parsed.templates):
        source, _, rest = os.path.expanduser(text).partition(":")
        destination, _, reload = os.path.expanduser(rest).partition(":")
        if not source or not destination:
            raise UsageError(f"{text!r} is not SOURCE:DESTINATION or SOURCE:DESTINATION:RELOAD COMMAND")
        if not os.path.isfile(source):
            raise UsageError(f"there is no template {source}")
        target = Target(destination, checks[number % len(checks)], reload or None)
        if target.path in taken:
            raise UsageError(f"{destination} is a template, or the destination of two. Choose another file")
        taken.add(target.path)
        templates.append(Template(source, partial(_preview, target) if parsed.dry_run else target.put))
    return templates


async def _preview(target: Target, text: str) -> bool:
    """Show what would be put into a file."""
    old = target.content()
    before = os.devnull if old is None else target.path
    for line in difflib.unified_diff((old or "").splitlines(), text.splitlines(), before, target.path, lineterm=""):
        print(printable(line))
    return False

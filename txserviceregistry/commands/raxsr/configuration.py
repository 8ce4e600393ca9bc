"""``raxsr configuration``: values, and files of them. Values are texts: ``1.10`` and ``no`` stay what they are."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from ...errors import ServiceRegistryError
from ...util.fields import KEY, KEY_RULE, escaped
from ..console import CommandFailed, typeOf, useUTF8
from .command import Argument, Page, Run, argument, command, either, oneOf
from .output import Column, columns

COLUMNS = columns("id value", id="ID")

_KEY = {"idOf": "value's key", "kind": "configuration value"}
# The protocol's own rules.
_LONGEST_VALUE = 1024
_SURROGATE = re.compile("[\ud800-\udfff]")
FORMATS = ("yaml", "json")

# The name that stands for stdin and stdout.
_STANDARD = "-"
# UTF-8, with the byte order mark that some editors put first, or without.
_ENCODING = "utf-8-sig"
# Characters that YAML may take for the end of a line. It keeps them only as escapes, in double quotes.
_LINE_ENDS = re.compile("[\r\x85\u2028\u2029]")
_YAML_TEXT = "tag:yaml.org,2002:str"
_YAML_OBJECT = "tag:yaml.org,2002:map"


def namespace(shown: str = "only values below this namespace, such as /production/cassandra", **more: Any) -> Argument:
    def parse(text: str) -> str:
        if not text:
            # A script whose variable is not set must not get all namespaces.
            raise ValueError("the namespace is empty; give its name, such as /production/cassandra")
        return f"/{text.strip('/')}"

    return argument("--namespace", metavar="NAMESPACE", type=typeOf(parse), help=shown, **more)


def prefixOf(namespace: str) -> str:
    """The beginning of the keys below a namespace."""
    return f"/{namespace.strip('/')}/" if namespace.strip("/") else "/"


def problemOf(key: str, value: object, namespace: str | None = None) -> str | None:
    """Why these are not a configuration value and its key below a *namespace*; ``None`` if they are."""
    if not KEY.fullmatch(key):
        return f"not a configuration key: {KEY_RULE}"
    if namespace is not None and not key.startswith(prefixOf(namespace)):
        return f"not below {namespace}"
    if not isinstance(value, str):
        return "the value is not a string"
    if not 1 <= len(value) <= _LONGEST_VALUE:
        return f"the value has {len(value)} characters; 1 to {_LONGEST_VALUE} are allowed"
    if _SURROGATE.search(value):
        return "the value has half of a surrogate pair, which is not a character"
    return None


def _pages(run: Run) -> Page:
    configuration, below = run.client.configuration, run.parsed.namespace
    return configuration.list if below is None else partial(configuration.listForNamespace, below)


async def allValues(run: Run) -> dict[str, str]:
    """All values of ``--namespace``, by their keys."""
    return {value["id"]: value["value"] async for value in run.allPages("configuration values", _pages(run))}


@command("configuration list", "--namespace /production/cassandra", namespace(), columns=COLUMNS, paged="values")
async def listValues(run: Run) -> Any:
    """Show configuration values."""
    return await run.onePageOrAll(_pages(run))


@command(
    "configuration get",
    "/production/cassandra/listen_ip -f value",
    columns={**COLUMNS, "etag": Column("ETag", isExtra=True)},
    alone="value",
    **_KEY,
)
async def get(run: Run) -> Any:
    """
    Show one configuration value.

    "-c etag" shows its tag, for --if-match.
    """
    configuration = run.client.configuration
    return await (configuration.getWithEtag if "etag" in run.output.columns else configuration.get)(run.parsed.id)


def _ifMatch(what: str) -> Argument:
    def tag(text: str) -> str:
        # Its quotes may be left out: a shell takes them away.
        return text if text == "*" or '"' in text else f'"{text}"'

    shown = f"{what} only if the value still has this tag, as 'get -c etag' shows it"
    return argument("--if-match", dest="ifMatch", metavar="TAG", type=tag, help=shown)


@command(
    "configuration set",
    "/production/cassandra/listen_ip 127.0.0.1",
    either("value", "VALUE", "the value"),
    _ifMatch("set it"),
    idOf="value's key",
)
async def setValue(run: Run) -> str:
    """
    Set a configuration value, whether it exists or not.

    With --if-match, a value that another client has changed meanwhile stays as it is, and the exit code is 1.
    """
    key, value = run.parsed.id, run.parsed.value
    problem = problemOf(key, value)
    if problem is not None:
        raise CommandFailed(f"{key!r}: {problem}")
    await run.client.configuration.set(key, value, ifMatch=run.parsed.ifMatch)
    return f'Value for key "{key}" set to "{value}"'


@command("configuration remove", "/production/cassandra/listen_ip", _ifMatch("remove it"), **_KEY)
async def remove(run: Run) -> str:
    """Remove a configuration value."""
    await run.client.configuration.remove(run.parsed.id, ifMatch=run.parsed.ifMatch)
    return f'Configuration value "{run.parsed.id}" has been removed'


# -- files


_ARGUMENTS = (
    argument("file", metavar="FILE", help="a file of YAML or JSON; - for stdin or stdout"),
    argument(
        "--format", choices=FORMATS, help="the file's format (default: json if its name ends in .json, else yaml)"
    ),
    argument("--dry-run", dest="dryRun", action="store_true", help="only show what would change"),
)


@command(
    "configuration import",
    "production.yaml --namespace /production --dry-run",
    *_ARGUMENTS,
    oneOf(
        namespace("set keys without a leading slash below this namespace, such as /production/cassandra"),
        argument("--root", action="store_true", help="set keys without a slash at the top, in no namespace"),
    ),
)
def importValues(run: Run) -> None:
    """
    Set all the configuration values of a file.

    The file is an object of keys and values. With --namespace, keys that do not begin with a slash are put below it;
    without it they are refused, unless --root allows to set them at the top.
    Everything is checked before anything is set; values that the file does not have do not change.
    """
    parsed = run.parsed
    path, format = parsed.file, _format(parsed)
    new = parseValues(readText(path), format, path, parsed.namespace, root=parsed.root)
    run.checkOutput(always=parsed.dryRun)

    async def perform() -> dict[str, str]:
        old = await allValues(run)
        changes = [] if parsed.dryRun else [key for key in new if old.get(key) != new[key]]
        for done, key in enumerate(changes):
            run.progress(f"{done} of {len(changes)} values set …")
            try:
                await run.client.configuration.set(key, new[key])
            except ServiceRegistryError as error:
                raise CommandFailed(f"{error}. {done} of {len(changes)} values were set before") from None
        return old

    # Other values stay.
    old = {key: value for key, value in run.ask(perform).items() if key in new}
    _report(run, old, new)


@command("configuration export", "production.yaml --namespace /production", *_ARGUMENTS, namespace())
def exportValues(run: Run) -> None:
    """
    Write configuration values to a file, which "raxsr configuration import" can read.

    Keys are written in full, also with --namespace.
    """
    path, format, dryRun = run.parsed.file, _format(run.parsed), run.parsed.dryRun
    run.checkOutput(always=dryRun or path == _STANDARD)
    new = run.ask(lambda: allValues(run))
    if dryRun:
        exists = path != _STANDARD and os.path.lexists(path)
        old = parseValues(readText(path), format, path, None) if exists else {}
        _report(run, old, new)
    elif path == _STANDARD:
        useUTF8()
        sys.stdout.write(formatValues(new, format))
    else:
        writeText(path, formatValues(new, format))
        run.say(f"Configuration values: {len(new)} written to {path}")


def _report(run: Run, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Tell how many values differ, and with ``--dry-run`` which."""
    dryRun, counts = run.parsed.dryRun, Counter[str]()
    for key in sorted({**old, **new}):
        before, after = (json.dumps(each[key], ensure_ascii=False) if key in each else None for each in (old, new))
        if before == after:
            counts["unchanged"] += 1
            continue
        sign, name = ("+", "added") if before is None else ("-", "removed") if after is None else ("~", "changed")
        counts[name] += 1
        if dryRun:
            print(escaped(f"{sign} {key}: {' -> '.join(filter(None, (before, after)))}"))
    removed = [f"{counts['removed']} removed"] if counts["removed"] else []
    told = [f"{counts['added']} added", f"{counts['changed']} changed", *removed, f"{counts['unchanged']} unchanged"]
    run.say(f"{'Without --dry-run' if dryRun else 'Configuration values'}: {', '.join(told)}")


def _format(parsed: Any) -> str:
    return parsed.format or ("json" if parsed.file.lower().endswith(".json") else "yaml")


def readText(path: str) -> str:
    name = "the standard input" if path == _STANDARD else path
    try:
        if path == _STANDARD:
            return sys.stdin.buffer.read().decode(_ENCODING)
        with open(path, encoding=_ENCODING) as file:
            return file.read()
    except OSError as error:
        reason = "it is closed" if error.errno == errno.EBADF else error.strerror
        raise CommandFailed(f"can't read {name}: {reason}") from None
    except UnicodeDecodeError:
        raise CommandFailed(f"can't read {name}: it is not UTF-8 text") from None


def writeText(path: str, text: str) -> None:
    """Write a file. A new one has mode 0600; one that exists keeps its mode, and after an error its content."""
    # This brings Twisted, which help does not need.
    from ...util.files import replaceFile

    try:
        found = os.stat(path) if os.path.exists(path) else None
        if found is None or stat.S_ISREG(found.st_mode):
            replaceFile(os.path.realpath(path), text, isDurable=True, like=found)
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise CommandFailed(f"can't write {path}: {error.strerror}") from None


def formatValues(values: Mapping[str, str], format: str) -> str:
    """A file's text, with escapes for all that a terminal would obey."""
    isPlain = all(escaped(value, keep="\n\t") == value for value in values.values())
    if format == "json":
        return json.dumps(values, ensure_ascii=not isPlain, indent=2) + "\n"
    # The import is slow.
    import yaml

    def scalar(text: str) -> yaml.ScalarNode:
        return yaml.ScalarNode(_YAML_TEXT, text, style='"' if _LINE_ENDS.search(text) else None)

    pairs = [(scalar(key), scalar(value)) for key, value in values.items()]
    node = yaml.MappingNode(_YAML_OBJECT, pairs, flow_style=False)
    return str(yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=isPlain, width=10_000))


def parseValues(text: str, format: str, path: str, namespace: str | None, *, root: bool = True) -> dict[str, str]:
    """The values of a file by their keys. Those without a leading slash are put below *namespace*, or at the *root*."""
    members = _parseJSON(text, path) if format == "json" else _parseYAML(text, path)
    values: dict[str, str] = {}
    problems = []
    for where, key, value in members:
        qualified = key if namespace is None or key.startswith("/") else f"{prefixOf(namespace)}{key}"
        problem = problemOf(qualified, value, namespace)
        if problem is None and not root and not qualified.startswith("/"):
            problem = "not in a namespace: give --namespace, or --root to set it at the top"
        if problem is None and qualified in values:
            problem = "duplicate key"
        if problem is None:
            values[qualified] = value
        else:
            problems.append(f"{where}: {key!r}: {problem}")
    if problems:
        more = f" (and {len(problems) - 1} more like this)" if len(problems) > 1 else ""
        raise CommandFailed(f"{problems[0]}{more}. Nothing was changed")
    return values


def _parseJSON(text: str, path: str) -> Iterable[tuple[str, str, Any]]:
    try:
        # A tuple has all members of an object, also those that are there twice.
        value = json.loads(text, object_pairs_hook=tuple, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise CommandFailed(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, tuple):
        raise CommandFailed(f"{path} is not a JSON object of keys and values")
    yield from ((path, key, member) for key, member in value)


def _parseYAML(text: str, path: str) -> Iterable[tuple[str, str, Any]]:
    # The import is slow.
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            line = error.problem_mark.line + 1
            raise CommandFailed(f"{path}, line {line}: {error.problem or error.context}") from None
        raise CommandFailed(f"{path} is not valid YAML: {error}") from None
    if node is not None and not isinstance(node, yaml.MappingNode):
        raise CommandFailed(f"{path} is not a YAML mapping of keys and values")
    for key, value in [] if node is None else node.value:
        texts = [each.value if isinstance(each, yaml.ScalarNode) else None for each in (key, value)]
        yield f"{path}, line {key.start_mark.line + 1}", texts[0] or "", texts[1]

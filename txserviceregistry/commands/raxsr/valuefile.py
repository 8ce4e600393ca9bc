"""
Files of configuration values: an object in YAML or JSON, of keys and their values.

Values are strings, as the registry has them. A number, or whatever YAML makes of a word without quotes, is the text
that stands there: ``1.10`` stays ``1.10``, and ``no`` stays ``no``.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from ...util.fields import KEY, KEY_RULE
from ...util.redaction import escaped
from ..outcome import CommandFailed, UsageError

FORMATS = ("yaml", "json")

#: The name that stands for stdin and stdout.
STANDARD = "-"

_EXTENSIONS = {".yaml": "yaml", ".yml": "yaml", ".json": "json"}

# The protocol's own rules.
_LONGEST_VALUE = 1024

# UTF-8, with the byte order mark that some editors put first, or without.
_ENCODING = "utf-8-sig"

# Characters that YAML may take for the end of a line. It keeps them only as escapes, in double quotes.
_LINE_ENDS = re.compile("[\r\x85\u2028\u2029]")
_YAML_TEXT = "tag:yaml.org,2002:str"
_YAML_OBJECT = "tag:yaml.org,2002:map"

_SURROGATE = re.compile("[\ud800-\udfff]")


class _Object(list[tuple[str, Any]]):
    """A JSON object with all the members that it has, also those that are there twice."""


def formatOf(path: str, given: str | None) -> str:
    """
    The format that is *given*, or that the name of the file has.

    :raises UsageError: if it has none.
    """
    if given is not None:
        return given
    found = "yaml" if path == STANDARD else _EXTENSIONS.get(PurePath(path).suffix.lower())
    if found is None:
        raise UsageError(f"unknown format of {path}: give --format yaml or --format json")
    return found


def readText(path: str) -> str:
    """:raises CommandFailed: if the file can't be read."""
    name = "the standard input" if path == STANDARD else path
    try:
        if path == STANDARD:
            return sys.stdin.buffer.read().decode(_ENCODING)
        with open(path, encoding=_ENCODING) as file:
            return file.read()
    except OSError as error:
        reason = "it is closed" if error.errno == errno.EBADF else error.strerror
        raise CommandFailed(f"can't read {name}: {reason}") from None
    except UnicodeDecodeError:
        raise CommandFailed(f"can't read {name}: it is not UTF-8 text") from None


def writeText(path: str, text: str) -> None:
    """
    Write a file. A new one has mode 0600; one that exists keeps its mode, and its content if the new one can't be
    written, as on a full disk. A device stays what it is, and so does a file in a folder that this user can't write to.

    :raises CommandFailed: if the file can't be written.
    """
    # Not above: it brings Twisted, which help does not need.
    from ...util.files import replaceFile

    try:
        found = os.stat(path) if os.path.exists(path) else None
        if found is None or (stat.S_ISREG(found.st_mode) and os.access(path, os.W_OK)):
            try:
                replaceFile(os.path.realpath(path), text, isDurable=True, like=found)
                return
            except PermissionError:
                if found is None:
                    raise
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CommandFailed(f"can't write {path}: {error.strerror}") from None


def formatValues(values: dict[str, str], format: str) -> str:
    """A file's text. It is exact, and a terminal obeys nothing in it."""
    isPlain = all(escaped(value, keep="\n\t") == value for value in values.values())
    if format == "json":
        return json.dumps(values, ensure_ascii=not isPlain, indent=2) + "\n"
    # The import is slow.
    import yaml

    def scalar(text: str) -> yaml.ScalarNode:
        return yaml.ScalarNode(_YAML_TEXT, text, style='"' if _LINE_ENDS.search(text) else None)

    node = yaml.MappingNode(
        _YAML_OBJECT, [(scalar(key), scalar(value)) for key, value in values.items()], flow_style=False
    )
    return str(yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=isPlain, width=10_000))


def parseValues(text: str, format: str, path: str, namespace: str | None, *, root: bool = True) -> dict[str, str]:
    """
    The values of a file by their keys.

    :param path: its name, for errors.
    :param namespace: gets the keys without a leading slash; all others have to be below it.
    :param root: whether keys without a leading slash are allowed without a *namespace*.
    :raises CommandFailed: if a key or value is invalid; it has the first problem, and the number of others.
    """
    members = _parseJSON(text, path) if format == "json" else _parseYAML(text, path)
    values: dict[str, str] = {}
    problems = []
    for where, key, value in members:
        qualified = _qualified(key, namespace)
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


def _qualified(key: str, namespace: str | None) -> str:
    return key if namespace is None or key.startswith("/") else f"/{namespace.strip('/')}/{key}"


def problemOf(key: str, value: object, namespace: str | None = None) -> str | None:
    """Why these are not a configuration value and its key below a *namespace*; ``None`` if they are."""
    if not KEY.fullmatch(key):
        return f"not a configuration key: {KEY_RULE}"
    if namespace is not None and not key.startswith(f"/{namespace.strip('/')}/"):
        return f"not below {namespace}"
    if not isinstance(value, str):
        return "the value is not a string"
    if not 1 <= len(value) <= _LONGEST_VALUE:
        return f"the value has {len(value)} characters; 1 to {_LONGEST_VALUE} are allowed"
    if _SURROGATE.search(value):
        return "the value has half of a surrogate pair, which is not a character"
    return None


def _parseJSON(text: str, path: str) -> Iterable[tuple[str, str, Any]]:
    try:
        value = json.loads(text, object_pairs_hook=_Object, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        raise CommandFailed(f"{path}, line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise CommandFailed(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, _Object):
        raise CommandFailed(f"{path} is not a JSON object of keys and values")
    return [(path, key, member) for key, member in value]


def _parseYAML(text: str, path: str) -> Iterable[tuple[str, str, Any]]:
    # The import is slow.
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise CommandFailed(f"{path}, line {line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise CommandFailed(f"{path} is not valid YAML: {error}") from None
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode):
        raise CommandFailed(f"{path} is not a YAML mapping of keys and values")
    return [
        (
            f"{path}, line {key.start_mark.line + 1}",
            key.value if isinstance(key, yaml.ScalarNode) else "",
            value.value if isinstance(value, yaml.ScalarNode) else None,
        )
        for key, value in node.value
    ]

"""
Options in a table, for the command line and for a file (``--config``): INI, or TOML if its name ends in ``.toml``. A
file has options under the command's name or without a section.
"""

from __future__ import annotations

import configparser
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs
from twisted.python import usage

from .._version import __version__
from ..errors import InvalidSettings
from ..util.fields import HEARTBEAT_TIMEOUTS, ID_RULE, SERVICE_ID, escaped
from .console import didYouMean, dropOutput, holdDescriptors, show, undecodable, whyNotWritten


@attrs.frozen
class Option:
    """
    An option with a value.

    :ivar default: the text of the default, or ``None``.
    :ivar parse: makes the value of its text, or raises ``ValueError`` with a line that has the text and the problem.
    :ivar isRepeatable: whether it may be given several times; then its value is a list.
    """

    name: str
    short: str | None
    default: str | None
    help: str
    parse: Callable[[str], Any] = str
    isRepeatable: bool = False

    @property
    def defaultValue(self) -> Any:
        if self.default is None:
            return [] if self.isRepeatable else None
        return self.value([self.default], f"--{self.name}")

    def value(self, texts: Sequence[str], where: str) -> Any:
        """The value of the texts that are given, *where* in the words of an error."""
        if not texts or "" in texts:
            raise usage.UsageError(f"{where}: the value is empty")
        if len(texts) > 1 and not self.isRepeatable:
            raise usage.UsageError(f"{where}: only one value is allowed")
        try:
            values = [self.parse(text) for text in texts]
        except ValueError as error:
            raise usage.UsageError(f"{where}: {error}")
        return values if self.isRepeatable else values[0]


def oneOf(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return parse


def parseServiceId(text: str) -> str:
    if not SERVICE_ID.fullmatch(text):
        raise ValueError(f"invalid id {text!r}: use {ID_RULE}")
    return text


def parseHeartbeatTimeout(text: str) -> int:
    if not text.isdecimal() or int(text) not in HEARTBEAT_TIMEOUTS:
        raise ValueError(f"{text!r} is not a whole number of seconds from 3 to 120")
    return int(text)


class TableOptions(usage.Options):
    """
    Options in a table. After :meth:`postOptions` the values are here by the options' names.

    :ivar given: the names of those that were given.
    """

    table: Sequence[Option] = ()
    given: frozenset[str] = frozenset()
    file: str | None = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for option in cls.table:
            handler = _handler(option)
            setattr(cls, f"opt_{option.name.replace('-', '_')}", handler)
            if option.short is not None:
                setattr(cls, f"opt_{option.short}", handler)

    def __init__(self) -> None:
        usage.Options.__init__(self)
        # For --help. postOptions sets the values.
        self.defaults.update({option.name: option.default for option in self.table})
        self.onCommandLine: dict[str, list[str]] = {}

    def postOptions(self) -> None:
        inFile = self.readFile()
        self.given = frozenset({*self.onCommandLine, *inFile})
        for option in self.table:
            name = option.name
            if name in self.onCommandLine:
                self[name] = option.value(self.onCommandLine[name], f"--{name}")
            elif name in inFile:
                self[name] = option.value(inFile[name], f"{self.file}: {name}")
            else:
                self[name] = option.defaultValue

    def readFile(self) -> dict[str, list[str]]:
        """The texts of options that are in :attr:`file`."""
        return {}


def _handler(option: Option) -> Callable[[TableOptions, str], None]:
    def handler(self: TableOptions, text: str) -> None:
        values = self.onCommandLine.setdefault(option.name, [])
        if not option.isRepeatable:
            values.clear()
        values.append(text)

    handler.__doc__ = option.help
    return handler


class TwistdOptions(TableOptions):
    """
    The options of a twistd command, which may be in a file too. Errors are one line; twistd would print the whole help.
    """

    #: The command's name, for the line.
    command = ""

    def parseOptions(self, options: Any = None) -> None:
        """:raises SystemExit: if they are wrong."""
        holdDescriptors()
        words = sys.argv[1:] if options is None else options
        try:
            problem = undecodable(words)
            if problem is not None:
                raise usage.UsageError(problem)
            super().parseOptions(words)  # type: ignore[no-untyped-call] # Twisted has no types there
        except (usage.UsageError, InvalidSettings) as error:
            line = f"twistd {self.command}: {error} (see: twistd {self.command} --help)"
            raise SystemExit(escaped(line)) from None

    def opt_help(self) -> None:
        """Display this help and exit."""
        self._show(str(self))

    def opt_version(self) -> None:
        """Display the version and exit."""
        self._show(f"twistd {self.command} {__version__}")

    def _show(self, text: str) -> NoReturn:
        try:
            show(text)
        except OSError as error:
            if sys.stdout is not None:
                dropOutput()
            raise SystemExit(f"twistd {self.command}: can't write the output: {whyNotWritten(error)}") from None
        raise SystemExit(0)

    def parseArgs(self, *rest: str) -> None:
        if rest:
            raise usage.UsageError(f"unexpected argument {rest[0]!r}")

    def opt_config(self, path: str) -> None:
        """File with any of these options: INI, or TOML if it ends in .toml; the command line wins."""
        self.file = path

    opt_c = opt_config

    def readFile(self) -> dict[str, list[str]]:
        if self.file is None:
            return {}
        try:
            inFile = readConfigFile(self.file, self.command)
        except ValueError as error:
            raise usage.UsageError(str(error))
        names = [option.name for option in self.table]
        for name in inFile:
            if name not in names:
                raise usage.UsageError(f"{self.file}: unknown option {name!r}{didYouMean(name, names)}")
        return inFile


# -- files


def readConfigFile(path: str, section: str) -> dict[str, list[str]]:
    """
    The options in the only *section* of a file, each as a list of the texts that a command line would have. Several
    values are lines in an INI file, and an array in a TOML file. ``ValueError`` has the file's name.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"can't read {path}: it is not UTF-8 text") from None
    sections = _toml(path, text, section) if path.endswith(".toml") else _ini(path, text, section)
    for each in sections:
        if each != section:
            raise ValueError(f"{path}: unknown section [{each}]; options belong under [{section}]")
    return sections.get(section, {})


def _ini(path: str, text: str, section: str) -> dict[str, dict[str, list[str]]]:
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # the documented way to keep names as they are
    try:
        try:
            parser.read_string(text, path)
        except configparser.MissingSectionHeaderError:
            parser.read_string(f"[{section}]\n{text}", path)
    except configparser.Error as error:
        raise ValueError(f"{path} is not a valid INI file: {' '.join(error.message.split())}") from None
    return {
        each: {name: [line for line in value.split("\n") if line] for name, value in parser.items(each)}
        for each in parser.sections()
    }


def _toml(path: str, text: str, section: str) -> dict[str, dict[str, list[str]]]:
    """The options of each table. Those without one belong to *section*."""
    try:
        content: Mapping[str, Any] = _tomlReader().loads(text)
    except ImportError:
        raise ValueError(f"can't read {path}: before Python 3.11 TOML needs tomli (pip install tomli); INI does not")
    # Both modules raise a subclass of it.
    except ValueError as error:
        raise ValueError(f"{path} is not a valid TOML file: {' '.join(str(error).split())}") from None
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    options = {name: value for name, value in content.items() if name not in tables}
    for name, value in tables.get(section, {}).items():
        if name in options:
            raise ValueError(f"{path}: {name} is given twice")
        options[name] = value
    texts = {name: _texts(path, name, value) for name, value in options.items()}
    return {**{each: {} for each in tables}, section: texts}


def _tomlReader() -> Any:
    try:
        return importlib.import_module("tomllib")
    except ImportError:
        return importlib.import_module("tomli")


def _texts(path: str, name: str, value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, (str, int, float)) for each in values):
        raise ValueError(f"{path}: {name}: must be a string, a number, or an array of them")
    # A boolean is an int in Python, and "true" in the file.
    return [str(each).lower() if isinstance(each, bool) else str(each) for each in values]

"""
Files of options, for those who would rather not have a long command line: INI, or TOML if the name ends in ``.toml``.

What is in a file is the options by their names, without the dashes before them, under ``[service-registry]`` or with no
section at all. It holds no secrets, and anybody may read it.
"""

from __future__ import annotations

import configparser
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def readConfigFile(path: str, section: str) -> dict[str, list[str]]:
    """
    The options in a file, by name as they are written there: each as the texts that would stand on the command line.

    In an INI file an option that may be given several times has one value a line; in a TOML file it is an array.

    :param section: what the only section of the file, or the only table, is called.
    :raises ValueError: if the file can't be read, or is not of its form; the text, one line, names the file.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} can't be read: it is no UTF-8 text") from None
    return _toml(path, text, section) if path.endswith(".toml") else _ini(path, text, section)


def _ini(path: str, text: str, section: str) -> dict[str, list[str]]:
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # the documented way to keep names as they are
    try:
        try:
            parser.read_string(text, path)
        except configparser.MissingSectionHeaderError:
            parser.read_string(f"[{section}]\n{text}", path)
    except configparser.Error as error:
        raise ValueError(f"{path} is no INI file: {' '.join(error.message.split())}") from None
    _checkSections(path, parser.sections(), section)
    if not parser.has_section(section):
        return {}
    return {name: [line for line in value.split("\n") if line] for name, value in parser.items(section)}


def _toml(path: str, text: str, section: str) -> dict[str, list[str]]:
    loads = _tomlReader()
    if loads is None:
        raise ValueError(f"{path} can't be read: before Python 3.11 TOML needs tomli (pip install tomli); INI does not")
    try:
        content: Mapping[str, Any] = loads(text)
    # The reader's own error is a ValueError, in both of the modules that it may come from.
    except ValueError as error:
        raise ValueError(f"{path} is no TOML file: {' '.join(str(error).split())}") from None
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    _checkSections(path, tables, section)
    options = {name: value for name, value in content.items() if name not in tables}
    for name, value in tables.get(section, {}).items():
        if name in options:
            raise ValueError(f"{path}: {name} is there twice")
        options[name] = value
    return {name: _texts(path, name, value) for name, value in options.items()}


def _tomlReader() -> Any:
    for module in ("tomllib", "tomli"):
        try:
            return importlib.import_module(module).loads
        except ImportError:
            continue
    return None


def _texts(path: str, name: str, value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, (str, int, float)) for each in values):
        raise ValueError(f"{path}: {name}: is neither a text, nor a number, nor an array of them")
    # A truth value is an int to Python, and "true" to whoever wrote it.
    return [str(each).lower() if isinstance(each, bool) else str(each) for each in values]


def _checkSections(path: str, sections: Iterable[str], section: str) -> None:
    for each in sections:
        if each != section:
            raise ValueError(f"{path}: there is no section [{each}]; options stand under [{section}]")

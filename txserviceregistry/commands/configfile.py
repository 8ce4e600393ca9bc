"""
Files of options: INI, or TOML if the name ends in ``.toml``. A file has options by their names, without dashes, under
``[service-registry]`` or without a section. It has no secrets, and every user may read it.
"""

from __future__ import annotations

import configparser
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def readConfigFile(path: str, section: str) -> dict[str, list[str]]:
    """
    The options in a file by their names, each as a list of the texts that a command line would have.

    An option that may be given several times has one value a line in an INI file, and is an array in a TOML file.

    :param section: the name of the only section, or table, of the file.
    :raises ValueError: if the file can't be read or parsed; the text, one line, names the file.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"can't read {path}: it is not UTF-8 text") from None
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
        raise ValueError(f"{path} is not a valid INI file: {' '.join(error.message.split())}") from None
    _checkSections(path, parser.sections(), section)
    if not parser.has_section(section):
        return {}
    return {name: [line for line in value.split("\n") if line] for name, value in parser.items(section)}


def _toml(path: str, text: str, section: str) -> dict[str, list[str]]:
    loads = _tomlReader()
    if loads is None:
        raise ValueError(f"can't read {path}: before Python 3.11 TOML needs tomli (pip install tomli); INI does not")
    try:
        content: Mapping[str, Any] = loads(text)
    # Both modules raise a subclass of it.
    except ValueError as error:
        raise ValueError(f"{path} is not a valid TOML file: {' '.join(str(error).split())}") from None
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    _checkSections(path, tables, section)
    options = {name: value for name, value in content.items() if name not in tables}
    for name, value in tables.get(section, {}).items():
        if name in options:
            raise ValueError(f"{path}: {name} is given twice")
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
        raise ValueError(f"{path}: {name}: must be a string, a number, or an array of them")
    # A boolean is an int in Python, and "true" in the file.
    return [str(each).lower() if isinstance(each, bool) else str(each) for each in values]


def _checkSections(path: str, sections: Iterable[str], section: str) -> None:
    for each in sections:
        if each != section:
            raise ValueError(f"{path}: unknown section [{each}]; options belong under [{section}]")

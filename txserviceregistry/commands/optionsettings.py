"""Settings whose first source is a program's options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidSettings
from ..settings import Settings, readSettings

# The settings that a program has options for.
_OPTIONS = {
    "username": "--username",
    "apiKey": "--api-key",
    "baseUrl": "--api-url",
    "authUrl": "--auth-url",
    "region": "--region",
}


def settingsOf(given: Mapping[str, Any]) -> Settings:
    """
    :param given: the values of options, by the names that the settings have for them.
    :raises InvalidSettings: if a setting is wrong, or there are no credentials. Its text names the options.
    """
    arguments: dict[str, Any] = {name: given.get(name) for name in _OPTIONS}
    try:
        return readSettings(**arguments)
    except InvalidSettings as error:
        raise InvalidSettings(inOptions(str(error))) from None


def inOptions(text: str) -> str:
    """*text* of the settings, with the names of options in it."""
    for name, option in _OPTIONS.items():
        text = text.replace(f"the argument {name}", option)
    return text

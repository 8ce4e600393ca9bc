"""
Settings whose first source is a program's options.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import InvalidSettings
from ..settings import Settings, readSettings

# The options, by the names that the settings have for them.
_OPTIONS = {
    "username": "--username",
    "apiKey": "--api-key",
    "baseUrl": "--api-url",
    "authUrl": "--auth-url",
    "region": "--region",
}


def settingsOf(given: Mapping[str, str | None]) -> Settings:
    """
    :param given: the values of options, by the names that the settings have for them.
    :raises InvalidSettings: if a setting can't be used, or there are no credentials. Its text names the options.
    """
    try:
        return readSettings(
            username=given.get("username"),
            apiKey=given.get("apiKey"),
            baseUrl=given.get("baseUrl"),
            authUrl=given.get("authUrl"),
            region=given.get("region"),
        )
    except InvalidSettings as error:
        text = inOptions(str(error)).replace("Give username and apiKey", "Give --username and --api-key")
        raise InvalidSettings(text) from None


def inOptions(text: str) -> str:
    """*text* of the settings, with the names of options in it."""
    for name, option in _OPTIONS.items():
        text = text.replace(f"the argument {name}", option)
    return text

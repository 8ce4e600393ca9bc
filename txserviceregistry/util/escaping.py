"""Text from outside (what a registry or a client sends, names, values, error messages) for a terminal or a log."""

from __future__ import annotations


def escaped(text: str, keep: str = "") -> str:
    """
    *text* without characters that a terminal obeys or does not show: control characters (C0, DEL, C1), those that
    change the direction of text, and other invisible ones become escapes such as ``\\x1b`` and ``\\u202e``. Line ends
    are among them, so that a text can't add lines.

    :param keep: characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )

"""What ``twistd service-registry-agent`` prints to be pasted into a shell."""

from __future__ import annotations


def printedScripts(output: str) -> tuple[str, str]:
    """
    :param output: all that the agent has printed.
    :return: the script that uses curl, and the one that uses Python.
    """
    _, _, scripts = output.partition("into another shell:\n")
    curl, _, python = scripts.partition("\nor this, for the same in Python:\n")
    return curl, python.partition("\nEND\n")[0] + "\nEND\n"

"""
Runs the steps of the Dockerfile without Docker: ``python release/dockerfile.py``.

Each instruction is read from the Dockerfile and runs in a temporary folder that stands for the image: ``/src``,
``/opt`` and ``/data`` are folders below it, and its user is added to its own ``/etc``. Then the entry point runs with
the image's environment, as the current user. The health check must succeed, and SIGTERM must end the registry in order.
Needs root and Debian's ``useradd``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_STARTS = 30


def instructions() -> Iterator[tuple[str, str]]:
    """The instructions and their arguments, each on one line."""
    text = re.sub(r"^#.*\n", "", (_ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            instruction, argument = line.split(None, 1)
            yield instruction, argument


class Image:
    """The folder that stands for an image, and what its instructions have set."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(top)}
        self.commands: dict[str, list[str]] = {}

    def below(self, text: str) -> str:
        """The text with this image's folders for those that it names."""
        return re.sub(r"(?<![\w.])/(src|opt|data)\b", lambda match: f"{self.top}{match[0]}", text)

    def apply(self, instruction: str, argument: str) -> None:
        """Do what an instruction says."""
        if instruction == "RUN":
            argument = argument.replace("useradd ", f"useradd --prefix {self.top} ")
            # This machine does not have the image's user.
            argument = argument.replace("-o service-registry -g service-registry ", "")
            subprocess.run(["sh", "-ec", self.below(argument)], env=self.environment, check=True)
        elif instruction == "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", self.below(argument)):
                self.environment[name] = value.replace("$PATH", self.environment["PATH"])
        elif instruction == "COPY" and argument == ". /src":
            # The committed files: Docker leaves out what .dockerignore names.
            subprocess.run(["git", "clone", "-q", str(_ROOT), str(self.top / "src")], check=True)
        elif instruction in ("ENTRYPOINT", "CMD"):
            self.commands[instruction] = json.loads(argument)
        elif instruction == "HEALTHCHECK":
            self.commands[instruction] = json.loads(argument.partition(" CMD ")[2])
        elif instruction not in ("FROM", "USER", "VOLUME", "EXPOSE", "COPY"):
            raise SystemExit(f"Dockerfile: {instruction} is not known here")


def main() -> None:
    top = Path(tempfile.mkdtemp())
    try:
        (top / "etc").mkdir()
        for name in ("passwd", "group", "shadow"):
            (top / "etc" / name).touch()
        image = Image(top)
        for instruction, argument in instructions():
            print(f"{instruction} {argument}", flush=True)
            image.apply(instruction, argument)
        run(image)
    finally:
        shutil.rmtree(top)


def run(image: Image) -> None:
    """Run the entry point until its health check succeeds; then end it."""
    command = image.commands["ENTRYPOINT"] + image.commands["CMD"]
    process = subprocess.Popen(command, env=image.environment, cwd=image.top / "data")
    try:
        end = time.monotonic() + _STARTS
        while subprocess.run(
            image.commands["HEALTHCHECK"], env=image.environment, stderr=subprocess.DEVNULL, check=False
        ).returncode:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("the health check never succeeds")
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(30)
    if status not in (0, -signal.SIGTERM):
        raise SystemExit(f"the entry point ended with {status}")
    print("the health check succeeds, and SIGTERM ends the registry")


if __name__ == "__main__":
    main()

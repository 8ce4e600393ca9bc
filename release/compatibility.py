"""
Runs ``clientsuite.py`` between two releases, both ways: ``python release/compatibility.py [REVISION]``.

Wheels of the revision (by default the first with this protocol) and of what is committed are built and installed into
environments of their own. The client of each meets the registry of the other.
"""

from __future__ import annotations

import argparse
import configparser
import os
import signal
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_FIRST = "24d2831"
#: Variables that the operating system needs to start a program: no others may change what is tested.
_ENVIRONMENT = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}


def installed(revision: str, directory: Path) -> Path:
    """The folder of the programs of a revision, which is built and installed below *directory*."""
    source, wheels, home = directory / "source", directory / "wheels", directory / "venv"
    subprocess.run(["git", "clone", "-q", "--no-checkout", str(_ROOT), str(source)], check=True)
    subprocess.run(["git", "-C", str(source), "checkout", "-q", revision], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(source)], check=True
    )
    venv.create(home, with_pip=True, upgrade_deps=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([str(home / "bin" / "pip"), "install", "-q", str(wheel)], check=True)
    return home / "bin"


@contextmanager
def registry(programs: Path, directory: Path) -> Iterator[Mapping[str, str]]:
    """A registry that runs; gives the settings of a client of it."""
    command = [
        *(str(programs / "twistd"), "-n", "--pidfile=", "service-registry"),
        *("--listen", "tcp:0:interface=127.0.0.1", "--data-dir", str(directory / "data")),
    ]
    directory.mkdir()
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=_ENVIRONMENT, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        if not any("listens on" in line for line in process.stdout):
            raise SystemExit(f"the registry does not start: {(directory / 'log').read_text()}")
        settings = configparser.ConfigParser()
        settings.read(directory / "data" / "raxrc")
        yield {
            "RAXSR_API_URL": settings["api"]["url"],
            "RAXSR_USERNAME": settings["credentials"]["username"],
            "RAXSR_API_KEY": settings["credentials"]["api_key"],
        }
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def isPassed(client: Path, server: Path, directory: Path) -> bool:
    """Whether the suite passes with one release as the client, and one as the registry."""
    with registry(server, directory) as settings:
        suite = [str(client / "python"), "-m", "twisted.trial", "clientsuite"]
        environment = {**_ENVIRONMENT, **settings, "PYTHONPATH": str(Path(__file__).parent)}
        return subprocess.run(suite, cwd=directory, env=environment, check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", default=_FIRST, help="the other release (default: %(default)s)")
    revision = parser.parse_args().revision
    with tempfile.TemporaryDirectory() as top:
        old, new = (installed(each, Path(top, name)) for each, name in ((revision, "old"), ("HEAD", "new")))
        failed = False
        for client, server, title in (
            (old, new, f"the client of {revision}, this registry"),
            (new, old, f"this client, the registry of {revision}"),
        ):
            print(f"\n== {title}", flush=True)
            failed |= not isPassed(client, server, Path(top, f"{client.parts[-3]}-client"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

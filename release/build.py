"""
Builds the packages so that the same commit gives the same bytes: ``python release/build.py OUTDIR [--check]``.

OUTDIR gets the sdist, the wheel, and ``sbom.cdx.json``, the software bill of materials (CycloneDX) of the wheel and of
what pip installs with it. ``--check`` builds sdist and wheel once more, in another folder, at another time and with
other file permissions, and compares. Files that are not committed are not in them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def run(*command: str, **options: object) -> str:
    """The output of a command, which must not fail."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout  # type: ignore[call-overload, no-any-return]  # the options of subprocess.run


def commitTime() -> int:
    """When the commit was made, in seconds since the epoch: the time that all files in the packages have."""
    return int(run("git", "-C", str(_ROOT), "log", "-1", "--format=%ct"))


def build(directory: Path, mask: int) -> dict[str, bytes]:
    """
    Build sdist and wheel in a folder.

    :param mask: the permissions that new files don't have.
    :return: the contents of the packages, by name.
    """
    tree, out = directory / "tree", directory / "dist"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(commitTime())}
    before = os.umask(mask)
    try:
        run("git", "clone", "-q", "--no-local", str(_ROOT), str(tree))
        run(sys.executable, "-m", "build", "-q", "--sdist", "--outdir", str(out), str(tree), env=environment)
        (sdist,) = out.iterdir()
        sdist.write_bytes(normalized(sdist))
        run("tar", "-xf", str(sdist), "-C", str(directory))
        source = directory / sdist.name.removesuffix(".tar.gz")
        # The wheel's files have the permissions that they have here, or that setuptools gives them.
        os.umask(0o022)
        for path in source.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        run(sys.executable, "-m", "build", "-q", "--wheel", "--outdir", str(out), str(source), env=environment)
    finally:
        os.umask(before)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def normalized(sdist: Path) -> bytes:
    """An sdist whose files are in order and have no owner, one time and plain permissions."""
    plain = io.BytesIO()
    with tarfile.open(sdist) as old, tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime = commitTime()
            member.mode = 0o755 if member.isdir() else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return gzip.compress(plain.getvalue(), mtime=commitTime())


def billOfMaterials(wheel: Path, out: Path) -> None:
    """Write what the wheel brings with it into a file."""
    with tempfile.TemporaryDirectory() as home:
        venv.create(home, with_pip=True)
        python = str(Path(home, "bin", "python"))
        run(python, "-m", "pip", "install", "-q", str(wheel))
        run(python, "-m", "pip", "uninstall", "-q", "-y", "pip", "setuptools")
        options = ("--output-reproducible", "--mc-type", "application", "-o", str(out))
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(commitTime())}
        run(sys.executable, "-m", "cyclonedx_py", "environment", python, *options, env=environment)


def main() -> int:
    """:return: the exit code: 1 if two builds differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir", type=Path)
    parser.add_argument("--check", action="store_true", help="build twice and compare")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        packages = build(Path(first), 0o022)
        if options.check and build(Path(second), 0o077) != packages:
            print("Two builds of this commit differ", file=sys.stderr)
            return 1
    options.outdir.mkdir(parents=True, exist_ok=True)
    for name, content in packages.items():
        (options.outdir / name).write_bytes(content)
        print(f"{hashlib.sha256(content).hexdigest()}  {name}")
    (wheel,) = (options.outdir / name for name in packages if name.endswith(".whl"))
    billOfMaterials(wheel, options.outdir / "sbom.cdx.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())

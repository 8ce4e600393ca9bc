"""
Needs of some tests beside the extra ``test``: system programs, the extra ``browser``, and in a few cases root. Without
them these tests are skipped, all with the same sentence, so that trial prints it once.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Mapping
from pathlib import Path

from twisted.trial.unittest import SkipTest

#: Debian's packages; ``.ci/run`` installs them.
PACKAGES = (
    "bind9-dnsutils chromium-headless-shell curl dnsmasq-base etcd-server faketime haproxy knot-dnsutils libatomic1"
    " nginx-light node-eventsource nodejs openssl prometheus"
)
#: The programs in them that tests start.
PROGRAMS = frozenset(
    {
        "curl",
        "dig",
        "dnsmasq",
        "etcd",
        "faketime",
        "haproxy",
        "kdig",
        "nginx",
        "node",
        "openssl",
        "prometheus",
        "promtool",
    }
)
SENTENCE = f"needs: apt-get install {PACKAGES}, pip install '.[browser]', and root"


def needs(*programs: str) -> None:
    """Skip the test that calls this unless all these *programs* are installed."""
    if not all(map(shutil.which, programs)):
        raise SkipTest(SENTENCE)


def nodeModule(name: str) -> Mapping[str, str]:
    """The environment in which node finds a module of Debian's; the test is skipped without it."""
    needs("node")
    modules = Path("/usr/share/nodejs")
    if not (modules / name).is_dir():
        raise SkipTest(SENTENCE)
    return {"NODE_PATH": str(modules)}


def fakeTime(offsets: Path) -> Mapping[str, str]:
    """
    The environment of a process whose wall clock is moved by what the file *offsets* says, ``+0`` to begin with. The
    test is skipped without libfaketime.
    """
    libraries = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    if not libraries:
        raise SkipTest(SENTENCE)
    offsets.write_text("+0\n")
    return {
        "LD_PRELOAD": libraries[0],
        "FAKETIME_TIMESTAMP_FILE": str(offsets),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # With it libfaketime lets a thread's timed wait for Python's lock last half a second and more.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }

"""
Tests of the package's modules, each by itself: in this process, without etcd, mostly on a clock of the test's own.

Tests that make up their input make a few examples, the same each time. ``HYPOTHESIS_EXAMPLES=100`` makes as many, as CI
does, and ``HYPOTHESIS_RANDOM=1`` makes others each time. With ``REFUSE_PROCESSES=1``, as in a part of CI that runs
these tests only, one that starts a process fails.
"""

from __future__ import annotations

import gc
import os
import sys

from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

from tests import ROOT

settings.register_profile(
    "txserviceregistry",
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", 10)),
    derandomize="HYPOTHESIS_RANDOM" not in os.environ,
    print_blob=True,
    # A machine that is busy fails no test.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
settings.load_profile("txserviceregistry")
# Its knowledge of the package and of Unicode is kept for all processes, and for the next run.
set_hypothesis_home_dir(ROOT / ".hypothesis")
# Python's thresholds would make collections a sixth of the time of these tests.
gc.set_threshold(20_000, 10, 10)


def refuseProcess(event: str, arguments: tuple[object, ...]) -> None:
    """Let nothing start a process, except trial its workers: a hook for events of Python."""
    events = ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen")
    if event in events and "workertrial" not in str(arguments):
        # Without its environment, which may have secrets.
        raise AssertionError(f"a unit test has started a process: {event}{arguments[:2]}")


if "REFUSE_PROCESSES" in os.environ:
    sys.addaudithook(refuseProcess)

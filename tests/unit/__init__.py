"""
What the modules of the package do, each by itself: in this process, without etcd, mostly on a clock of the test's own.

Tests that make up their input make a few examples, the same each time. ``HYPOTHESIS_EXAMPLES=100`` makes as many, as CI
does, and ``HYPOTHESIS_RANDOM=1`` makes others each time.
"""

from __future__ import annotations

import gc
import os

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
# What it finds out about the package and about Unicode is kept for all processes, and for the next run.
set_hypothesis_home_dir(ROOT / ".hypothesis")
# Python's thresholds would make collections a sixth of the time of these tests.
gc.set_threshold(20_000, 10, 10)

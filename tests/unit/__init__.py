"""
What the modules of the package do, each by itself: in this process, without etcd, mostly on a clock of the test's own.

Tests that make up their input make a few examples, the same each time. ``HYPOTHESIS_EXAMPLES=300`` makes as many, as CI
does, and ``HYPOTHESIS_RANDOM=1`` makes others each time.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "txserviceregistry",
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", 15)),
    derandomize="HYPOTHESIS_RANDOM" not in os.environ,
    print_blob=True,
    # A machine that is busy fails no test.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
settings.load_profile("txserviceregistry")

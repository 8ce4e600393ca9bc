"""
A group that shares as many items as an application may have, in simulated time.
"""

from __future__ import annotations

from tests.unit.coordination import test_partitioner


class ThousandItemsTests(test_partitioner.ManyItemsTests):
    """1,024 items."""

    count = 1024

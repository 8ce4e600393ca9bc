"""Row 16: random programs over two nodes at once."""

from __future__ import annotations

import time

from twisted.trial.unittest import SynchronousTestCase

from tests.system.faults.faultcase import Figures
from tests.system.fuzz.etcd import TwoNodes
from tests.system.fuzz.programs import machine, run


class ProgramTests(Figures, SynchronousTestCase):
    """Two nodes over one etcd, asked at random, answer as the one model of the API does."""

    row = 16
    fault = "Random programs over two nodes, compared with a model of the API"

    def test_twoNodes(self) -> None:
        """There is no difference."""
        programs = machine(TwoNodes)
        began = time.monotonic()
        if self.isFull:
            run(programs, 1000, int(time.time()))
        else:
            run(programs, 4, None, steps=30)
        self.tell("programs", programs.programs)
        self.tell("requests", sum(programs.counts.values()))
        self.tell("differences from the model", 0)
        self.tell("seconds", round(time.monotonic() - began))

    def test_theFirstOfTwoExpirations(self) -> None:
        """Two expire at the same moment: a subscriber may receive one event, and the other with the next request."""
        program = machine(TwoNodes)()
        program.begin(limits=(200, 1000), gets=500_000)
        program.createMany(count=2, tenant="1", timeout=3)
        program.passUntilADeadline(early=0.125, pick=0, tenant="1", then="get")
        program.follow(pick=0, tenant="1", then="nothing", only={"type": "service.timeout"}, wait=1)
        program.teardown()

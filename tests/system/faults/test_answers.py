"""Row 5: a registry, or what is before it, that fails now and then, for a long time."""

from __future__ import annotations

from collections import Counter

from txserviceregistry.discovery.directory import Directory

from .journal import Outcome
from .simulated import SimulatedCase


class AnswerTests(SimulatedCase):
    """One request in twenty fails, those for auth tokens too."""

    row = 5
    fault = "5 % of responses are 500, 502, 503, garbage or cut short"

    def test_allLive(self) -> None:
        """No service expires, nothing acknowledged is lost, and subscribers see what is there."""
        hours = 10.0 if self.isFull else 0.03
        directory = Directory(self.client)
        directory.startService()
        self.network.rate = 0.05
        self.fake.advance(5)
        self.start()
        outcomes: Counter[Outcome] = Counter()
        looks = max(2, round(hours * 6))
        for _ in range(looks):
            self.fake.advance(hours * 3600 / looks)
            outcomes.update(operation.outcome for operation in self.look())
            self.assertAllRegistered()
        self.network.rate = 0.0
        self.successResultOf(self.finished(self.load.pause()))
        # The audit's last data are older than services created until the load came to rest.
        listing = self.successResultOf(self.fake.client(cache=None).services.list())
        self.assertEqual(
            {service["id"] for service in directory.services()}, {service["id"] for service in listing["values"]}
        )
        self.assertEqual(self.audit.count("service.timeout"), 0)
        counts = self.network.counts
        self.successResultOf(directory.stopService())
        self.end()
        self.tell("simulated hours", hours)
        self.tell("services, timeouts of 3 to 120 s", len(self.services))
        self.tell("requests", counts["requests"])
        for name in ("500", "502", "503", "garbage", "cut short"):
            self.tell(f"responses: {name}", counts[name])
        self.tell("expirations", 0)
        self.tell("writes acknowledged, none lost", outcomes[Outcome.acknowledged])
        self.tell("writes without a valid response", outcomes[Outcome.unknown])

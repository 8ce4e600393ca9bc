"""
The common parts of the rows in which clients attack a registry.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

from tests.system.processes import Child
from txserviceregistry import Client

from .audit import Audit
from .faultcase import ROOT, FaultCase

__all__ = ["AttackCase", "told"]


class AttackCase(FaultCase):
    """A row in which clients attack a registry (:mod:`tests.system.faults.attackers`)."""

    def attack(self, kind: str, count: int, *arguments: str, token: str = "", port: int = 0) -> Child:
        """
        Start attackers.

        :param port: of the registry that they attack; if not given, of the one that was started.
        """
        where = f"--port={port or self.port}"
        return self.spawn(
            *("python", "-m", "tests.system.faults.attackers", kind, where, f"--count={count}", *arguments),
            environment={"PYTHONPATH": str(ROOT), "ATTACKERS_TOKEN": token},
        )

    async def areAtWork(self, attackers: list[Child]) -> bool:
        """Whether each process of them has connected."""
        return all(told(each)["open"] or told(each)["cut"] for each in attackers)

    def tellLatencies(self, what: str, latencies: list[float]) -> None:
        median = statistics.median(latencies)
        self.tell(f"{what}: GET, median and worst, ms", f"{median:.1f}, {max(latencies):.0f}")

    async def stillThere(self, client: Client, application: Any) -> None:
        """No service of the application has timed out, and none of its registrations was ever lost."""
        audit = Audit(client)
        self.assertKept(await audit.look())
        self.assertEqual(audit.count("service.timeout"), 0)
        self.assertEqual(audit.services.keys(), application.states.keys())
        self.assertEqual({states[-1][1] for states in application.states.values()}, {"registered"})


def told(attackers: Child) -> dict[str, Any]:
    """The last report of attackers."""
    lines = attackers.output[: attackers.output.rfind("\n") + 1].splitlines()
    return json.loads(lines[-1]) if lines else {"open": 0, "cut": 0, "codes": {}}

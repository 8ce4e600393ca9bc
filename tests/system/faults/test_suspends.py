"""Row 22: a machine that is suspended, on simulated clocks."""

from __future__ import annotations

from txserviceregistry.clock import SuspendWatch

from .simulated import SimulatedCase


class SuspendTests(SimulatedCase):
    """The machine of an application with many services is suspended again and again."""

    row = 22
    fault = "An application's machine is suspended, for less and more than its heartbeat timeouts (simulated)"
    # A client that creates something while the machine sleeps does not learn the outcome.
    CREATORS = 0

    def test_isHeardOfAtOnce(self) -> None:
        """
        After each sleep all services are registered within seconds. Those expire whose timeout has passed meanwhile,
        and no others.
        """
        sleeps = 200 if self.isFull else 10
        slowest = 0.0
        self.start()
        for _ in range(sleeps):
            self.fake.advance(self.random.uniform(1, 100))
            length = self.random.choice((2, 5, 10, 20, 60, 600))
            expiries = {service.serviceId: service.heartbeatTimeout for service in self.services}
            self.look()
            self.fake.suspend(length)
            slept = self.fake.clock.seconds()
            # A tick, and the round trips of a heartbeat, a registration and another heartbeat.
            self.fake.advance(SuspendWatch.TICK + 0.5)
            slowest = max(slowest, self.fake.clock.seconds() - slept)
            self.assertAllRegistered()
            # The last heartbeat was sent an interval before at most: 0.6 or 0.8 of the timeout.
            may = {id for id, timeout in expiries.items() if length + 0.8 * timeout + 2 > timeout}
            self.look(mayTimeOut=may)
            self.assertEqual({service.state for service in self.services}, {"registered"})
        self.tell("suspends", sleeps)
        self.tell("longest recovery, s", round(slowest, 1))
        self.tell("expirations despite a timely heartbeat", 0)
        self.end()

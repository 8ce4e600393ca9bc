"""Row 4: a network that loses every second answer, after the registry has done what it was asked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection

from twisted.internet.task import deferLater

from tests.system.processes import reactor

from .faultcase import FaultCase
from .journal import Application, Outcome

SERVICES = 5


class LostAnswerTests(FaultCase):
    """The application asks by way of a proxy that loses answers; the audit asks the registry itself."""

    row = 4
    fault = "Every second response is lost after the request was carried out, with or without a reset"

    async def test_allStayRegistered(self) -> None:
        """No service expires or is registered twice. All that was acknowledged has happened, and nothing else."""
        await self.registry()
        self.proxy_ = self.proxy()
        self.audit_ = self.audit()
        self.outcomes: Counter[Outcome] = Counter()
        await self.runApplication("reset", isSilent=False)
        if self.isFull:
            await self.runApplication("hang", isSilent=True)
        self.assertKept(await self.audit_.whole())
        counts = self.proxy_.counts
        self.tell("responses lost", f"{counts['lost']} of {counts['answers']}")
        self.tell("writes acknowledged", self.outcomes[Outcome.acknowledged])
        self.tell("writes without a response", self.outcomes[Outcome.unknown])
        self.tell("acknowledged writes lost", 0)
        self.tell("expirations", 0)

    async def runApplication(self, name: str, *, isSilent: bool) -> None:
        """One application, from its registrations to its end."""
        audit = self.audit_
        # From the very beginning, so that registrations have to do with it too.
        self.proxy_.lose(every=2, hang=isSilent)
        application = await self.application(
            f"--prefix={name}",
            f"--services={SERVICES}",
            f"--timeout={self.heartbeatTimeout}",
            "--writers=2",
            "--creators=2",
            "--request-timeout=1",
            # One for each that may wait in vain, so that writers get on as well.
            "--connections=12",
            by=self.proxy_,
        )
        began = time.monotonic()
        await self.registered(application, SERVICES)
        took = time.monotonic() - began
        # An answer that is missed only after a second leaves little of a life of three: what was created then, and
        # never acknowledged, may have expired. A service whose client knows that a response was lost may not.
        late = {id for id, error in application.troubles if error == "RequestTimedOut"}
        await self.check(application, mayTimeOut=application.states if isSilent else late)
        unheard = sum(audit.count("service.timeout", id) for id in application.states)
        application.tell("resume")
        for _ in range(4 if self.isFull else 1):
            await deferLater(reactor, 20 if self.isFull else 1, lambda: None)
            await self.check(application)
            application.tell("resume")
        for id, states in application.states.items():
            self.assertEqual([state for _, state in states][:2], ["registering", "registered"])
            self.assertEqual(audit.services[id]["tags"], ["faults"])
        await self.stopped(application)
        self.assertKept(await audit.look(application.take(), ended=application.states))
        self.assertEqual(application.lost, set())
        # A service that a client can recognize as its own does not block its registration.
        self.assertNotIn("ServiceExists", [error for _, error in application.troubles])
        how = "without a reset" if isSilent else "with a reset"
        self.tell(f"{how}: time until {SERVICES} services were registered, s", round(took, 1))
        self.tell(f"{how}: expired registrations without a response", unheard)

    async def check(self, application: Application, mayTimeOut: Collection[str] = ()) -> None:
        """All is kept so far; the application pauses."""
        application.tell("pause")
        await application.says("paused")
        operations = application.take()
        self.outcomes.update(each.outcome for each in operations)
        self.assertKept(await self.audit_.look(operations, mayTimeOut=mayTimeOut))

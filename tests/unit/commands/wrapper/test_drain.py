"""Graceful shutdown by the wrapper: what happens between SIGTERM and the end of the command."""

from __future__ import annotations

import signal
from typing import Any

from twisted.internet.defer import Deferred

from txserviceregistry.commands.wrapper.registration import REASON
from txserviceregistry.heartbeats.services import ServicesClient
from txserviceregistry.registry.http import messages

from .test_main import DIED_OF_TERM, WrapperCase


class DrainTests(WrapperCase):
    """``--drain SECONDS``, over a registry in memory."""

    def state(self) -> tuple[str, str]:
        """The state of the service, and its reason."""
        found = self.successResultOf(self.other.services.getState("web1"))
        return found["state"], found["reason"]

    def terminate(self) -> None:
        """Send SIGTERM to the wrapper, as a service manager does."""
        self.wrapped.signalled(signal.SIGTERM, False)
        self.fake.flush()

    def begin(self, *arguments: str) -> Any:
        code = self.wrapper("--drain=5", *arguments)
        self.terminate()
        return code

    def test_drainsThenPassesTheSignalOn(self) -> None:
        """The service is drained and stays registered, with heartbeats, until the command has had its time."""
        code = self.begin()
        self.assertEqual((self.state(), self.running().signals), (("drain", REASON), []))
        self.fake.advance(4.75)
        self.assertEqual((self.running().signals, self.listed()), ([], ["web1"]))
        self.fake.advance(0.25)
        self.assertEqual(self.running().signals, [signal.SIGTERM])
        self.assertEqual(self.ended(code, DIED_OF_TERM), 143)
        # The heartbeat timeout is 10 seconds: the service has expired, and the state has ended.
        self.fake.advance(10)
        self.assertEqual((self.state(), self.said), (("up", ""), []))

    def test_deregistersBeforeTheSignal(self) -> None:
        """With --deregister the service is gone when the command gets the signal."""
        code = self.begin("--deregister")
        self.fake.advance(4.75)
        self.assertEqual(self.listed(), ["web1"])
        self.fake.advance(0.25)
        self.assertEqual((self.listed(), self.running().signals), ([], [signal.SIGTERM]))
        self.ended(code, DIED_OF_TERM)

    def test_theNextStartClearsTheState(self) -> None:
        """A wrapper that registers the service clears a state that a wrapper has set, and no other."""
        self.ended(self.begin("--deregister"), DIED_OF_TERM)
        code = self.wrapper("--drain=5", "--deregister")
        self.fake.flush()
        self.assertEqual(self.state(), ("up", ""))
        self.ended(code, 0)
        self.successResultOf(self.other.services.setState("web1", "drain", "rack move"))
        code = self.wrapper("--drain=5")
        self.fake.flush()
        self.assertEqual(self.state(), ("drain", "rack move"))
        self.ended(code, 0)

    def test_drainsWhileAnEarlierStateIsLookedUp(self) -> None:
        """A drain that begins while a wrapper looks up what an earlier one has set is not cleared."""
        getState, held = ServicesClient.getState, list[Deferred[None]]()

        def late(services: ServicesClient, id: str) -> Deferred[Any]:
            response: Deferred[Any] = getState(services, id)
            if held:
                return response
            held.append(Deferred())
            return response.addCallback(lambda state: held[0].addCallback(lambda _: state))

        self.patch(ServicesClient, "getState", late)
        self.successResultOf(self.other.services.setState("web1", "drain", REASON))
        code = self.begin()
        held[0].callback(None)
        self.fake.flush()
        self.assertEqual((self.state(), self.running().signals), (("drain", REASON), []))
        self.fake.advance(5)
        self.ended(code, DIED_OF_TERM)

    def test_anOperatorsStateStays(self) -> None:
        """A state that an operator has set is neither replaced nor cleared, and the command still has its time."""
        for state, reason in (("out", ""), ("up", "watch this one")):
            self.successResultOf(self.other.services.setState("web1", state, reason))
            code = self.begin("--deregister")
            self.assertEqual((self.state(), self.running().signals), ((state, reason), []))
            self.fake.advance(5)
            self.assertEqual((self.state(), self.running().signals), ((state, reason), [signal.SIGTERM]))
            self.ended(code, DIED_OF_TERM)

    def test_aSecondSignalCutsItShort(self) -> None:
        """The second SIGTERM, and any other signal, reaches the command at once."""
        code = self.begin()
        self.wrapped.signalled(signal.SIGHUP, False)
        self.assertEqual(self.running().signals, [signal.SIGHUP])
        self.terminate()
        self.assertEqual(set(self.running().signals[1:]), {signal.SIGTERM})
        self.ended(code, DIED_OF_TERM)
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])

    def test_theCommandEndsByItself(self) -> None:
        """When the command ends earlier, the wrapper does, too."""
        self.assertEqual(self.ended(self.begin(), 0), 0)

    def test_withoutTheExtension(self) -> None:
        """If the registry has no states, the service is deregistered, and the command has its time."""
        self.patch(messages, "_LINES", messages._LINES.replace(b", service-state", b""))
        self.patch(messages, "_JSON_LINES", messages._JSON_LINES.replace(b", service-state", b""))
        code = self.begin()
        self.assertEqual((self.listed(), self.running().signals), ([], []))
        self.fake.advance(5)
        self.assertEqual(self.running().signals, [signal.SIGTERM])
        self.ended(code, DIED_OF_TERM)

    def test_unreachableRegistry(self) -> None:
        """While the registry is unreachable the command has its time, and the user is told."""
        code = self.wrapper("--drain=5")
        self.fake.stop()
        self.terminate()
        self.fake.advance(5)
        self.assertEqual(self.running().signals, [signal.SIGTERM])
        self.assertIn("can't be drained", self.said[-1])
        self.ended(code, DIED_OF_TERM)

    def test_notRegistered(self) -> None:
        """The command of a service that is not registered gets the signal at once."""
        self.fake.stop()
        code = self.wrapper("--drain=5")
        self.fake.advance(3)
        self.terminate()
        self.assertEqual(self.running().signals, [signal.SIGTERM])
        self.ended(code, DIED_OF_TERM)

"""Directory: the services as they are now."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from txserviceregistry.discovery import RegistryAgent, RegistryEndpoint
from txserviceregistry.discovery.directory import Directory

from .directorycase import DirectoryTestCase
from .standin import Limited


class DirectoryTests(DirectoryTestCase):
    """Services, changes and listeners."""

    def test_listingAndEvents(self) -> None:
        """Services are listed; those that join, are removed or expire are seen at once."""
        self.create("web1", tags=["www"], metadata={"port": "80"})
        directory = self.directory()
        self.successResultOf(directory.whenReady())
        self.assertEqual((self.ids(directory), directory.stale), (["web1"], 0.0))
        self.fake.advance(1)
        before = self.fake.clock.seconds()
        self.create("web2", 3, tags=["www"])
        self.fake.flush()
        self.assertEqual([service["id"] for service in directory.forTag("www")], ["web1", "web2"])
        self.remove("web1")
        self.fake.flush()
        self.assertEqual(self.fake.clock.seconds(), before)
        self.assertEqual((self.ids(directory), directory.get("web1")), (["web2"], None))
        self.fake.advance(5)
        self.assertEqual(directory.services(), [])
        self.assertEqual(directory.forTag("www"), ())
        self.assertEqual(self.changes, [("join", "web1"), ("join", "web2"), ("remove", "web1"), ("timeout", "web2")])

    def test_aTagIsAString(self) -> None:
        """Several tags, or something else, are a TypeError at once."""
        wrong: Any
        for wrong in (["www"], 5, b"www"):
            self.assertRaises(TypeError, Directory, self.client, wrong)

    def test_ofOneTag(self) -> None:
        """With a tag, others are not there, and one that gets the tag or loses it comes and goes."""
        self.create("web1", tags=["www"])
        self.create("dns1", tags=["dns"])
        directory = self.directory("www", refresh=10)
        self.create("web2", tags=["a", "www"])
        self.create("dns2", tags=["dns"])
        self.fake.flush()
        self.assertEqual(self.ids(directory), ["web1", "web2"])
        self.successResultOf(self.other.services.update("dns1", {"tags": ["www"]}))
        self.successResultOf(self.other.services.update("web1", {"tags": ["dns"]}))
        self.fake.advance(11)
        self.assertEqual(self.ids(directory), ["dns1", "web2"])

    def test_updatesAreSeenWithinTheRefresh(self) -> None:
        """An update has no event: it is seen after the refresh interval, and reported once."""
        self.create("web1", metadata={"status": "enabled"})
        directory = self.directory(refresh=60)
        version = directory.version
        self.successResultOf(self.other.services.update("web1", {"metadata": {"status": "disabled"}}))
        self.fake.advance(61)
        found = directory.get("web1")
        assert found is not None
        self.assertEqual(found["metadata"], {"status": "disabled"})
        self.assertEqual((self.changes[1:], directory.version), ([("update", "web1")], version + 1))
        # Nothing changes by being looked at.
        given = directory.forTag("any")
        token = self.create("web2", tags=["any"])
        self.fake.flush()
        given = directory.forTag("any")
        self.successResultOf(self.other.services.heartbeat("web2", token))
        self.fake.advance(50)
        self.assertIs(directory.forTag("any"), given)

    def test_states(self) -> None:
        """A service has its state while it is not up, whether that was set before or after the directory's start."""
        self.create("web1", metadata={"port": "80"})
        self.create("web2")
        self.successResultOf(self.other.services.setState("web1", "drain", "rack move"))
        directory = self.directory(refresh=60)
        self.assertEqual([service.get("state") for service in directory.services()], ["drain", None])
        found = directory.get("web1")
        assert found is not None
        self.assertEqual((found["state_reason"], found["metadata"]), ("rack move", {"port": "80"}))
        self.successResultOf(self.other.services.setState("web2", "out"))
        self.successResultOf(self.other.services.clearState("web1"))
        self.fake.advance(61)
        self.assertEqual([service.get("state") for service in directory.services()], [None, "out"])
        self.assertEqual(sorted(self.changes[2:]), [("update", "web1"), ("update", "web2")])

    def test_statesAreSeenAtOnce(self) -> None:
        """A change of a state has an event, and so has its end; updates leave it as it is."""
        self.create("web1", tags=["www"])
        directory = self.directory("www")
        self.successResultOf(self.other.services.setState("web1", "drain", "rack move", expiresIn=20))
        self.fake.flush()
        self.successResultOf(self.other.services.update("web1", {"metadata": {"port": "80"}}))
        self.fake.flush()
        (found,) = directory.services()
        self.assertEqual((found.get("state"), found.get("state_reason")), ("drain", "rack move"))
        self.assertEqual(found["metadata"], {"port": "80"})
        self.fake.advance(21)
        (found,) = directory.services()
        self.assertNotIn("state", found)
        self.assertEqual(self.changes[1:], [("update", "web1")] * 3)

    def test_statesInAFile(self) -> None:
        """A state is kept in the file, for a start while the registry is unreachable."""
        self.create("web1")
        self.successResultOf(self.other.services.setState("web1", "drain"))
        path = self.mktemp()
        self.end(self.directory(path=path))
        self.fake.stop()
        directory = self.directory(path=path)
        self.assertEqual([service.get("state") for service in directory.services()], ["drain"])

    def test_updatesAreSeenAmongEvents(self) -> None:
        """An update is seen in time also while many other things happen."""
        self.create("web1", metadata={"status": "enabled"})
        directory = self.directory(refresh=60)
        self.successResultOf(self.other.services.update("web1", {"metadata": {"status": "disabled"}}))
        for number in range(62):
            self.successResultOf(self.other.configuration.set("key", str(number)))
            self.fake.advance(1)
        found = directory.get("web1")
        assert found is not None
        self.assertEqual(found["metadata"], {"status": "disabled"})

    def test_stoppedByAListener(self) -> None:
        """A listener may stop the directory, and close the client, from within."""
        directory = self.directory()
        stopped: list[Any] = []

        def stop(kind: str, service: Any) -> None:
            stopped.append(directory.stopService())
            stopped.append(self.client.close())

        end = directory.onChange(stop)
        self.create("web1")
        self.fake.advance(20)
        for result in stopped:
            self.successResultOf(result)
        self.assertEqual(self.ids(directory), ["web1"])
        end()

    def test_changesDuringAListing(self) -> None:
        """Changes between two pages of a listing are neither missed nor undone."""
        for number in range(150):
            self.create(f"web{number:03}")
        directory = self.directory()
        self.successResultOf(directory.stopService())
        other = self.other

        class Meddling:
            """Changes things right after the first page of a listing."""

            def __init__(self, services: Any) -> None:
                self._services = services

            async def iterate(self, tag: str | None = None) -> Any:
                count = 0
                async for service in self._services.iterate(tag):
                    count += 1
                    if count == 100:
                        await other.services.remove("web000")
                        await other.services.remove("web149")
                        await other.services.create("web000", 60, {"tags": ["second"]})
                        await other.services.create("aaa", 60)
                    yield service

        client = self.fake.client()
        client.services = Meddling(client.services)  # type: ignore[assignment] # what it uses of it
        directory = self.directory(client=client)
        expected = [service["id"] for service in self.listed()]
        self.assertEqual(self.ids(directory), expected)
        self.assertIn("aaa", expected)
        self.assertNotIn("web149", expected)
        self.assertEqual([service["id"] for service in directory.forTag("second")], ["web000"])

    def listed(self) -> list[Any]:
        async def everything() -> list[Any]:
            return [service async for service in self.other.services.iterate()]

        result: list[Any] = self.successResultOf(Deferred.fromCoroutine(everything()))
        return result

    def test_aListenerThatRaisesDoesNoHarm(self) -> None:
        """The other listeners are called all the same, and the error is logged."""
        directory = self.directory()
        directory.onChange(lambda kind, service: 1 / 0)
        reported: list[str] = []
        end = directory.onChange(lambda kind, service: reported.append(service["id"]))
        self.create("web1")
        self.fake.flush()
        end()
        end()
        self.create("web2")
        self.fake.flush()
        self.assertEqual(reported, ["web1"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_invalidRefresh(self) -> None:
        """An interval that is not a finite number is a ValueError."""
        for refresh in (float("nan"), float("inf"), -1.0):
            self.assertRaises(ValueError, Directory, self.client, refresh=refresh)

    def test_invalidTimeouts(self) -> None:
        """Endpoints and agents refuse such a timeout too, and name the argument."""
        directory = Directory(self.client)
        for timeout in (float("nan"), float("inf"), -1.0, 0.0, 1e300):
            for make in (
                lambda timeout=timeout: RegistryEndpoint(self.fake.clock, directory, "www", timeout=timeout),
                lambda timeout=timeout: RegistryAgent(self.fake.clock, directory, timeout=timeout),
            ):
                self.assertIn("timeout: ", str(self.assertRaises(ValueError, make)))

    def test_registriesThatCannotWait(self) -> None:
        """Without the extension the feed is asked every few seconds."""
        client = self.fake.client()
        directory = self.directory(client=Limited(client, "poll"))
        self.create("web1")
        self.fake.advance(5.5)
        self.assertEqual(self.ids(directory), ["web1"])
        asked = len(self.fake.requests)
        self.fake.advance(50)
        self.assertLess(len(self.fake.requests) - asked, 16)

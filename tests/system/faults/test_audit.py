"""The audit finds what it is there to find."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.testing import FakeRegistry

from .audit import Audit, Findings
from .journal import Operation, Outcome

DONE, UNKNOWN, REFUSED = Outcome.acknowledged, Outcome.unknown, Outcome.refused


def asked(what: str, id: str, outcome: Outcome = DONE, value: str | None = None) -> Operation:
    return Operation(what, id, value, 0.0, 1.0, outcome)


class AuditTests(SynchronousTestCase):
    """The registry's data, beside the requests."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client(cache=None)
        self.addCleanup(self.client.close)
        self.audit = Audit(self.client)

    def did(self, work: Deferred[Any]) -> Any:
        self.fake.flush()
        return self.successResultOf(work)

    def found(self, *operations: Operation, **options: Any) -> Findings:
        findings: Findings = self.did(Deferred.fromCoroutine(self.audit.look(operations, **options)))
        return findings

    def test_nothingIsWrong(self) -> None:
        """Requested changes have happened; uncertain ones may have happened or not."""
        self.did(self.client.services.create("web1", 30))
        self.did(self.client.configuration.set("abc", "1"))
        self.did(self.client.configuration.set("abc", "2"))
        operations = [
            asked("create", "web1"),
            asked("create", "web2", UNKNOWN),
            asked("create", "web1", REFUSED),
            asked("set", "abc", DONE, "1"),
            asked("unset", "abc", UNKNOWN),
            asked("set", "abc", UNKNOWN, "2"),
            asked("set", "abc", UNKNOWN, "3"),
        ]
        self.assertEqual(self.found(*operations), Findings())
        self.did(self.client.configuration.remove("abc"))
        self.assertEqual(self.found(asked("unset", "abc", UNKNOWN), asked("unset", "abc", REFUSED)), Findings())
        self.assertEqual(self.did(Deferred.fromCoroutine(self.audit.whole())), Findings())

    def test_findsWhatIsLost(self) -> None:
        """An acknowledged operation without its event; and an event that none of the operations can have caused."""
        for lost in (asked("create", "web1"), asked("set", "abc", DONE, "1"), asked("remove", "web1")):
            self.assertEqual(len(self.found(lost).lost), 1)
        self.did(self.client.configuration.set("abc", "1"))
        self.assertEqual(len(self.found(asked("set", "abc", REFUSED, "1")).lost), 1)
        self.did(self.client.configuration.set("abc", "2"))
        self.assertEqual(len(self.found(asked("set", "abc", DONE, "2"), asked("set", "abc", DONE, "3")).lost), 1)

    def test_amongSeveralServers(self) -> None:
        """
        A creation may have been done, found out and undone with one server before another one did it; with a single
        one it may not, and in any case it has to be there at the end.
        """
        self.did(self.client.services.create("web1", 30))
        self.did(self.client.services.remove("web1"))
        several = Audit(self.client, isSeveral=True)
        creation = asked("create", "web1")
        self.assertEqual(len(self.did(Deferred.fromCoroutine(several.look([creation]))).lost), 1)
        self.did(self.client.services.create("web1", 30))
        several = Audit(self.client, isSeveral=True)
        self.assertEqual(self.did(Deferred.fromCoroutine(several.look([creation]))), Findings())
        self.assertEqual(len(self.found(creation).lost), 1)

    def happens(self, id: str, kinds: str) -> None:
        """Events of a service: it joins (J), is removed (X) or times out (T)."""
        for kind in kinds:
            if kind == "J":
                self.did(self.client.services.create(id, 3))
            elif kind == "X":
                self.did(self.client.services.remove(id))
            else:
                self.fake.advance(3)

    def foundBy(self, several: Audit, *operations: Operation) -> Findings:
        return self.did(Deferred.fromCoroutine(several.look(operations)))

    def test_aCreationThatIsLate(self) -> None:
        """
        Among several servers a creation that was repeated at another one may be done once more after the service was
        removed. Its client does not know that service, which stays for now, is removed by a late removal, or times out.
        With one server none of that is right.
        """
        for id, kinds in (("removed", "JXJX"), ("timed-out", "JXJT"), ("twice", "JXJTJT"), ("stays", "JXJ")):
            several = Audit(self.client, isSeveral=True)
            self.foundBy(several)
            self.found()
            self.happens(id, kinds)
            operations = asked("create", id), asked("remove", id)
            self.assertEqual(len(self.found(*operations).lost), 1, id)
            found = self.foundBy(several, *operations)
            self.assertEqual((len(found.lost), found.falseTimeouts), (id == "twice", []), id)

    def test_aCreationThatIsLateForTheNextLook(self) -> None:
        """The late creation, and the timeout of its service, may come after the look that heard of the operations."""
        several = Audit(self.client, isSeveral=True)
        self.happens("web1", "JX")
        self.assertEqual(self.foundBy(several, asked("create", "web1"), asked("remove", "web1", UNKNOWN)), Findings())
        self.happens("web1", "J")
        self.assertEqual(self.foundBy(several), Findings())
        self.happens("web1", "X")
        self.assertEqual(self.foundBy(several, asked("remove", "web1")), Findings())
        self.happens("web2", "JX")
        self.assertEqual(self.foundBy(several, asked("create", "web2"), asked("remove", "web2")), Findings())
        for kind in "JT":
            self.happens("web2", kind)
            self.assertEqual(self.foundBy(several), Findings())

    def test_aServiceThatIsKept(self) -> None:
        """Among several servers too, one that is not to be removed may not time out, whatever was before it."""
        several = Audit(self.client, isSeveral=True)
        self.happens("web1", "JXJT")
        found = self.foundBy(several, asked("create", "web1"))
        self.assertEqual((len(found.falseTimeouts), len(found.lost)), (1, 1))

    def test_aValueThatIsLate(self) -> None:
        """Among several servers an older value may come back once, or be removed once more; another value may not."""
        for number, values in enumerate(("121", "12-1", "12-2-", "1213", "12121", "124")):
            key = f"key{number}"
            several = Audit(self.client, isSeveral=True)
            self.foundBy(several)
            for value in values:
                change = (
                    self.client.configuration.remove(key) if value == "-" else self.client.configuration.set(key, value)
                )
                self.did(change)
            operations = [asked("set", key, DONE, "1"), asked("set", key, DONE, "2")]
            operations += [asked("unset", key)] if "-" in values else []
            found = self.foundBy(several, *operations)
            self.assertEqual(len(found.lost), values in ("1213", "12121", "124"), values)

    def test_findsFalseTimeouts(self) -> None:
        """A timeout is false, unless it is expected or no client knew of the service."""
        for id in ("web1", "web2", "web3"):
            self.did(self.client.services.create(id, 3))
        self.fake.advance(3)
        findings = self.found(asked("create", "web3", UNKNOWN), mayTimeOut=["web2"])
        self.assertEqual([text.split()[0] for text in findings.falseTimeouts], ["web1"])

    def test_findsOrphans(self) -> None:
        """A service that is listed and has no running application."""
        self.did(self.client.services.create("web1", 30))
        self.did(self.client.services.create("web2", 30))
        self.assertEqual(self.found(ended=["web2", "web3"]).orphans, ["web2"])

    def test_findsALostPast(self) -> None:
        """A registry that forgets what it has told is found out."""
        self.did(self.client.services.create("web1", 30))
        self.did(self.client.configuration.set("abc", "1"))
        self.assertEqual(self.found(), Findings())
        self.fake.restart(keepData=False)
        self.did(self.client.configuration.set("abc", "1"))
        findings = self.found()
        # The feed is another one, and neither is in the listing what it was.
        self.assertTrue(findings.disorder)
        self.assertTrue(self.did(Deferred.fromCoroutine(self.audit.whole())).disorder)

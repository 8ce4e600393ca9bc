"""Blanking: no secret is shown, and no other word is spoilt."""

from __future__ import annotations

import json
from urllib.parse import quote

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.util.redaction import encodings, redacted

LONG = "2d7ff6e8-c8e9-11f0-8de9-0242ac120002"


class BlankingTests(SynchronousTestCase):
    """Texts and the secrets in them."""

    def test_wordsStayWhole(self) -> None:
        """A short secret that is a piece of a longer word is not redacted there."""
        for text, secret in (
            ("400 badRequest: Bad request", "bad"),
            ("Validation error", "on"),
            ("Validation error", "Valid"),
            ("http://127.0.0.1:8880/v1.0", "v"),
            ("nothing", ""),
        ):
            self.assertEqual(redacted(text, [secret]), text)

    def test_secretsThatStandByThemselves(self) -> None:
        """In a sentence, in JSON, in a header or in a URL, whatever is beside it and however short it is."""
        for secret in ("bad", "x", "s3cret", "-a.b-", "ü", LONG):
            for before, after in (
                ("", ""),
                ("The token ", " is wrong"),
                ('"', '"'),
                ("'", "',"),
                ("X-Auth-Token: ", "\r\n"),
                ("http://joe:", "@host/"),
                ("/services/", "/heartbeat"),
                ("?token=", "&limit=1"),
                ("?q=a%3D", "%20b"),
                ('"line\\n', '\\n"'),
                ('"\\u0000', '\\u0000"'),
                (r"b'\x00", r"\x00'"),
                ("id_", "_id"),
            ):
                self.assertEqual(redacted(before + secret + after, [secret]), f"{before}…{after}")

    def test_aLongOneIsBlankedAnywhere(self) -> None:
        """What can't be a piece of a word is blanked also where something is stuck to it."""
        self.assertEqual(redacted(f"key{LONG}key", [LONG], "***"), "key***key")

    def test_oneWithinAnother(self) -> None:
        """When a secret is a piece of another one, nothing of the longer one stays."""
        self.assertEqual(redacted("a-b, a", ["a", "a-b"]), "…, …")

    def test_spellings(self) -> None:
        """A secret with characters that JSON or URLs escape is found there too."""
        secret = 'a"b/ü\\c'
        for text in (secret, json.dumps(secret), json.dumps(secret, ensure_ascii=False), quote(secret, safe="")):
            self.assertEqual(redacted(f"={text}=", encodings(secret)).strip('="'), "…")
        self.assertEqual(redacted("any text", encodings("")), "any text")
        self.assertNotIn("\udcff", redacted("\udcff", encodings("\udcff")))

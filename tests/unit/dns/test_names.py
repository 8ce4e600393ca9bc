"""
Labels of names, in :mod:`txserviceregistry.dns.zone`.
"""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.dns.zone import LONGEST_LABEL, encodeLabel, wireName


class EncodeLabelTests(SynchronousTestCase):
    """Tags and ids as labels."""

    def test_plain(self) -> None:
        """Lower-case letters, digits, hyphens and underscores stay as they are."""
        self.assertEqual(encodeLabel("web-1_a"), b"web-1_a")

    def test_escapes(self) -> None:
        """All else is two hyphens and hexadecimal digits for each byte; so is a hyphen before a hyphen."""
        for text, label in (
            ("v1.2", b"v1--2e2"),
            ("Web", b"--57eb"),
            ("é", b"--c3--a9"),
            ("a--b", b"a--2d-b"),
            ("\ud800", b"--ed--a0--80"),
        ):
            self.assertEqual(encodeLabel(text), label)

    @given(st.text(min_size=1, max_size=20))
    def test_reversible(self, text: str) -> None:
        """The text of a label that was not cut can be read back."""
        label = encodeLabel(text)
        if len(label) < LONGEST_LABEL:
            raw = re.sub(rb"--([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), label)
            self.assertEqual(raw.decode(), text)

    def test_long(self) -> None:
        """A label of more than 63 bytes is cut, and tells apart what was cut off."""
        labels = {encodeLabel("a" * 63 + end) for end in ("", "b", "c")}
        self.assertEqual((len(labels), {len(label) for label in labels}), (3, {LONGEST_LABEL}))

    def test_wireName(self) -> None:
        """Each label has its length before it."""
        self.assertEqual(wireName(b"web", b"service"), b"\x03web\x07service")

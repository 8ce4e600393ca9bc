"""
Tests for :mod:`txserviceregistry.util.fields`.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.faults import Fault
from txserviceregistry.registry.http import validation
from txserviceregistry.util.fields import KEY, SERVICE_ID


class AgreementTests(SynchronousTestCase):
    """The library refuses just what the registry refuses."""

    @given(st.text("aZ0/_-. \n", max_size=70) | st.from_regex(r"(/[a-z]{3,4}/?){1,11}[a-z.]{0,3}", fullmatch=True))
    def test_idsAndKeys(self, text: str) -> None:
        """Any text is an id, or a key, to both or to neither."""
        for pattern, check in ((SERVICE_ID, validation.SERVICE_ID.value), (KEY, validation.KEY.value)):
            try:
                check(text)
            except Fault:
                self.assertIsNone(pattern.fullmatch(text), text)
            else:
                self.assertIsNotNone(pattern.fullmatch(text), text)

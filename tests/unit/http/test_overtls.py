"""
All tests of the client that have sockets, once more over TLS: every server has a certificate, and the client verifies
it against the file that its settings name. Failures of TLS itself are in test_tls.
"""

from __future__ import annotations

import os
from pathlib import Path

from ...certificates import commonHolder
from ...loopback import LoopbackTestCase
from .. import test_client
from . import test_pool as test_agents


class OverTLS(LoopbackTestCase):
    """The same, over TLS."""

    def setUp(self) -> None:
        caFile = Path(self.mktemp())
        caFile.write_bytes(commonHolder().certificate)
        self.patch(os, "environ", {**os.environ, "RAXSR_CA_FILE": str(caFile)})
        self.context = commonHolder().options()
        super().setUp()


class AgentsOverTLS(OverTLS, test_agents.ConnectionTests):
    """See ConnectionTests of test_agents."""


class ConnectionsOverTLS(OverTLS, test_client.ConnectionTests):
    """See ConnectionTests of test_client."""


class AuthenticationOverTLS(OverTLS, test_client.AuthenticationTests):
    """See AuthenticationTests of test_client."""


class ClosingOverTLS(OverTLS, test_client.CloseTests):
    """See CloseTests of test_client."""


class SecretsOverTLS(OverTLS, test_client.SecretsTests):
    """See SecretsTests of test_client."""


class CompletenessTests(OverTLS):
    """The promises of this module."""

    def test_noSuiteIsMissing(self) -> None:
        """Every test case of the client's that has servers on loopback is run over TLS as well."""
        suites = {
            case
            for module in (test_client, test_agents)
            for case in vars(module).values()
            if isinstance(case, type)
            and issubclass(case, LoopbackTestCase)
            and any(name.startswith("test") for name in vars(case))
        }
        again = {base for case in OverTLS.__subclasses__() for base in case.__mro__}
        self.assertEqual(suites - again, set())
        self.assertEqual(len(suites), 5)

    def test_theServersSpeakTLS(self) -> None:
        """A server of these tests is one with TLS."""
        self.assertTrue(self.serve(lambda call: call.answer()).url.startswith("https://"))

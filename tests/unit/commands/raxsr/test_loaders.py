"""Tests for :mod:`txserviceregistry.commands.raxsr.loaders`."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from tests import ROOT
from txserviceregistry.commands.outcome import CommandFailed
from txserviceregistry.commands.raxsr.execute import environmentOf
from txserviceregistry.commands.raxsr.loaders import NAMES, PREFIXES, decidesWhatRuns


class LoadersTests(SynchronousTestCase):
    """Which variables decide what runs."""

    def test_theListOfTheDocumentation(self) -> None:
        """docs/configuration.rst names all refused variables and no others; variables of applications are permitted."""
        page = (ROOT / "docs" / "configuration.rst").read_text("utf-8")
        table = page.partition("Refused              Variables")[2].partition("Variables that only")[0]
        documented = re.findall("``([A-Z0-9_*]+)``", table)
        self.assertEqual(sorted(documented), sorted([*NAMES, *(f"{prefix}*" for prefix in PREFIXES)]))
        for name in documented:
            self.assertTrue(decidesWhatRuns(name.replace("*", "X")), name)
        for name in ("LISTEN_IP", "PORT", "NODE_ENV", "PATHS", "MY_PATH", "DATABASE_URL", "ENVIRONMENT", "JVM_OPTS"):
            self.assertFalse(decidesWhatRuns(name), name)

    def test_namesAreThoseOfTheEnvironment(self) -> None:
        """It is the variable's name that counts, however the key is written."""
        for key in ("/app/path", "/app/Ld-Preload", "/app/ld/preload", "/app/bash.env"):
            self.assertRaises(CommandFailed, environmentOf, "/app", {key: "x"})
        self.assertEqual(environmentOf("/app", {"/app/bash-env": "x"}, ["BASH_ENV"]), {"BASH_ENV": "x"})

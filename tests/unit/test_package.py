"""Tests for the package's own names."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import txserviceregistry
from tests import ROOT
from txserviceregistry._version import DISTRIBUTION, installCommand


class PackageTests(SynchronousTestCase):
    """``import txserviceregistry``."""

    def test_givesTheNamesThatMostUsersNeed(self) -> None:
        """Each promised name is there, and is the one of its module."""
        from txserviceregistry.client import Client

        self.assertIs(txserviceregistry.Client, Client)
        for name in txserviceregistry.__all__:
            self.assertIsNotNone(getattr(txserviceregistry, name))
            self.assertIn(name, dir(txserviceregistry))

    def test_saysWhatItDoesNotHave(self) -> None:
        """An unknown name is an AttributeError like any module's."""
        error = self.assertRaises(AttributeError, getattr, txserviceregistry, "Nothing")
        self.assertEqual(str(error), "module 'txserviceregistry' has no attribute 'Nothing'")


class SkipTests(SynchronousTestCase):
    """Tests that are skipped."""

    def test_allSayTheSameSentence(self) -> None:
        """So trial prints once what to install, however many tests are skipped."""
        for path in ROOT.glob("tests/**/*.py"):
            for line in path.read_text().splitlines():
                if (
                    re.search(r"\b(SkipTest|skipIf|skipUnless)\(|\.skip = |^ +skip = ", line)
                    and path.name != "test_package.py"
                ):
                    self.assertRegex(line, r"\bSENTENCE\)$", path.name)


class DistributionTests(SynchronousTestCase):
    """The package's name for pip: on PyPI, the import name belongs to another one."""

    def test_nothingInstallsTheOtherPackage(self) -> None:
        """No page, program or workflow tells anybody to install txserviceregistry by that name."""
        wrong = re.compile(r"pip install[^\n`]*[ '\"]txserviceregistry\b(?!/)", re.IGNORECASE)
        for pattern in ("*", "docs/**/*.rst", "txserviceregistry/**/*.py", ".github/**/*.yml"):
            for path in filter(Path.is_file, ROOT.glob(pattern)):
                self.assertNotRegex(path.read_text(), wrong, str(path))

    def test_hasEachPackage(self) -> None:
        """Every package of the sources is installed, and no other is named."""
        setup = ConfigParser()
        setup.read(ROOT / "setup.cfg")
        named = {name for name in setup["options"]["packages"].split() if name.startswith("txserviceregistry")}
        found = {path.parent.relative_to(ROOT) for path in ROOT.glob("txserviceregistry/**/__init__.py")}
        self.assertEqual(named, {".".join(path.parts) for path in found})

    def test_aCloneComesFirst(self) -> None:
        """Until there is a release, pages and messages that name the distribution say first how to install a clone."""
        pages = {path.name: path.read_text() for path in [*ROOT.glob("*.rst"), *ROOT.glob("docs/**/*.rst")]}
        messages = {"message": installCommand("cli")}
        for name, text in {**pages, **messages}.items():
            released = re.search(rf"{DISTRIBUTION}\[|install {DISTRIBUTION}", text)
            if released is not None:
                self.assertIn("clone", text[: released.start()], name)

    def test_theNameIsOne(self) -> None:
        """Messages, the packages' metadata and the workflow that publishes them have the same name."""
        setup = ConfigParser()
        setup.read(ROOT / "setup.cfg")
        self.assertEqual(setup["metadata"]["name"], DISTRIBUTION)
        self.assertIn(f"pip install '{DISTRIBUTION}[cli]'", installCommand("cli"))
        workflow = (ROOT / ".github/workflows/publish.yml").read_text()
        self.assertIn(f"https://pypi.org/project/{DISTRIBUTION}/", workflow)
        self.assertIn(f"dist/{DISTRIBUTION.replace('-', '_')}-", workflow)


class ContributingTests(SynchronousTestCase):
    """CONTRIBUTING, which says where things are."""

    def test_filesAreThere(self) -> None:
        """Each file and each folder that it names exists, in the project or in the package."""
        text = (ROOT / "CONTRIBUTING.rst").read_text()
        names = re.findall(r"``(\w[\w.-]*(?:/[\w.-]+)*(?:/|\.(?:py|rst|toml|cfg)))``", text)
        self.assertGreater(len(names), 50)
        package = ROOT / "txserviceregistry"
        self.assertEqual([each for each in names if not (ROOT / each).exists() and not any(package.rglob(each))], [])

"""The options of ``twistd service-registry``, on the command line and in files."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from tests import ROOT
from txserviceregistry.commands.registry import Options
from txserviceregistry.commands.stores import ETCD_OPTIONS
from txserviceregistry.registry.service import DEFAULT_LISTEN


class OptionsCase(SynchronousTestCase):
    """The options made of words on the command line, and of a file."""

    def parsed(self, *words: str, twistd: Mapping[str, Any] | None = None) -> Options:
        """The options that *words* mean, after *twistd*'s own."""
        options = Options()
        options.parent = twistd
        options.parseOptions(list(words))
        return options

    def refusal(self, *words: str) -> str:
        """The line with which *words* are refused."""
        line = str(self.assertRaises(SystemExit, self.parsed, *words))
        self.assertEqual(len(line.splitlines()), 1, line)
        return line

    def file(self, name: str, text: str | bytes) -> str:
        """A file of options; its path."""
        folder = self.mktemp()
        os.makedirs(folder)
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            file.write(text if isinstance(text, bytes) else text.encode())
        return path


class CommandLineTests(OptionsCase):
    """Options on the command line."""

    def test_anEtcdWithoutItsStore(self) -> None:
        """Options of etcd without --store etcd are an error, on the command line and in a file."""
        for given in (["--etcd", "http://h1:2379"], ["--store", "memory", "--etcd-prefix", "/x"]):
            self.assertIn("requires --store etcd", self.refusal(*given))
        self.assertIn("--etcd-user", self.refusal("--config", self.file("r.ini", "etcd-user = joe\n")))

    def test_theLog(self) -> None:
        """A log that can be written is left as it is, and none is created before the start."""
        log = self.file("twistd.log", "started\n")
        self.parsed(twistd={"logfile": log})
        self.parsed(twistd={"logfile": f"{log}.2"})
        self.assertEqual(os.listdir(os.path.dirname(log)), ["twistd.log"])
        self.assertEqual(Path(log).read_text(), "started\n")

    def test_theLogAndTheRunDirectory(self) -> None:
        """A log in JSON is where twistd has its own: in the directory of the start, not in its --rundir."""
        folder = os.path.dirname(self.file("other", ""))
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder)
        os.mkdir("run")
        self.parsed("--log-format", "json", twistd={"rundir": "run", "logfile": "json.log"})
        self.assertEqual(sorted(os.listdir(".")), ["json.log", "other", "run"])
        self.assertEqual(os.listdir("run"), [])

    def test_theHomeDirectory(self) -> None:
        """A path may begin with ~, which a shell leaves as it is behind an equals sign, and in a file."""
        home = os.path.abspath(os.path.dirname(self.file("other", "")))
        config = self.file("registry.ini", "data-dir = ~/data\naudit-log = ~/audit.log\n")
        with mock.patch.dict(os.environ, {"HOME": home}):
            for words in (["--data-dir=~/data", "--audit-log=~/audit.log"], [f"--config={config}"]):
                options = self.parsed(*words)
                self.assertEqual(options["data-dir"], os.path.join(home, "data"))
                self.assertEqual(options["audit-log"], os.path.join(home, "audit.log"))
        folder = os.path.abspath(os.path.dirname(config))
        with mock.patch.dict(os.environ, {"HOME": folder}):
            self.assertEqual(self.parsed("--config=~/registry.ini")["data-dir"], os.path.join(folder, "data"))
            line = self.refusal("--listen=ssl:1:privateKey=~/key.pem")
            self.assertIn(f"cannot read privateKey {folder}/key.pem: ", line)

    def test_wrongOnes(self) -> None:
        """A mistake is told in one line, which names the option or what can't be one."""
        for words, named in (
            (["--store", "paper"], "--store"),
            (["--listen", "tcp:none"], "--listen"),
            (["--listen", "nonsense:1"], "--listen"),
            (["--what"], "--what"),
            (["argument"], "argument"),
        ):
            self.assertIn(named, self.refusal(*words))

    def test_defaults(self) -> None:
        """With no options a registry is what the protocol says, on this machine, in the folder of this user."""
        with mock.patch.dict(os.environ, {"RAXSR_DATA_DIR": "/somewhere"}):
            options = self.parsed()
        self.assertEqual(
            {option.name: options[option.name] for option in Options.table if option.name != "data-dir"},
            {
                "listen": [DEFAULT_LISTEN],
                "store": "sqlite",
                "etcd": ["http://127.0.0.1:2379"],
                "etcd-prefix": "/txserviceregistry/",
                "etcd-user": None,
                "etcd-password-file": None,
                "etcd-ca-file": None,
                "etcd-cert-file": None,
                "etcd-key-file": None,
                "max-services": 100_000,
                "max-configuration-values": 100_000,
                "max-locks": 10_000,
                "fence-from": 0,
                "no-locks-for": 0.0,
                "rate-limit": (500_000, 86_400.0),
                "token-lifetime": 86_400.0,
                "event-retention": 30 * 86_400.0,
                "max-connections": 10_000,
                "max-connections-per-client": 5_000,
                "max-followers": 5_000,
                "max-followers-per-tenant": 2_500,
                "max-streams": 10_000,
                "max-streams-per-tenant": 5_000,
                "request-timeout": 30.0,
                "metrics": "loopback",
                "log-format": "text",
                "access-log": None,
                "audit-log": None,
                "console": "on",
                "console-host": [],
            },
        )
        self.assertEqual(str(options["data-dir"]), "/somewhere")

    def test_values(self) -> None:
        """Every option takes its value; of one that can't be repeated the last counts."""
        options = self.parsed(
            *("--listen", "tcp:1", "-l", "tcp:2", "-d", "/x", "-s", "memory", "--max-services=1", "--max-services=2"),
            *("--max-configuration-values", "3", "--rate-limit", "10/s", "--token-lifetime", "5m"),
            *("--event-retention", "1h", "--metrics", "anywhere", "--access-log", "access.log"),
            *("--audit-log", "audit.log"),
        )
        self.assertEqual(options["listen"], ["tcp:1", "tcp:2"])
        self.assertEqual((options["data-dir"], options["store"]), ("/x", "memory"))
        self.assertEqual((options["max-services"], options["max-configuration-values"]), (2, 3))
        self.assertEqual(options["rate-limit"], (10, 1.0))
        self.assertEqual((options["token-lifetime"], options["event-retention"]), (300.0, 3600.0))
        self.assertEqual((options["metrics"], options["access-log"]), ("anywhere", os.path.abspath("access.log")))
        self.assertEqual(options["audit-log"], os.path.abspath("audit.log"))
        names = ["registry.example.com", "[fd00::7]", "registry.example.com:8443"]
        self.assertEqual(self.parsed(*[f"--console-host={name}" for name in names])["console-host"], names)
        self.assertEqual(self.parsed("--access-log", "-")["access-log"], "-")
        self.assertIsNone(self.parsed("--access-log", "off")["access-log"])

    def test_wrongValues(self) -> None:
        """A value that can't be used is told in one line with the option and the value."""
        for option, value in [
            ("listen", "tcp:none"),
            ("store", "paper"),
            ("max-services", "many"),
            ("max-configuration-values", "-1"),
            ("max-locks", "many"),
            ("fence-from", "4503599627370497"),
            ("no-locks-for", "2d"),
            ("rate-limit", "10"),
            ("token-lifetime", "0s"),
            ("event-retention", "59m"),
            ("metrics", "yes"),
            ("max-connections", "all"),
            ("max-connections", "0"),
            ("max-connections-per-client", "0"),
            ("request-timeout", "121s"),
            # A request without a Host header has no name either.
            ("console-host", "https://registry.example.com/"),
            ("console-host", "fd00::7"),
        ]:
            self.assertIn(f"--{option}: {value!r} is", self.refusal(f"--{option}", value))
        self.assertIn("--data-dir: the value is empty", self.refusal("--data-dir", ""))

    def test_helpSaysALineOfEachOption(self) -> None:
        """``--help`` names every option of the table with its default and a line."""
        shown = Options().getUsage(width=1000)
        for option in Options.table:
            (line,) = [line for line in shown.splitlines() if f"--{option.name}=" in line]
            self.assertIn(option.help, line)
            if option.default is not None:
                self.assertIn(f"[default: {option.default}]", line)

    def test_thePageHasEveryOption(self) -> None:
        """The page on the registry has every option and its default; those of etcd have a page of their own."""
        page = (ROOT / "docs" / "registry.rst").read_text()
        for option in Options.table:
            if option in ETCD_OPTIONS:
                continue
            row = re.search(rf"^``--{option.name}``  (.*(?:\n  .*)*)", page, re.MULTILINE)
            assert row is not None, option.name
            self.assertIn(option.default or "", row[1], option.name)


class ConfigFileTests(OptionsCase):
    """Options in a file."""

    def test_iniFile(self) -> None:
        """An INI file has any of the options; those that can be repeated have one value a line."""
        path = self.file(
            "registry.ini",
            "[service-registry]\n# of no importance\nlisten =\n    tcp:1\n    tcp:2\nstore = memory\n"
            "max-services = 7\nrate-limit = 100/1m\n",
        )
        options = self.parsed("--config", path)
        self.assertEqual((options["listen"], options["store"]), (["tcp:1", "tcp:2"], "memory"))
        self.assertEqual((options["max-services"], options["rate-limit"]), (7, (100, 60.0)))

    def test_tomlFile(self) -> None:
        """So has a TOML file, in its own way: arrays, and numbers that need no quotes."""
        path = self.file(
            "registry.toml",
            '[service-registry]\nlisten = ["tcp:1", "tcp:2"]\nstore = "memory"\nmax-services = 7\n'
            "event-retention = 7200\ntoken-lifetime = 1.5\n",
        )
        options = self.parsed("-c", path)
        self.assertEqual((options["listen"], options["store"]), (["tcp:1", "tcp:2"], "memory"))
        self.assertEqual((options["max-services"], options["event-retention"]), (7, 7200.0))
        self.assertEqual(options["token-lifetime"], 1.5)

    def test_theSectionMayBeLeftOut(self) -> None:
        """Options stand for themselves where nothing else can be meant."""
        for name, text in [
            ("a.conf", "store = memory\nlisten = tcp:1\n"),
            ("a.toml", "store='memory'\nlisten='tcp:1'"),
        ]:
            options = self.parsed("--config", self.file(name, text))
            self.assertEqual((options["store"], options["listen"]), ("memory", ["tcp:1"]))

    def test_anEmptyFile(self) -> None:
        """A file without an option changes nothing."""
        for name in ("empty.ini", "empty.toml"):
            self.assertEqual(self.parsed("--config", self.file(name, ""))["max-services"], 100_000)

    def test_theCommandLineWins(self) -> None:
        """An option on the command line replaces that in the file: of a list, all values."""
        path = self.file("a.ini", "listen =\n  tcp:1\n  tcp:2\nmax-services = 7\nstore = memory\n")
        options = self.parsed("--max-services", "8", "--config", path, "--listen", "tcp:3")
        self.assertEqual((options["listen"], options["max-services"], options["store"]), (["tcp:3"], 8, "memory"))

    def test_whatIsWrongIsOneLineWithFileAndKey(self) -> None:
        """A wrong key, a wrong value, a file that is none: one line that names the file, and the key if it has one."""
        for name, text, expected in [
            ("a.ini", "stores = memory\n", "unknown option 'stores'"),
            ("a.ini", "config = b.ini\n", "unknown option 'config'"),
            ("a.ini", "store = paper\n", "store: 'paper' is not one of"),
            ("a.ini", "store =\n", "store: the value is empty"),
            ("a.ini", "store = memory\n  sqlite\n", "store: only one value is allowed"),
            ("a.ini", "store = memory\nstore = sqlite\n", "'store'"),
            ("a.ini", "[registry]\nstore = memory\n", "unknown section [registry]"),
            ("a.ini", "store = memory\n[other]\n", "unknown section [other]"),
            ("a.ini", "store\n", "store"),
            ("a.ini", b"store = \xff\n", "not UTF-8"),
            ("a.toml", "stores = 'memory'\n", "unknown option 'stores'"),
            ("a.toml", "store = 'paper'\n", "store: 'paper' is not one of"),
            ("a.toml", "store = ['memory', 'sqlite']\n", "store: only one value is allowed"),
            ("a.toml", "listen = []\n", "listen: the value is empty"),
            ("a.toml", "max-services = true\n", "max-services: 'true' is not a whole number"),
            ("a.toml", "max-services = 1979-05-27\n", "max-services: must be a string"),
            ("a.toml", "store = memory\n", "is not a valid TOML file"),
            (
                "a.toml",
                "store = 'memory'\n[service-registry]\nstore = 'sqlite'\n",
                "must stand under [service-registry]",
            ),
            ("a.toml", "[registry]\n", "unknown section [registry]"),
            ("a.toml", "store = 'memory'\nservice-registry = 5\n", "unknown option 'service-registry'"),
        ]:
            path = self.file(name, text)
            line = self.refusal("--config", path)
            self.assertIn(path, line)
            self.assertIn(expected, line)

    def test_aFileThatCantBeRead(self) -> None:
        """A file that is not there, or is a folder, is told by name with the reason."""
        missing = os.path.join(self.mktemp(), "none.ini")
        self.assertIn(f"can't read {missing}: No such file", self.refusal("--config", missing))
        self.assertIn(f"can't read {os.curdir}: Is a directory", self.refusal("--config", os.curdir))

    def test_tomlNeedsAReader(self) -> None:
        """If Python has no TOML reader, and none is installed, the line says what to install."""
        with mock.patch.dict(sys.modules, {"tomllib": None, "tomli": None}):
            line = self.refusal("--config", self.file("a.toml", "store = 'memory'\n"))
        self.assertIn("pip install tomli", line)

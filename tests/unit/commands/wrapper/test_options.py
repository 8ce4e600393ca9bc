"""The options of ``service-registry-wrapper``."""

from __future__ import annotations

import os

from twisted.trial.unittest import TestCase

from tests.inprocess import Ended, runScript, withoutSettings
from txserviceregistry.commands.wrapper.main import main


class OptionsTests(TestCase):
    """Errors that are found before anything is started."""

    def setUp(self) -> None:
        self.home = os.path.abspath(self.mktemp())
        os.makedirs(self.home)

    async def wrapper(self, *words: str) -> Ended:
        """Run the wrapper to its end."""
        environment = {**withoutSettings(), "HOME": self.home}
        return await runScript(main, *words, environment=environment, folder=self.home)

    async def test_wrongUse(self) -> None:
        """One line that says what is wrong and where to read on, and exit code 2; nothing is started."""
        command = ["touch", "started"]
        cases: list[tuple[list[str], str]] = [
            ([], "--id is required"),
            (["--id=web1"], "a command to run is required"),
            (["--id=web1", "--"], "a command to run is required"),
            (["--id=a/b", *command], "a/b"),
            (["--id=ab", *command], "3 to 65"),
            (["--id=web1", "--interval=2", *command], "3 to 120"),
            (["--id=web1", "--interval=20.5", *command], "whole number"),
            (["--id=web1", "--interval=soon", *command], "soon"),
            (["--id=web1", "--heartbeat-timeout=soon", *command], "soon"),
            (["-i", "20", *command], "3 to 65"),
            (["--id=web1", "--api-key=", *command], "--api-key: the value is empty"),
            (["--id=web1", "--retries=-1", *command], "--retries"),
            (["--id=web1", "--retries=1.5", *command], "--retries"),
            (["--id=web1", "--metadata=novalue", *command], "novalue"),
            (["--id=web1", "--metadata=caf\udce9", *command], "the value of --metadata is not text in"),
            (["--id=web1", "--check=udp:8000", *command], "udp:8000"),
            (["--id=web1", "--check=tcp:http", *command], "'tcp:http' is not tcp:PORT"),
            (["--id=web1", "--check=exec: ", *command], "exec:COMMAND"),
            (["--id=web1", "--check=http://localhost/a page", *command], "'http://localhost/a page' is not"),
            (["--id=web1", "--check-interval=0", *command], "from 0.001s to 1d"),
            (["--id=web1", "--rise=0", *command], "--rise: '0' is not a whole number from 1"),
            (["--id=web1", "--no-such-option", *command], "no-such-option"),
        ]
        for words, expected in cases:
            ended = await self.wrapper(*words)
            self.assertEqual((ended.out, ended.code, len(ended.err.splitlines())), ("", 2, 1), words)
            self.assertIn(expected, ended.err)
            self.assertIn("service-registry-wrapper --help", ended.err)
        self.assertFalse(os.path.exists(os.path.join(self.home, "started")))

    async def test_help(self) -> None:
        """The help names every option and has an example; the version is one line."""
        shown = await self.wrapper("--help")
        self.assertEqual((shown.err, shown.code), ("", 0))
        for option in ("id", "tags", "metadata", "interval", "retries", "abort-on-failure", "deregister", "check"):
            self.assertIn(f"--{option}", shown.out)
        self.assertIn("Example:\n  service-registry-wrapper --id=", shown.out)
        shown = await self.wrapper("--version")
        self.assertEqual((len(shown.out.splitlines()), shown.err, shown.code), (1, "", 0))

    async def test_helpThatCantBeWritten(self) -> None:
        """It is an error of one line."""
        for word in ("--help", "--version"):
            environment = {**withoutSettings(), "HOME": self.home}
            ended = await runScript(main, word, environment=environment, folder=self.home, stdout="/dev/full")
            self.assertEqual(ended.code, 1)
            self.assertIn("can't write the output: No space left on device", ended.err)

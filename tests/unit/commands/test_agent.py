"""The options of ``twistd service-registry-agent``."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.commands.agent import Options


class OptionsTests(SynchronousTestCase):
    """What is found before anything is started."""

    def test_wrongOnesAreOneLine(self) -> None:
        """A mistake is told in one line, which names the option or what can't be one."""
        for words, named in (
            (["--heartbeat-timeout", "2"], "--heartbeat-timeout"),
            (["--heartbeat-timeout", "soon"], "--heartbeat-timeout"),
            (["--id", "a/b"], "a/b"),
            (["--id", "ab"], "--id"),
            (["--metadata", "novalue"], "novalue"),
            (["--listen", "no such:endpoint"], "--listen"),
            (["--unknown"], "unknown"),
            (["argument"], "argument"),
        ):
            line = str(self.assertRaises(SystemExit, Options().parseOptions, words))
            self.assertEqual(len(line.splitlines()), 1, line)
            self.assertIn(named, line)

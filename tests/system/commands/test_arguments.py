"""Arguments that are not text: each program refuses them, and runs nothing."""

from __future__ import annotations

import os
import sys

from twisted.internet.utils import getProcessOutputAndValue

from tests.system.processes import ProcessTestCase, sharedRegistry, together

FOLDER = os.path.dirname(sys.executable)
LATIN = b"caf\xe9"


class ProgramTests(ProcessTestCase):
    """The programs themselves, for Python decodes arguments before any code of theirs runs."""

    async def run_(self, *words: str | bytes, **environment: str) -> tuple[bytes, bytes, int]:
        """Run a program to its end."""
        program, *arguments = words
        path = os.path.join(FOLDER, str(program))
        # A bytes environment, because arguments and environment are encoded alike.
        child = self.environment({**sharedRegistry(), "LC_ALL": "C.UTF-8", **environment})
        encoded = {os.fsencode(name): os.fsencode(value) for name, value in child.items()}
        out, err, code = await getProcessOutputAndValue(
            path, [os.fsencode(word) for word in arguments], env=encoded, path=self.home
        )
        return out, err, code

    async def test_refused(self) -> None:
        """One line names the option and says what to do, and does not repeat what may be a secret."""
        cases = [
            (b"--username", 2, ("raxsr", "services", "list", "--username", LATIN)),
            (b"an argument", 2, ("service-registry-users", "add", LATIN)),
            (b"--data-dir", 1, ("twistd", "-n", "service-registry", b"--data-dir=" + LATIN)),
        ]
        ended = await together(self.run_(*words) for _, _, words in cases)
        for (name, expected, words), (out, err, code) in zip(cases, ended, strict=True):
            self.assertEqual((out, code, err.count(b"\n")), (b"", expected, 1), (words, err))
            self.assertIn(name + b" is not text in UTF-8", err, words)
            self.assertNotIn(b"caf", err, words)

    async def test_theCommandOfOthers(self) -> None:
        """A command's arguments may be in any encoding, and reach it unchanged."""
        for words in (
            ("service-registry-wrapper", "--id", "wrapped-bytes", "--interval=3", "printf", LATIN),
            ("raxsr", "configuration", "exec", "--namespace", "/not/there", "-q", "--", "printf", LATIN),
        ):
            out, err, code = await self.run_(*words)
            self.assertEqual((out, code), (LATIN, 0), err)

    async def test_anASCIILocale(self) -> None:
        """If Python takes arguments for ASCII, the line says so, and which locale to set."""
        ascii_ = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        _, err, code = await self.run_("raxsr", "services", "list", "--tag", "é".encode(), **ascii_)
        self.assertEqual(code, 2)
        self.assertIn(b"the value of --tag is not text in ASCII, the encoding of the locale", err)
        self.assertIn(b"C.UTF-8", err)

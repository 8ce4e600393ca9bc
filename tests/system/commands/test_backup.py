"""``service-registry-backup``, as a process."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial

from tests.unit.commands.test_backup import BackupCase


class BackUpProcessTests(BackupCase):
    """The copy, with a limit of its own."""

    async def test_aFullDisk(self) -> None:
        """A copy that fills the disk leaves no file, even if it is larger than what SQLite keeps in memory."""
        await self.stopped()
        with closing(sqlite3.connect(self.store)) as store, store:
            store.execute("INSERT OR REPLACE INTO meta VALUES ('probe_filling', randomblob(3000000))")
        limited = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2**20, 2**20))
        words = ["-m", "txserviceregistry.commands.backup", "--data-dir", self.dataDir, str(self.file)]
        ended = subprocess.run([sys.executable, *words], check=False, stderr=subprocess.PIPE, preexec_fn=limited)
        self.assertEqual((ended.returncode, len(ended.stderr.splitlines())), (1, 1), ended.stderr)
        self.assertEqual(os.listdir(self.file.parent), [])

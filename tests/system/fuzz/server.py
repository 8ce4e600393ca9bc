"""
A registry in a process of its own, to be asked from this one, which may block.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

import requests

from txserviceregistry.settings import readSettings

_PROGRAM = """
import sys
from twisted.internet import reactor
from twisted.logger import globalLogBeginner, textFileLogObserver
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.registry.service import RegistryService

globalLogBeginner.beginLoggingTo([textFileLogObserver(open(sys.argv[1] + "/log", "w"))], redirectStandardIO=False)
registry = RegistryService(
    reactor,
    dataDir=sys.argv[1],
    store=sys.argv[2],
    endpoints=["tcp:0:interface=127.0.0.1"],
    limits=ResourceLimits(service=100, configurationValue=200),
)
registry.startService()
registry.whenListening().addCallback(lambda _: print("listening", flush=True))
reactor.addSystemEventTrigger("before", "shutdown", registry.stopService)
reactor.run()
"""


class Server:
    """
    The registry, over *store*, while the context lasts.

    :ivar root: its URL, without a path.
    :ivar credentials: what its Auth API takes.
    """

    def __init__(self, store: str) -> None:
        self.store = store
        self._home = tempfile.mkdtemp()
        self._process = subprocess.Popen([sys.executable, "-c", _PROGRAM, self._home, store], stdout=subprocess.PIPE)
        self.root = ""
        self.credentials: dict[str, str] = {}

    def __enter__(self) -> Server:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.__exit__(None, None, None)
            raise AssertionError("the registry does not start")
        settings = readSettings(environ={"RAXSR_DATA_DIR": self._home}, home=Path(self._home))
        self.root = settings.baseUrls[0].removesuffix("/v1.0")
        self.credentials = {"username": settings.username, "apiKey": settings.apiKey}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate()
        shutil.rmtree(self._home)

    def description(self) -> dict[str, object]:
        """Its own report."""
        described: dict[str, object] = requests.get(self.root + "/openapi.json", timeout=30).json()
        return described

    def log(self) -> str:
        """Its log."""
        return Path(self._home, "log").read_text()

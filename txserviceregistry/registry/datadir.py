"""The data directory of a registry, and the ``raxrc`` in it, with URLs and credentials for programs on this machine."""

from __future__ import annotations

import configparser
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from ..util.files import UnsafePath, checkPath, replaceFile
from .stores.sqlite import file as sqlitefile

#: Seconds after the restore of a backup in which no lock can be acquired: the longest timeout of a lock, which a client
#: may hold that the backup does not know.
HELD_BACK = 120.0


class DataDirectoryError(Exception):
    """The data directory can't be used; the text, one line, says why."""


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Report an OSError as a :class:`DataDirectoryError`: *what* could not be done."""
    try:
        yield
    except OSError as error:
        raise DataDirectoryError(f"can't {what}: {error.strerror}")


class DataDirectory:
    """A data directory. Methods that can't read or write it raise :class:`DataDirectoryError`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.raxrcPath = self.path / "raxrc"
        self.storePath = self.path / "registry.sqlite"
        self._certificatePath = self.path / "certificate.pem"
        self._lockPath = self.path / "registry.lock"
        self._restoredPath = self.path / "registry.restored"
        self._lock: int | None = None

    def make(self) -> None:
        """Create the directory if it does not exist, for its owner only, and :meth:`checkOwners`."""
        self.checkOwners()
        with _reported(f"write to the data directory {self.path}"):
            try:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except FileExistsError:
                raise DataDirectoryError(f"the data directory {self.path} is a file; choose a directory")
        # Another user may have been quicker.
        self.checkOwners()

    def checkOwners(self) -> None:
        """Check, for root, that no other user controls the directory, or the one that the store is linked to."""
        with _reported(f"write to the data directory {self.path}"):
            try:
                checkPath(self.path)
                if self.storePath.is_symlink():
                    checkPath(self.storePath)
            except UnsafePath as error:
                raise DataDirectoryError(
                    f"root can't use the data directory {self.path} safely: {error.filename}: {error.strerror}; run "
                    "this as the directory's owner"
                )

    def hasStore(self) -> bool:
        """Whether there is a file of the sqlite store, or a log that has changes."""
        with _reported(f"read the data directory {self.path}"):
            return sqlitefile.isThere(str(self.storePath))

    # -- one registry at a time

    def open(self) -> None:
        """:meth:`make` the directory and lock it for this process; fails if another registry uses it."""
        self.make()
        while not self._holds():
            # Between the two steps of taking it another process may have removed the file.
            self.close()
            self._lock = self._takeLock()

    def close(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def hold(self) -> None:
        """Make a lock file that was removed again; fail if it was replaced, as another registry may have done."""
        if self._lock is None or self._holds():
            return
        if self._lockPath.exists():
            raise DataDirectoryError(
                f"another registry has taken the data directory {self.path}: its lock file {self._lockPath.name} was"
                " replaced; stop the other one, and restart this one"
            )
        lock = self._takeLock()
        self.close()
        self._lock = lock

    def isTaken(self) -> bool:
        try:
            lock = os.open(self._lockPath, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            flock(lock, LOCK_EX | LOCK_NB)
            return False
        except OSError as error:
            return isinstance(error, BlockingIOError)
        finally:
            os.close(lock)

    def _takeLock(self) -> int:
        with _reported(f"write to the data directory {self.path}"):
            lock = os.open(self._lockPath, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except OSError as error:
            os.close(lock)
            if not isinstance(error, BlockingIOError):
                raise DataDirectoryError(f"can't lock {self._lockPath}: {error.strerror}; use a local file system")
            raise DataDirectoryError(
                f"another registry uses the data directory {self.path}; stop it, or choose another --data-dir"
            )
        return lock

    def _holds(self) -> bool:
        """Whether the locked file is the one that other registries would lock."""
        try:
            return self._lock is not None and os.path.samestat(os.stat(self._lockPath), os.fstat(self._lock))
        except OSError:
            return False

    # -- after the restore of a backup

    def holdBack(self) -> None:
        """Let no lock be acquired for :data:`HELD_BACK` seconds after the next start: the store has been restored."""
        self._replace(self._restoredPath, "")

    def heldBack(self, now: float) -> float:
        """Seconds for which no lock may be acquired from *now*, counted from the first start after the restore."""
        try:
            text = self._restoredPath.read_text("ascii")
            if not text:
                self._replace(self._restoredPath, f"{now}")
            left = HELD_BACK - max(0.0, now - float(text or now))
            if left <= 0:
                self._restoredPath.unlink()
            return max(0.0, left)
        except FileNotFoundError:
            return 0.0
        except (OSError, ValueError) as error:
            raise DataDirectoryError(f"can't read or remove {self._restoredPath}: {error}")

    # -- the raxrc. A write leaves the other settings as they are.

    def credentials(self) -> tuple[str, str] | None:
        """User name and API key, or ``None`` if it has none."""
        raxrc = self._read()
        name, key = (raxrc.get("credentials", option, fallback="") for option in ("username", "api_key"))
        return (name, key) if name and key else None

    def keepCredentials(self, name: str | None, key: str | None) -> None:
        self._change({("credentials", "username"): name, ("credentials", "api_key"): key})

    def keepUrls(self, url: str, authUrl: str, certificate: bytes | None = None) -> None:
        """Write the URLs of the API and the Auth API, and the certificate (PEM) that clients have to trust, if any."""
        own, caFile = str(self._certificatePath.absolute()), ("ssl", "ca_file")
        settings: dict[tuple[str, str], str | None] = {("api", "url"): url, ("auth_api", "url"): authUrl}
        if certificate is not None:
            self._replace(self._certificatePath, certificate.decode("ascii"))
            settings[caFile] = own
        elif self._read().get(*caFile, fallback=None) == own:
            settings[caFile] = None
        self._change(settings)

    def _read(self) -> configparser.ConfigParser:
        raxrc = configparser.ConfigParser(interpolation=None)
        try:
            with _reported(f"read {self.raxrcPath}"), suppress(FileNotFoundError):
                raxrc.read_string(self.raxrcPath.read_text("utf-8"))
        except (configparser.Error, UnicodeError):
            # The parser's text repeats the line in question, which may hold a key.
            raise DataDirectoryError(f"{self.raxrcPath} is not a valid INI file; correct it, or move it away")
        return raxrc

    def _change(self, settings: Mapping[tuple[str, str], str | None]) -> None:
        raxrc = self._read()
        if all(raxrc.get(*whose, fallback=None) == value for whose, value in settings.items()):
            return
        for (section, option), value in settings.items():
            if value is not None:
                raxrc.read_dict({section: {option: value}})
            elif raxrc.has_section(section):
                raxrc.remove_option(section, option)
        text = io.StringIO()
        raxrc.write(text)
        self._replace(self.raxrcPath, text.getvalue())

    def _replace(self, path: Path, text: str) -> None:
        with _reported(f"write {path}"):
            replaceFile(path, text, isDurable=True)

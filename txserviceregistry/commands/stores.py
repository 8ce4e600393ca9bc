"""The store and the data directory that a program works on: their options, and dropping root's privileges."""

from __future__ import annotations

import argparse
import os
import pwd
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from twisted.python import usage

from .._version import __version__
from ..errors import InvalidSettings
from ..http.tls import TLSPolicy, tlsPolicy
from ..registry.datadir import DataDirectory
from ..registry.stores.etcd import DEFAULT_PREFIX
from ..settings import defaultDataDir, parseUrls
from ..util.files import Reloaded, UnsafePath, absolutePath, controllingUser, isPrivileged
from .console import CommandFailed, Parser, UsageError, typeOf
from .twistd import Option

if TYPE_CHECKING:
    from ..registry.stores.etcd.store import EtcdStore

#: Its name for ``--store``.
ETCD = "etcd"
# "nogroup", for a user without a passwd entry; the directory's group may be one that its owner is not in.
_NO_GROUP = 65534


def _urls(text: str) -> list[str]:
    try:
        return list(parseUrls(text, repr(text)))
    except InvalidSettings as error:
        raise ValueError(str(error).removeprefix(f"{text!r}: ")) from None


def _prefix(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"{text!r} does not begin with a slash")
    return text.rstrip("/") + "/"


_URLS = "With --store etcd: URLs of its members, separated by commas."
#: The options of etcd. The password and the keys are in files, because other users can see a command line.
ETCD_OPTIONS = (
    Option("etcd", None, "http://127.0.0.1:2379", _URLS, _urls),
    Option("etcd-prefix", None, DEFAULT_PREFIX, "Prefix of all keys in etcd.", _prefix),
    Option("etcd-user", None, None, "User name for etcd, if it requires one."),
    Option("etcd-password-file", None, None, "File with that user's password in its first line."),
    Option("etcd-ca-file", None, None, "File with trusted CA certificates for https:// URLs."),
    Option("etcd-cert-file", None, None, "File with the client certificate for etcd."),
    Option("etcd-key-file", None, None, "File with the private key of that certificate."),
)


def checkStore(store: str, given: Collection[str]) -> None:
    names = [option.name for option in ETCD_OPTIONS if option.name in given]
    if names and store != ETCD:
        raise usage.UsageError(f"--{names[0]} requires --store {ETCD}; the store is {store}")


@attrs.frozen(repr=False)
class EtcdFactory:
    """Makes a store. Its certificates, key and password can be read again."""

    make: Callable[[], EtcdStore]
    policy: TLSPolicy
    password: Reloaded[str, str] | None = None

    def __call__(self) -> EtcdStore:
        return self.make()

    def reload(self) -> None:
        self.policy.reload()
        if self.password is not None:
            self.password.reload()


def etcdStore(values: Mapping[str, Any], reactor: Any) -> EtcdFactory:
    """The factory of the store that the options describe. Files are read now; ``UsageError`` if that fails."""
    for one, other in (("etcd-user", "etcd-password-file"), ("etcd-cert-file", "etcd-key-file")):
        if (values[one] is None) is not (values[other] is None):
            raise usage.UsageError(f"--{one} and --{other} require each other")
    user = values["etcd-user"]
    ca, cert, key, file = (values[f"etcd-{name}-file"] for name in ("ca", "cert", "key", "password"))
    password = None
    try:
        if user is not None:
            # A process in the background has another working directory.
            path = absolutePath(file)
            password = Reloaded(f"Password file {file}", [path], partial(_passwordIn, path), str)
        policy = tlsPolicy(caFile=ca, certFile=cert, keyFile=key, caSetting="--etcd-ca-file")
    except InvalidSettings as error:
        raise usage.UsageError(str(error)) from None
    except ValueError as error:
        raise usage.UsageError(f"--etcd-password-file: {error}") from None
    # It takes a seventh of the start of a registry, most of which have another store.
    from ..registry.stores.etcd.store import EtcdStore

    credentials = None if password is None else (user, password)
    make = partial(
        EtcdStore, reactor, values["etcd"], prefix=values["etcd-prefix"], credentials=credentials, policy=policy
    )
    return EtcdFactory(make, policy, password)


def _passwordIn(path: str) -> str:
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"{path} can't be read: {reason}") from None
    if not lines or not lines[0]:
        raise ValueError(f"{path} has no password in its first line")
    return lines[0]


# -- programs that work on a data directory


class DataParser(Parser):
    """The parser of a program that works on a data directory."""

    def addDataDir(self) -> None:
        self.add_argument(
            "--data-dir", dest="dataDir", type=typeOf(_folder), metavar="DIR", help="the registry's data directory"
        )

    def parseWords(self) -> argparse.Namespace:
        self.add_argument("--version", action="version", version=f"{self.prog} {__version__}")
        self.checkText(sys.argv[1:])
        return self.parse_args()


def _folder(text: str) -> Path:
    if not text:
        raise ValueError("the value is empty")
    return Path(absolutePath(text))


def dataDirectory(options: argparse.Namespace) -> DataDirectory:
    try:
        return DataDirectory(getattr(options, "dataDir", None) or defaultDataDir())
    except InvalidSettings as error:
        raise UsageError(str(error)) from None


def becomeOwner(path: Path) -> None:
    """Let root become, for good, the user who controls *path*, and whose symbolic links may be followed."""
    if not isPrivileged():
        return
    try:
        user = controllingUser(path)
    except UnsafePath as error:
        raise CommandFailed(
            f"root can't use the data directory {path} safely: {error.filename}: {error.strerror}; run this as the "
            "directory's owner"
        ) from None
    except OSError as error:
        raise CommandFailed(f"can't read {path}: {error.strerror}") from None
    if user == 0:
        return
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        os.setgroups([])
        os.setgid(_NO_GROUP)
    else:
        os.initgroups(entry.pw_name, entry.pw_gid)
        os.setgid(entry.pw_gid)
    os.setuid(user)

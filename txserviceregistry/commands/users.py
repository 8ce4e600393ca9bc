"""``service-registry-users``: manages the users of a registry. Keys go to stdout, messages to stderr."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
from twisted.logger import globalLogBeginner
from twisted.python.usage import UsageError as WrongOptions

from ..clock import useMonotonic
from ..registry.datadir import DataDirectory, DataDirectoryError
from ..registry.identity import Identity, InvalidUser, checkUser, keyMatches, newKey
from ..registry.roles import KINDS, NAMES, Role, checkPrefix
from ..registry.stores.interfaces import IStore, NoSuchObject, ObjectExists, StoreError, UserRecord
from ..registry.stores.sqlite.store import SqliteStore
from ..util.fields import escaped
from .console import (
    CommandFailed,
    UsageError,
    checkOutput,
    dropOutput,
    runConsole,
    runReactor,
    show,
    tell,
    typeOf,
    whyNotWritten,
)
from .stores import ETCD, ETCD_OPTIONS, DataParser, becomeOwner, checkStore, dataDirectory, etcdStore

_NAME = "service-registry-users"

_DESCRIPTION = """\
Manages the users of a service registry, whether it runs or not. The default of
the data directory is RAXSR_DATA_DIR or ~/.local/state/txserviceregistry.
"""

_EXAMPLES = f"""\
examples:
  {_NAME} add joe                    a user with a new tenant
  {_NAME} add jim --tenant 2         a user of tenant 2
  {_NAME} add joe >joe.env           the key in a file, for systemd or docker
  {_NAME} add monitor --tenant 1 --role read
  {_NAME} update joe --role write --services web- --configuration /production/web
  {_NAME} --data-dir /srv/registry list
  {_NAME} rotate joe                 a new key; the old one becomes invalid
  {_NAME} list --store etcd --etcd http://h1:2379,http://h2:2379

The key is shown once, as the environment variables RAXSR_USERNAME=… and
RAXSR_API_KEY=… that programs read. It is valid if the exit code is 0; if it
can't be written, nothing is changed. Exit codes: 0 success, 1 failure, 2 wrong
usage. Run by root, this works as the data directory's owner.

Every user can read everything in the tenant. A user with the role write and
prefixes can only change objects that match one of them, and none of a kind
without a prefix; '' matches all objects of a kind.
"""

_ONCE = (
    "The key is shown only now: give it to programs as these environment variables, or as username and api_key under "
    "[credentials] in ~/.raxrc."
)
_MATCHING = {
    "services": "services whose ids begin with this",
    "configuration": "this key and those below it",
    "locks": "locks whose names begin with this",
}


def main() -> int:
    return runConsole(_NAME, _run)


def _parser() -> DataParser:
    where = DataParser(add_help=False, argument_default=argparse.SUPPRESS)
    where.addDataDir()
    where.add_argument("--store", choices=("sqlite", ETCD), help="the registry's store (default: sqlite)")
    for option in ETCD_OPTIONS:
        shown = option.help[0].lower() + option.help[1:].rstrip(".")
        where.add_argument(
            f"--{option.name}",
            dest=option.name,
            type=typeOf(option.parse),
            metavar=option.name.rpartition("-")[2].upper(),
            help=shown + (f" (default: {option.default})" if option.default else ""),
        )
    parser = DataParser(prog=_NAME, description=_DESCRIPTION, epilog=_EXAMPLES, parents=[where])
    actions = parser.add_subparsers(title="actions", metavar="add | update | list | remove | rotate", required=True)
    for work, name, help in (
        (_Users.add, "add", "add a user, and print the API key"),
        (_Users.update, "update", "replace a user's role and prefixes"),
        (_Users.list, "list", "list users, their tenants and roles"),
        (_Users.remove, "remove", "remove a user, and revoke all auth tokens"),
        (_Users.rotate, "rotate", "replace a user's API key, and print the new one"),
    ):
        action = actions.add_parser(name, parents=[where], help=help, description=f"{help[0].upper()}{help[1:]}.")
        action.set_defaults(work=work)
        if name != "list":
            action.add_argument("name", metavar="NAME", help="the user's name")
        if name == "add":
            action.add_argument("--tenant", metavar="ID", help="number of the tenant (default: an unused one)")
        if name in ("add", "update"):
            shown = f"read changes nothing (add: default {NAMES[0]})"
            action.add_argument("--role", choices=NAMES, required=name == "update", default=NAMES[0], help=shown)
            for kind in KINDS:
                prefix = typeOf(partial(checkPrefix, kind))
                shown = f"limit changes to {_MATCHING[kind]}; repeatable"
                action.add_argument(f"--{kind}", metavar="PREFIX", action="append", type=prefix, default=[], help=shown)
    return parser


def _run() -> int:
    from twisted.internet import reactor as installed

    options = _parser().parseWords()
    reactor: Any = installed
    useMonotonic(reactor)
    # Errors are raised, and not logged.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    directory, given = dataDirectory(options), vars(options)
    kind = given.get("store", "sqlite")
    etcd = {option.name: given.get(option.name, option.defaultValue) for option in ETCD_OPTIONS}
    where = f"etcd below {etcd['etcd-prefix']}" if kind == ETCD else str(directory.path)
    if "role" in options:
        try:
            options.role = Role(options.role, options.services, options.configuration, options.locks)
        except ValueError as error:
            raise UsageError(str(error)) from None

    async def working() -> None:
        if "tenant" in options:
            # Before a store is made, which would have no users.
            checkUser(options.name, options.tenant)
        if options.work in (_Users.add, _Users.rotate):
            with _showing(options.name):
                checkOutput()
        checkStore(kind, given)
        # Only root may be able to read its files.
        makeShared = etcdStore(etcd, reactor) if kind == ETCD else None
        becomeOwner(directory.path)
        directory.checkOwners()
        isNew = makeShared is None and not directory.hasStore()
        if isNew and directory.isTaken():
            how = "over etcd, use --store etcd with --etcd; the users of a memory store can't be changed"
            raise CommandFailed(f"the registry over {directory.path} has no sqlite store: {how}")
        if isNew and options.work is not _Users.add:
            raise CommandFailed(f"there is no registry in {directory.path}; its first start or {_NAME} add creates it")
        if isNew:
            directory.make()
        store: IStore = SqliteStore(directory.storePath, reactor=reactor) if makeShared is None else makeShared()
        await store.open()
        try:
            if isNew:
                tell(f"There was no registry in {directory.path}; its store was created. Its start adds no other user.")
            identity = Identity(store, clock=reactor)
            await options.work(_Users(options, identity, directory, where, makeShared is not None))
        finally:
            await store.close()

    try:
        runReactor(reactor, working)
    except (InvalidUser, WrongOptions) as error:
        raise UsageError(str(error)) from None
    except ObjectExists:
        raise CommandFailed(f'the user "{options.name}" already exists; rotate replaces its key') from None
    except NoSuchObject:
        raise CommandFailed(f'there is no user "{options.name}" in {where}') from None
    except (DataDirectoryError, StoreError) as error:
        raise CommandFailed(str(error)) from None
    return 0


@attrs.frozen
class _Users:
    """The users of a registry whose store is open. It is called *where*, and not in the *directory* if it is shared."""

    options: argparse.Namespace
    identity: Identity
    directory: DataDirectory
    where: str
    isShared: bool

    async def _user(self, name: str) -> UserRecord | None:
        return next((user for user in await self.identity.listUsers() if user.name == name), None)

    async def _credentials(self) -> tuple[str, str] | None:
        """The credentials that programs on this machine use, if they are not those of a registry with another store."""
        found = self.directory.credentials()
        if found is None or not self.isShared:
            return found
        user = await self._user(found[0])
        return found if user is not None and keyMatches(found[1], user.keyHash) else None

    async def add(self) -> None:
        if await self._user(self.options.name) is not None:
            raise ObjectExists(self.options.name)
        with _shownKey(self.options.name) as key:
            user, _ = await self.identity.addUser(self.options.name, self.options.tenant, key, self.options.role)
        tell(f'User "{user.name}" of tenant {user.tenant} has been added. {_ONCE}')

    async def update(self) -> None:
        user = await self.identity.changeRole(self.options.name, self.options.role)
        role = _described(user.role)
        tell(f'User "{user.name}" of tenant {user.tenant} has the role {role}. It counts within a second.')

    async def list(self) -> None:
        found = await self.identity.listUsers()
        if not found:
            tell(f"No users exist in {self.where}; {_NAME} add creates one.")
            return
        width = max(len("name"), *(len(user.name) for user in found))
        rows = ((user.name, user.tenant, _described(user.role)) for user in found)
        for name, tenant, role in [("name", "tenant", "role"), *rows]:
            print(escaped(f"{name:{width}}  {tenant:10}  {role}"))

    async def remove(self) -> None:
        name, raxrc = self.options.name, self.directory.raxrcPath
        credentials, users = await self._credentials(), await self.identity.listUsers()
        left = [user for user in users if user.name != name]
        if len(left) == len(users):
            raise NoSuchObject(name)
        isInRaxrc = credentials is not None and (credentials[0] == name or not left)
        if isInRaxrc:
            # First: with them the next start would create a user in a store without users.
            self.directory.keepCredentials(None, None)
        try:
            await self.identity.removeUser(name)
        except BaseException:
            if credentials is not None and isInRaxrc:
                self.directory.keepCredentials(*credentials)
            raise
        (tenant,) = (user.tenant for user in users if user.name == name)
        lost = f"its key and auth tokens are invalid. The data of tenant {tenant} is unchanged"
        tell(f'User "{name}" has been removed; {lost}.')
        if isInRaxrc:
            tell(f"The credentials in {raxrc} were removed: programs on this machine need those of another user.")
        if not left:
            until = f"until {_NAME} add creates one"
            tell(f"It was the last user: all requests will be rejected, also after a restart, {until}.")

    async def rotate(self) -> None:
        # First, because this may fail.
        credentials = await self._credentials()
        if await self._user(self.options.name) is None:
            raise NoSuchObject(self.options.name)
        with _shownKey(self.options.name) as key:
            user, _ = await self.identity.rotate(self.options.name, key)
        tell(f'User "{user.name}" has a new API key; the old one and all auth tokens are invalid. {_ONCE}')
        if credentials is not None and credentials[0] == user.name:
            self.directory.keepCredentials(user.name, key)
            tell(f"{self.directory.raxrcPath} has the new key.")
        tell(
            "Programs that read the key from a file use the new one as soon as it is there. Restart all others: their "
            "requests are rejected, and their services expire."
        )


def _described(role: Role) -> str:
    prefixes = [f"--{kind} {shlex.quote(each)}" for kind, those in role.prefixes().items() for each in those]
    return " ".join([role.name, *prefixes])


@contextmanager
def _shownKey(name: str) -> Iterator[str]:
    """A new API key, which is shown before it is stored: if it can't be shown, nothing is changed."""
    key = newKey()
    with _showing(name):
        # Names and keys need no quotes in a shell, systemd or docker.
        show(f"RAXSR_USERNAME={name}\nRAXSR_API_KEY={key}")
    try:
        yield key
    except BaseException as error:
        isRefused = isinstance(error, StoreError)
        why = "is invalid: it could not be stored" if isRefused else "may not have been stored: try again"
        tell(f'{_NAME}: the API key of user "{name}" that was printed {why}')
        raise


@contextmanager
def _showing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        dropOutput()
        written = f'can\'t write the API key of user "{name}" to the standard output: {whyNotWritten(error)}'
        raise CommandFailed(f"{written}. The user was not changed") from None


if __name__ == "__main__":
    sys.exit(main())

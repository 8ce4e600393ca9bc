"""The user of a new registry, whose credentials are in the ``raxrc`` of its data directory."""

from __future__ import annotations

from ..util.logs import Logger
from .datadir import DataDirectory
from .identity.apikeys import newKey
from .identity.identity import Identity
from .stores.interfaces import ObjectExists

#: The name of the user.
NAME = "local"

_log = Logger()


def firstCredentials(directory: DataDirectory) -> tuple[str, str]:
    """The name and the API key in the ``raxrc``, which get there if they are not."""
    credentials = directory.credentials()
    if credentials is None:
        credentials = NAME, newKey()
        directory.keepCredentials(*credentials)
    return credentials


async def makeFirstUser(identity: Identity, directory: DataDirectory, *, isNew: bool) -> None:
    """
    Make a user with the credentials in the ``raxrc``, in a store without users. If the store is not new and there are
    no credentials, its users were removed, which is not undone.
    """
    if await identity.listUsers():
        return
    areThere = directory.credentials() is not None
    if not (isNew or areThere):
        _log.warn("No users exist; all requests will be rejected (service-registry-users add creates one)")
        return
    name, key = firstCredentials(directory)
    try:
        await identity.addUser(name, key=key)
    except ObjectExists:
        # Another registry over the same store has added it, with another key.
        if not areThere:
            directory.forgetCredentials()
    else:
        _log.info("Created user {user}; the API key is in {raxrc}", user=name, raxrc=str(directory.raxrcPath))

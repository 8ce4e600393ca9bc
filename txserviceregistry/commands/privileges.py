"""Dropping root's privileges before work in a directory of another user."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from ..util.files import UnsafePath, controllingUser, isPrivileged
from .outcome import CommandFailed

# "nogroup", for a user without a passwd entry. Root may have given the directory a group that its owner is not in.
_NO_GROUP = 65534


def becomeOwner(path: Path) -> None:
    """
    If root runs this process and another user controls *path*, become that user for good: this process may follow that
    user's symbolic links. :class:`CommandFailed` if several users control it.
    """
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

"""
The notifications of a wrapped command, passed on to the service manager: systemd takes those of the main process only,
which is the wrapper. So the command gets another socket.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from collections.abc import MutableMapping
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

from ..process import Notifier

_SOCKET = b"NOTIFY_SOCKET"
_LARGEST = 65536
_CREDENTIALS = struct.Struct("iii")
# The wrapper stays the main process, and file descriptors are not passed on.
_DROPPED = (b"MAINPID", b"MAINPIDFDID", b"FDSTORE", b"FDSTOREREMOVE", b"FDNAME", b"FDPOLL", b"BARRIER")


@implementer(IReadDescriptor)
class NotificationRelay:
    """
    Receives the notifications of the processes of this user, and of root.

    :param environment: the command's; its ``NOTIFY_SOCKET`` is replaced.
    """

    def __init__(self, reactor: Any, environment: MutableMapping[bytes, bytes]) -> None:
        name = f"service-registry-wrapper-{secrets.token_hex(8)}"
        self._notifier = Notifier({"NOTIFY_SOCKET": os.fsdecode(environment[_SOCKET])})
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # Linux removes a name of this kind with its socket.
        self._socket.bind(f"\0{name}")
        environment[_SOCKET] = f"@{name}".encode()
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "notifications"

    def connectionLost(self, reason: object) -> None:
        self._socket.close()

    def doRead(self) -> None:
        try:
            # There is room for credentials only: the system closes descriptors that come with them.
            data, extra, _, _ = self._socket.recvmsg(_LARGEST, socket.CMSG_SPACE(_CREDENTIALS.size))
        except OSError:
            return
        users = [_CREDENTIALS.unpack(each)[1] for _, kind, each in extra if kind == socket.SCM_CREDENTIALS]
        states = [line for line in data.split(b"\n") if line and line.partition(b"=")[0] not in _DROPPED]
        if states and users and users[0] in (0, os.geteuid()):
            self._notifier.send(*states)

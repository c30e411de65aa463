"""gunicorn's configuration for a plugin that counts its work. `gunicorn -c python:tests.kernel.counting`.

Each act is a line of the file `$COUNTS`, with the name of its thread: a transaction of nftables, a netlink message that
Python sends, a request to Docker's API, a flush of a file to the disk.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import plugin.daemon.plugin  # here, and so not in each new worker  # noqa: F401
from plugin.docker import request
from plugin.gunicorn_conf import *  # noqa: F403
from plugin.kernel import netlink as nl
from plugin.nftables.client import NftClient

TRANSACTION, MESSAGE, REQUEST, FLUSH = "transaction", "netlink message", "request", "fsync"
#: A netfilter socket that is opened, and closed again: see `plugin.kernel.netlink.kept_socket`.
SOCKET = "netfilter socket"
_FILE = os.open(os.environ["COUNTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
Call = Callable[..., Any]


def _note(what: str, count: int = 1) -> None:
    line = f"{threading.current_thread().name}\t{what}\n"
    os.write(_FILE, line.encode() * count)


def _counted(call: Call, what: str) -> Call:
    def counting(*args: Any, **kwargs: Any) -> Any:
        _note(what)
        return call(*args, **kwargs)

    return counting


def _sending(call: Call) -> Call:
    def sending(self: socket.socket, data: Any, *args: Any) -> Any:
        if self.family == socket.AF_NETLINK:
            _note(MESSAGE, _messages(bytes(data)))
        return call(self, data, *args)

    return sending


def _messages(data: bytes) -> int:
    """Return the number of messages in the data of one write (struct nlmsghdr), without a batch's two ends."""
    count = at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        count += kind not in (16, 17)  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
        at += max(16, (length + 3) & ~3)
    return count


def _elements(call: Call) -> Call:
    def send(self: NftClient, change: Any, timed: Any = (), *args: Any, **kwargs: Any) -> Any:
        if change or timed:
            _note(TRANSACTION)
        return call(self, change, timed, *args, **kwargs)

    return send


def _opening(call: Call) -> Call:
    def opening(protocol: int = nl.NETLINK_NETFILTER) -> socket.socket:
        if protocol == nl.NETLINK_NETFILTER:
            _note(SOCKET)
        found: socket.socket = call(protocol)
        return found

    return opening


NftClient.run = _counted(NftClient.run, TRANSACTION)  # type: ignore[method-assign]
NftClient.send = _elements(NftClient.send)  # type: ignore[method-assign]
for _name in ("send", "sendall", "sendto"):
    setattr(socket.socket, _name, _sending(getattr(socket.socket, _name)))
nl.open_socket = _opening(nl.open_socket)
request._response = _counted(request._response, REQUEST)  # type: ignore[assignment]
os.fsync = _counted(os.fsync, FLUSH)

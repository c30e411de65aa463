"""Make sockets in other network namespaces.

A socket always belongs to the namespace in which it was created. So the agent enters a namespace only to create
sockets, and then returns to an empty namespace of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterator

NEWNET = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)
#: a descriptor of the agent's own namespace
_home: list[int] = []


class NoSuchNamespace(Exception):
    """The requested namespace does not exist."""


def leave_for_home() -> None:
    """Leave the starter's namespace permanently, for an empty one."""
    if libc.unshare(NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    _home[:] = [os.open("/proc/self/ns/net", os.O_RDONLY)]


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """Create sockets of this block in the namespace of that file. The block must not await."""
    try:
        there = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NoSuchNamespace(f"no network namespace at {netns}: {error.strerror}") from error
    try:
        if libc.setns(there, NEWNET):
            raise NoSuchNamespace(f"cannot enter {netns}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(there)
    try:
        yield
    finally:
        libc.setns(_home[0], NEWNET)


def family(address: str) -> socket.AddressFamily:
    """Return the address family, by the form of the address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET

"""Making sockets in other network namespaces.

A socket belongs for ever to the namespace it was made in, so the agent enters a namespace just to
make sockets and goes home again, home being an empty namespace of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterator

NEWNET = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)
#: a descriptor of the namespace to go home to
_home: list[int] = []


class NoSuchNamespace(Exception):
    """The namespace to work in is not there."""


def leave_for_home() -> None:
    """Leave the starter's namespace for an empty one, once and for all."""
    if libc.unshare(NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    _home[:] = [os.open("/proc/self/ns/net", os.O_RDONLY)]


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """Sockets made in this block belong to the namespace of that file.  Never await in it."""
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
    """By the look of the address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET

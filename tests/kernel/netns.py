"""Make network namespaces, and enter them with the test's own thread.

A socket belongs to the namespace it was created in, so `with inside(path): nft = KernelTable(mark)` is a firewall of
that namespace, to be used from anywhere; code that opens sockets or /proc/sys/net later must be called inside.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import TypeVar

from tests.lab import NamedNetns
from tests.lab.claims import Claim

CLONE_NEWNET = 0x40000000
T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def _returning() -> Iterator[None]:
    """Return this thread to its own network namespace at the end."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        try:
            _enter(home)
        finally:
            os.close(home)


@contextmanager
def inside(path: str) -> Iterator[None]:
    """Put this thread, and the threads and processes it starts meanwhile, into the namespace of that file."""
    with _returning():
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there)
        finally:
            os.close(there)
        yield


@contextmanager
def nowhere() -> Iterator[None]:
    """Put this thread into a new, empty network namespace."""
    with _returning():
        if _libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        yield


def in_thread(path: str, work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own inside the namespace: for code that keeps one socket per thread."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with inside(path):
                found.append(work())
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join(300)
    if thread.is_alive():
        raise TimeoutError("the work in the namespace is not done after 300 s")
    if failed:
        raise failed[0]
    return found[0]


@contextmanager
def empty() -> Iterator[NamedNetns]:
    """Make a network namespace with nothing in it, and remove it at the end."""
    claim = Claim("n")
    claim.record.netns.append(claim.name)
    claim.save()
    try:
        made = NamedNetns(claim.name)
        made.make()
        yield made
    finally:
        claim.release()

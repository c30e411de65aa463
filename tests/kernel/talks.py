"""Hold conversations over real sockets while the policy changes, and find which of them continue.

with Talks() as talks:
    talks.open("old", "tcp", client_netns, server_netns, "2001:db8:1::2", 5432)
    ...
    assert talks.going() == {"old"}
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from tests.kernel.netns import inside
from tests.lab import NamedNetns

Proto = Literal["tcp", "udp"]


@dataclass
class Talk:
    """Both ends of a conversation.

    Over UDP each knows the other, as after a first question and its answer.
    """

    proto: Proto
    client: socket.socket
    server: socket.socket

    def says(self, by_client: bool, word: bytes) -> None:
        with contextlib.suppress(OSError):  # a reset or a refusal came, or the host's own rules say no
            (self.client if by_client else self.server).send(word)

    def hears(self, by_client: bool, word: bytes, *, wait: bool = False) -> bool:
        """Return True if that end has received the message by now, or (`wait`) receives it soon."""
        sock = self.client if by_client else self.server
        sock.settimeout(3 if wait else 0)
        heard = b""
        try:
            while word not in heard:
                got = sock.recv(4096)
                if not got:
                    return False
                heard += got
        except OSError:
            return False
        return True


class Talks:
    """Conversations by name, and a direct one, which is read last."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.all: dict[str, Talk] = {}

    def __enter__(self) -> Talks:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(
        self,
        name: str,
        proto: Proto,
        client: NamedNetns,
        server: NamedNetns,
        address: object,
        port: int,
        *,
        source: object = "",
    ) -> None:
        """Open a conversation, which must be permitted. `address` is the server's; `source`: one of the client's."""
        family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
        kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
        ears, mouth = self._made(server, family, kind), self._made(client, family, kind)
        ears.bind((str(address), port))
        if proto == "tcp":
            ears.listen()
        if source:
            mouth.bind((str(source), 0))
        mouth.settimeout(3)
        mouth.connect((str(address), port))
        ears.settimeout(3)
        if proto == "tcp":
            other = self._stack.enter_context(ears.accept()[0])
            ears.close()
        else:
            mouth.send(b"hello")
            ears.connect(ears.recvfrom(99)[1])
            ears.send(b"hello")
            assert mouth.recv(99) == b"hello"
            other = ears
        self.all[name] = Talk(proto, mouth, other)

    def through(
        self, name: str, client: NamedNetns, server: NamedNetns, to: tuple[object, int], at: tuple[object, int]
    ) -> None:
        """Open a TCP connection over IPv4 to the address and port `to`, which leads to the server's own `at`."""
        ears, mouth = (self._made(netns, socket.AF_INET, socket.SOCK_STREAM) for netns in (server, client))
        ears.bind((str(at[0]), at[1]))
        ears.listen()
        for sock in (ears, mouth):
            sock.settimeout(3)
        mouth.connect((str(to[0]), to[1]))
        self.all[name] = Talk("tcp", mouth, self._stack.enter_context(ears.accept()[0]))

    def _made(self, netns: NamedNetns, family: int, kind: int) -> socket.socket:
        with inside(netns.path):
            sock = self._stack.enter_context(socket.socket(family, kind))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return sock

    def going(self, witness: str) -> set[str]:
        """Return those in which the server's message arrives, and then the client's.

        On one processor packets are delivered in the order in which they are sent; when the witness, which must
        continue, has received its message, no other conversation will receive an earlier one. (Before the other end has
        acknowledged, TCP resends by itself; so a message that did not arrive at once counts as lost.)
        """
        going = set(self.all)
        with one_processor():
            for by_client in (False, True):
                word = os.urandom(8)
                for name in going - {witness}:
                    self.all[name].says(by_client, word)
                self.all[witness].says(by_client, word)
                assert self.all[witness].hears(not by_client, word, wait=True), f"{witness} must go on"
                going = {name for name in going if name == witness or self.all[name].hears(not by_client, word)}
        return going


@contextmanager
def one_processor() -> Iterator[None]:
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)

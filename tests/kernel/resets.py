"""A server that resets each connection, and a client that retries from the same port at once."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.kernel.netns import inside
from tests.kernel.site import Site
from tests.lab import NamedNetns

_ports = itertools.cycle(range(40000, 60000))

RESETS = """
import socket, struct, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.create_server((sys.argv[1], int(sys.argv[2])), family=family)
print("ready", flush=True)
while True:
    c, _ = s.accept()
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    c.send(b"hello")
    c.recv(9)
    c.close()
"""


@contextmanager
def resetting(netns: NamedNetns, address: object, port: int) -> Iterator[None]:
    """Run a server that resets each connection, like one that closes before it has read all data."""
    argv = [sys.executable, "-c", RESETS, str(address), str(port)]
    server = netns.popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == "ready\n"
        yield
    finally:
        server.kill()
        server.communicate(timeout=30)


def was_reset(client: NamedNetns, server: NamedNetns, address: object, port: int) -> tuple[str, int]:
    """Let a client open a connection that the server resets at once; return the client's address and port."""
    family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
    with resetting(server, address, port), inside(client.path), socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect((str(address), port))
        here = sock.getsockname()
        sock.send(b"bye")
        with suppress(ConnectionResetError):
            while sock.recv(9):
                pass
    return here[0], here[1]


def served(site: Site, address: object, port: int, times: int, sport: int = 0) -> int:
    """Return how many of these connections, one after the other from the same port, the server answers."""
    answered, sport = 0, sport or next(_ports)
    for _ in range(times):
        family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
        with inside(site.wan.path), socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", sport))
            sock.settimeout(0.3)
            with suppress(TimeoutError):
                sock.connect((str(address), port))
                answered += sock.recv(5) == b"hello"
                sock.send(b"bye")
                with suppress(ConnectionResetError):
                    sock.recv(1)
    return answered

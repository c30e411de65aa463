"""Which ports of the host somebody began to listen on just now, by sock_diag(7).

docker-proxy listens on a published port before Docker tells of the container, and on a port that nobody may have known
before. So while a container starts, what has just come is taken for its published ports, until Docker lists them.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from plugin import netlink as nl
from plugin.model import PROTO_NUMBER, Proto, Published

_SOCK_DIAG, _BY_FAMILY = 4, 20
#: linux/tcp_states.h: TCP_CLOSE (UDP sockets without a peer), TCP_LISTEN
_STATES: dict[Proto, int] = {"tcp": 1 << 10, "udp": 1 << 7}
#: Seconds: who has listened for longer is not a starting container's. Docker takes less from the proxy to its event.
FRESH = 5.0


def listening() -> set[Published]:
    """Everything that is listened on in this network namespace, loopback left out. Raises OSError."""
    found: set[Published] = set()
    with nl.open_socket(_SOCK_DIAG) as sock:
        for proto, states in _STATES.items():
            for family in (socket.AF_INET, socket.AF_INET6):
                # struct inet_diag_req_v2: family, protocol, extensions, padding, states, and a socket's identity (any).
                asked = struct.pack("=BBBBI", family, PROTO_NUMBER[proto], 0, 0, states) + bytes(48)
                for _, body in nl.request(sock, _BY_FAMILY, nl.NLM_F_DUMP, asked):
                    (port,) = struct.unpack_from("!H", body, 4)
                    host = ip_address(body[8 : 8 + (4 if family == socket.AF_INET else 16)])
                    if isinstance(host, IPv6Address) and host.ipv4_mapped:
                        host = host.ipv4_mapped
                    if port and not host.is_loopback:
                        found.add(Published(proto, host, port, port))
    return found


class Listeners:
    """Thread-safe. `listed` is `listening`."""

    def __init__(
        self, listed: Callable[[], set[Published]] = listening, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._listed = listed
        self._clock = clock
        self._lock = threading.Lock()
        self._since: dict[Published, float] | None = None

    def fresh(self) -> set[Published]:
        """What came within the last FRESH seconds, as far as was seen: call it about every second. Raises OSError."""
        with self._lock:
            now, there = self._clock(), self._listed()
            if self._since is None:  # who was there before us is not judged
                self._since = dict.fromkeys(there, now - FRESH)
            self._since = {each: self._since.get(each, now) for each in there}
            return {each for each, since in self._since.items() if now - since < FRESH}

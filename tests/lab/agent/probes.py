"""Send probes: one connection, datagram or echo request each, and a verdict on the answer.

Verdicts: "open"; "refused" (reset, or an ICMP error); "silent" (nothing came);
"unsent" (this namespace could not send it: no route, no such source address).
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import struct
import time
from typing import Any

from .namespaces import family, inside
from .sctp import sctp_packet

IP_RECVERR, IPV6_RECVERR = 11, 25
Answer = dict[str, Any]


def answer(verdict: str, began: float, detail: str = "", **more: Any) -> Answer:
    """Return the answer to one probe; `began` is a monotonic time."""
    return {"verdict": verdict, "detail": detail, "ms": round((time.monotonic() - began) * 1000, 3), **more}


def refusal(error: OSError, began: float, local: bool) -> Answer:
    """Return the answer that an error means: refused by a remote host, or never sent."""
    name = errno.errorcode.get(error.errno or 0, str(error))
    if error.errno == errno.EPERM:  # this namespace's own rules dropped it on its way out
        return answer("silent", began, name)
    return answer("unsent" if local else "refused", began, name)


def prepare(netns: str, proto: str, target: str, source: str | None, source_port: int) -> socket.socket:
    """Return a non-blocking socket for a probe."""
    fam = family(target)
    kinds = {
        "tcp": (socket.SOCK_STREAM, 0),
        "udp": (socket.SOCK_DGRAM, 0),
        "sctp": (socket.SOCK_RAW, 132),
        "ping": (socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if fam == socket.AF_INET6 else socket.IPPROTO_ICMP),
    }
    with inside(netns):
        made = socket.socket(fam, *kinds[proto])
    made.setblocking(False)
    if source or source_port:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((source or ("::" if ":" in target else "0.0.0.0"), source_port))
    return made


async def probe(
    netns: str,
    proto: str,
    target: str,
    port: int,
    timeout: float,
    linger: float,
    source: str | None = None,
    source_port: int = 0,
) -> Answer:
    """Send one probe; `linger` is the time in seconds that a TCP server has to send something."""
    began = time.monotonic()
    local = True  # an error before anything has been sent is not an answer
    try:
        with prepare(netns, proto, target, source, source_port) as sock:
            if proto == "tcp":
                hear_errors(sock)
                code = sock.connect_ex((target, port))
                if code and code != errno.EINPROGRESS:
                    raise OSError(code, "")
            else:
                sock.connect((target, 0 if proto in ("ping", "sctp") else port))
            local = False
            if proto == "tcp":
                return await tcp(sock, target, port, began, timeout, linger)
            work = {"udp": udp, "ping": ping, "sctp": sctp}[proto]
            return await asyncio.wait_for(work(sock, target, port, began), timeout)
    except TimeoutError:
        return answer("silent", began)
    except OSError as error:
        return refusal(error, began, local)


async def tcp(sock: socket.socket, target: str, port: int, began: float, timeout: float, linger: float) -> Answer:
    """Connect, and receive the server's first data. Without `linger` a completed handshake is "open"."""
    loop = asyncio.get_running_loop()
    try:
        await asyncio.wait_for(loop.sock_connect(sock, (target, port)), timeout)
        connected = time.monotonic()
        sock.getpeername()
    except TimeoutError:
        raise
    except OSError as error:
        # Not connected at all: an ICMP error that arrives while connect() has the socket locked does not
        # end it (the kernel would send another SYN a second later), but it is in the queue.
        code = [error.errno, *(code for code, _ in errors(sock))][-1]
        # A reset that answers the SYN is ECONNREFUSED; with another one there was a connection before it.
        if code in (errno.ECONNRESET, errno.ENOTCONN) and not linger:
            return answer("open", began, "reset at once")
        raise OSError(code, "") from error
    try:
        received = await asyncio.wait_for(loop.sock_recv(sock, 4096), linger) if linger else b"-"
    except TimeoutError:
        received = b"-"
    except ConnectionResetError:
        received = b""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT
    found = answer("open" if received else "refused", began, "closed at once" if not received else "")
    found["ms"] = round((connected - began) * 1000, 3)
    return found | (heard(received) if received not in (b"", b"-") else {})


async def udp(sock: socket.socket, target: str, port: int, began: float) -> Answer:
    """Send a datagram; any reply is "open", ICMP is "refused"."""
    loop = asyncio.get_running_loop()
    hear_errors(sock)
    await loop.sock_sendall(sock, b"lab")
    received = await loop.sock_recv(sock, 4096)
    return answer("open", began) | heard(received)


def heard(received: bytes) -> Answer:
    """Parse the JSON in which the lab's own servers introduce themselves; of other servers keep the text."""
    text = received.decode(errors="replace").strip()
    try:
        intro = json.loads(text)
        return {"detail": intro["server"], "peer": intro["peer"], "peer_port": intro["peer_port"]}
    except (ValueError, KeyError, TypeError):
        return {"detail": text[:500]}


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


async def ping(sock: socket.socket, target: str, port: int, began: float) -> Answer:
    """Send an echo request; a reply is "open", an ICMP error about it "refused"."""
    loop = asyncio.get_running_loop()
    six = ":" in target
    ident = os.urandom(2)
    request, reply, errors = (128, 129, range(1, 5)) if six else (8, 0, (3, 11, 12))
    body = ident + b"\0\1" + b"docker-fw lab"
    total = 0 if six else checksum(bytes((request, 0, 0, 0)) + body)  # the kernel does ICMPv6's
    await loop.sock_sendall(sock, struct.pack("!BBH", request, 0, total) + body)
    while True:
        received = await loop.sock_recv(sock, 4096)
        received = received if six else received[(received[0] & 15) * 4 :]
        if received[0] == reply and received[4:6] == ident:
            return answer("open", began)
        if received[0] in errors and body in received:
            return answer("refused", began, f"ICMP type {received[0]} code {received[1]}")


async def sctp(sock: socket.socket, target: str, port: int, began: float) -> Answer:
    """Send INIT: INIT-ACK is "open", ABORT or ICMP "refused"."""
    loop = asyncio.get_running_loop()
    own = 32768 + int.from_bytes(os.urandom(2), "big") % 28000
    six = ":" in target
    hear_errors(sock)
    init = struct.pack("!IIHHI", 1, 65536, 1, 1, 1)
    await loop.sock_sendall(sock, sctp_packet(own, port, 0, 1, 0, init))
    while True:
        try:
            received = await loop.sock_recv(sock, 4096)
        except OSError:
            # The kernel reports errors about any SCTP packet to that address to every raw socket.
            if any(about.startswith(struct.pack("!HH", own, port)) for _, about in errors(sock)):
                raise
            continue
        received = received if six else received[(received[0] & 15) * 4 :]
        if len(received) > 12 and struct.unpack("!HH", received[:4]) == (port, own):
            return answer("open" if received[12] == 2 else "refused", began, f"chunk {received[12]}")


def hear_errors(sock: socket.socket) -> None:
    """Make the kernel keep the ICMP errors about this socket's packets; see `errors`."""
    six = sock.family == socket.AF_INET6
    level, option = (socket.IPPROTO_IPV6, IPV6_RECVERR) if six else (socket.IPPROTO_IP, IP_RECVERR)
    sock.setsockopt(level, option, 1)


def errors(sock: socket.socket) -> list[tuple[int, bytes]]:
    """Return and remove the kept errors: each one's number, and the packet it is about, from its ports on."""
    found: list[tuple[int, bytes]] = []
    while True:
        try:
            about, notes, _, _ = sock.recvmsg(512, 512, socket.MSG_ERRQUEUE)
        except OSError:
            return found
        found += [(struct.unpack("I", note[:4])[0], about) for _, _, note in notes]

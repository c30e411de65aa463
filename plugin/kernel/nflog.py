"""Packets that the kernel logs as it drops them (nfnetlink_log): the first bytes of each, and its links.

A group has one listener; a second one is refused. Layout: linux/netfilter/nfnetlink_log.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass

from plugin.kernel import netlink as nl

_SUBSYS = 4 << 8
_PACKET, _CONFIG = _SUBSYS | 0, _SUBSYS | 1
#: NFULA_CFG_CMD (NFULNL_CFG_CMD_BIND), _MODE (NFULNL_COPY_PACKET), _TIMEOUT, _QTHRESH
_CMD, _MODE, _TIMEOUT, _QTHRESH, _BIND, _COPY_PACKET = 1, 2, 4, 5, 1, 2
#: NFULA_PACKET_HDR, _MARK, _IFINDEX_INDEV, _IFINDEX_OUTDEV, _PAYLOAD
_HEADER, _MARK, _INDEV, _OUTDEV, _PAYLOAD = 1, 2, 4, 5, 9
#: Bytes of a packet: its addresses and ports, also after some IPv6 extension headers.
SNAPLEN = 128
#: The kernel reports this many packets at once, or fewer after this many hundredths of a second.
_AT_ONCE, _AFTER = 16, 10
#: NF_INET_LOCAL_IN: the packet was for the host itself.
LOCAL_IN = 1


class TakenError(OSError):
    """Another process listens to the group, or this process has no permission."""


@dataclass(frozen=True, slots=True)
class Logged:
    """A packet from its IP header on. `indev`, `outdev`: indices of links, 0 if there is none."""

    payload: bytes
    hook: int = 0
    indev: int = 0
    outdev: int = 0
    mark: int = 0


class NfLog:
    """Listens to a group from its creation to `close`. Raises TakenError, and other OSErrors of the kernel."""

    def __init__(self, group: int) -> None:
        #: Number of overruns: packets were not reported because the process did not read fast enough.
        self.lost = 0
        self._sock = nl.open_socket()
        try:
            # Packets that arrive too fast are lost, not kept; a few thousand packets wait here.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            self._bind(group)
            self._sock.settimeout(0.2)
        except OSError:
            self._sock.close()
            raise

    def close(self) -> None:
        """Leave the group."""
        self._sock.close()

    def read(self) -> list[Logged]:
        """Return the packets of one report; none if there was none for 0.2 s, or some were lost. Raises OSError."""
        try:
            data = self._sock.recv(1 << 18)
        except TimeoutError:
            return []
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self.lost += 1
            return []
        return [_read(body) for kind, _, body in nl.messages(data) if kind == _PACKET]

    def _bind(self, group: int) -> None:
        # One message: the kernel creates the listener and applies the settings to it.
        body = nl.nfgen(socket.AF_UNSPEC, group) + nl.attr(_CMD, bytes([_BIND]))
        body += nl.attr(_MODE, struct.pack("!IBx", SNAPLEN, _COPY_PACKET))
        body += nl.attr(_TIMEOUT, struct.pack("!I", _AFTER)) + nl.attr(_QTHRESH, struct.pack("!I", _AT_ONCE))
        try:
            nl.request(self._sock, _CONFIG, nl.NLM_F_ACK, body)
        except OSError as error:
            # The kernel returns EPERM if the group is another socket's, and EBUSY if it is this socket's own.
            if error.errno in (errno.EPERM, errno.EBUSY):
                raise TakenError(error.errno, os.strerror(error.errno)) from error
            raise


def _read(body: bytes) -> Logged:
    fields = nl.attributes(body[4:])
    header = fields.get(_HEADER, b"")
    return Logged(
        fields.get(_PAYLOAD, b""),
        header[2] if len(header) > 2 else 0,
        _number(fields.get(_INDEV)),
        _number(fields.get(_OUTDEV)),
        _number(fields.get(_MARK)),
    )


def _number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "big")

"""Build SCTP packets by hand: the kernel does not need to support the protocol."""

from __future__ import annotations

import struct

_CRC = [0] * 256
for _n in range(256):
    _c = _n
    for _ in range(8):
        _c = (_c >> 1) ^ (0x82F63B78 if _c & 1 else 0)
    _CRC[_n] = _c


def sctp_packet(source: int, target: int, tag: int, chunk: int, flags: int, body: bytes) -> bytes:
    """Return a packet with one chunk, and the CRC32c that connection tracking checks."""
    head = struct.pack("!HHI", source, target, tag)
    rest = struct.pack("!BBH", chunk, flags, 4 + len(body)) + body
    crc = 0xFFFFFFFF
    for byte in head + b"\0\0\0\0" + rest:
        crc = (crc >> 8) ^ _CRC[(crc ^ byte) & 0xFF]
    return head + struct.pack("<I", crc ^ 0xFFFFFFFF) + rest

"""docker-fw's capabilities: all but the needed ones are dropped at the start, for the process and all that it starts.

A managed plugin gets Docker's default capabilities in addition to those listed in `config.json`, and cannot refuse
them there. linux/capability.h, linux/prctl.h.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
from pathlib import Path

from plugin.model import FwError

log = logging.getLogger(__name__)
NET_BIND_SERVICE, NET_ADMIN, NET_RAW = 10, 12, 13
#: The capabilities that are kept, and the effect if one was not granted.
NEEDED = {
    NET_ADMIN: "",
    NET_BIND_SERVICE: "host ports below 1024 cannot be published on docker-fw networks",
    NET_RAW: "where dockerd uses iptables-legacy, its firewall drops traffic that labels allow",
}
_NAMES = {NET_BIND_SERVICE: "CAP_NET_BIND_SERVICE", NET_ADMIN: "CAP_NET_ADMIN", NET_RAW: "CAP_NET_RAW"}
_VERSION_3 = 0x20080522
_CAPBSET_READ, _CAPBSET_DROP, _SET_NO_NEW_PRIVS, _CAP_AMBIENT, _AMBIENT_CLEAR_ALL = 23, 24, 38, 47, 4


def keep() -> None:
    """Keep those of the granted capabilities that are needed.

    Call it before there is a second thread: each thread has its own capabilities. Raises FwError if CAP_NET_ADMIN is
    missing.
    """
    there = _permitted()
    if not there >> NET_ADMIN & 1:
        raise FwError(
            "CAP_NET_ADMIN is missing, without which there are no rules and no links; as a container: "
            "cap_add: [NET_ADMIN, NET_BIND_SERVICE, NET_RAW] (docker run --cap-add …), as in "
            "compose-examples/sidecar.yml; as a plugin: install it again and grant it"
        )
    for number, loss in NEEDED.items():
        if loss and not there >> number & 1:
            log.warning("%s is missing: %s", _NAMES[number], loss)
    needed = there & sum(1 << number for number in NEEDED)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0)
    # A program started by root gets all capabilities in the bounding set.
    bounding = (number for number in range(64) if libc.prctl(_CAPBSET_READ, number, 0, 0, 0) == 1)
    all(_done(libc.prctl(_CAPBSET_DROP, number, 0, 0, 0)) for number in bounding if not needed >> number & 1)
    low, high = needed & 0xFFFFFFFF, needed >> 32
    data = struct.pack("=6I", low, low, 0, high, high, 0)  # effective, permitted, inheritable
    _done(libc.capset(struct.pack("=Ii", _VERSION_3, 0), data))
    _done(libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _permitted() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapPrm:"))


def _done(status: int) -> bool:
    """Log a capability that cannot be dropped (no CAP_SETPCAP): that is no reason to leave containers without rules."""
    if status:
        log.warning("could not drop capabilities that docker-fw does not need: %s", os.strerror(ctypes.get_errno()))
    return not status

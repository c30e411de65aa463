"""The Docker engine that answers: its version, and whether docker-fw works on it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_OLDEST = (20, 10, 0)
#: Versions in which dockerd crashes when an endpoint of a network plugin stops being its container's gateway, so at
#: the latest when the container stops (moby#51554): it unlocks a mutex that is not locked.
_DIES = ((29, 0, 0), (29, 0, 3))


@dataclass(frozen=True, slots=True)
class Engine:
    """Docker's version ("28.5.2", "" if unknown) and its firewall backend (29 and newer: "nftables")."""

    version: str = ""
    backend: str = ""

    @property
    def major(self) -> int:
        """The first number of the version; 0 if unknown."""
        head = self.version.partition(".")[0]
        return int(head) if head.isascii() and head.isdigit() else 0


def refusal(engine: Engine) -> str:
    """Return why no container may join a docker-fw network on this engine; "" if it may.

    An endpoint that never was a gateway does no harm, so dockerd survives a refused start. Docker networks are
    protected all the same: their driver is not a plugin.
    """
    version = _numbers(engine)
    if version and _DIES[0] <= version < _DIES[1]:
        return (
            f"Docker {engine.version} crashes when a container on a network plugin's network stops (moby#51554): "
            "upgrade Docker to 29.0.3 or newer"
        )
    return ""


def unfit(engine: Engine) -> str:
    """Return why docker-fw does not work on this engine, and what to do; "" if it works, and for an unknown engine."""
    version = _numbers(engine)
    if version and version < _OLDEST:
        return f"Docker {engine.version} is older than docker-fw supports: upgrade Docker to 20.10 or newer"
    return refusal(engine)


def _numbers(engine: Engine) -> tuple[int, int, int] | None:
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})(?:\.([0-9]{1,4}))?", engine.version)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None

"""Engines that docker-fw cannot do all of its work on, and what to do about it."""

from __future__ import annotations

import logging
import re

from plugin.fwctl.api.docker_firewall import Engine

_OLDEST = (20, 10, 0)
#: dockerd dies of every network plugin there, when an endpoint stops being its container's gateway, so at the latest
#: when the container stops (moby#51554): it unlocks a mutex that nobody locked.
_DIES = ((29, 0, 0), (29, 0, 3))
log = logging.getLogger(__name__)


def refusal(engine: Engine) -> str:
    """Why nothing may join a network of docker-fw's own on this engine; "" where it may.

    An endpoint that never was a gateway does no harm, so a start that is refused leaves dockerd alive. Docker's own
    networks are guarded all the same: their driver is not a plugin.
    """
    version = _numbers(engine)
    if version and _DIES[0] <= version < _DIES[1]:
        return (
            f"Docker {engine.version} crashes when a container on a network plugin's network stops (moby#51554): "
            "upgrade Docker to 29.0.3 or newer"
        )
    return ""


def unfit(engine: Engine) -> str:
    """What is wrong with this engine, and what to do; "" for one that docker-fw works on, or an unknown one."""
    version = _numbers(engine)
    if version and version < _OLDEST:
        return f"Docker {engine.version} is older than docker-fw supports: upgrade Docker to 20.10 or newer"
    return refusal(engine)


def noted(engine: Engine, before: Engine) -> Engine:
    """The engine that answers now; logs what is wrong with it, once for each version that answers."""
    if engine.version != before.version and (why := unfit(engine)):
        log.error("%s", why)
    return engine


def _numbers(engine: Engine) -> tuple[int, int, int] | None:
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})(?:\.([0-9]{1,4}))?", engine.version)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None

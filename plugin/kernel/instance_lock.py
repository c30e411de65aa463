"""Allow one docker-fw per host: the managed plugin and the sidecar would undo each other's table."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from plugin.model import FwError


def claim(docker_socket: str) -> int:
    """Lock the directory that every docker-fw of the host sees, until this process ends; return the descriptor.

    The lock is the kernel's (flock), so a killed process leaves none behind. Docker's /run/docker is accessible to
    root only, so no other user can lock it. Raises FwError if another docker-fw runs.
    """
    run = Path(docker_socket).parent
    directory = run / "docker" if (run / "docker").is_dir() else run
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FwError(
            f"cannot open {directory} ({error.strerror}): docker-fw needs the host's /run, where Docker's API socket is"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise FwError(
            "another docker-fw runs on this host, as the managed plugin or as a sidecar; disable one of them "
            "(docker plugin disable fw:latest, or docker compose -f sidecar.yml down)"
        ) from error
    return fd

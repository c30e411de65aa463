"""The Debian systems of the machines: one entry for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """A Debian release as a machine has it. `kernel` and `docker` are packages of its suite."""

    suite: str
    kernel: str = "linux-image-cloud-amd64"
    docker: tuple[str, ...] = ("docker.io",)


#: Oldest first. The versions that a release really has are in `docs/kernels.md`, which a run writes.
SYSTEMS = {
    system.suite: system
    for system in (
        System("bullseye"),
        System("bookworm"),
        System("trixie", docker=("docker.io", "docker-cli")),
        System("forky", docker=("docker.io", "docker-cli")),
    )
}
#: The system to use where any will do.
DEFAULT = "bookworm"

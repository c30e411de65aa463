"""Hosts, outsiders, Docker engines and probes for tests, all in namespaces. See README.md."""

from __future__ import annotations

from .builder import build_image
from .capsule import Capsule, Process
from .claims import sweep
from .daemon import Daemon, DockerError
from .engine import Engine
from .host import Host
from .images import Rootfs, busybox, debian_base, rootfs_image
from .netns import NamedNetns, Netns
from .probe import Answer, Hammer, Prober, Servers, Shot, Target, Verdict, Volley
from .registry import Registry
from .roots import DEFAULT, ENGINES, engine_root
from .store import LabError
from .wan import Wan

__all__ = [
    "DEFAULT",
    "ENGINES",
    "Answer",
    "Capsule",
    "Daemon",
    "DockerError",
    "Engine",
    "Hammer",
    "Host",
    "LabError",
    "NamedNetns",
    "Netns",
    "Prober",
    "Process",
    "Registry",
    "Rootfs",
    "Servers",
    "Shot",
    "Target",
    "Verdict",
    "Volley",
    "Wan",
    "build_image",
    "busybox",
    "debian_base",
    "engine_root",
    "rootfs_image",
    "sweep",
]

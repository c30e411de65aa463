"""`fwctl serve`, `dry-run`, `check`, `boot`, `cleanup`: need no running docker-fw.

Each imports what it needs by itself, so that the other commands start at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from plugin.fwctl.cli import render
from plugin.fwctl.cli.command import NO, OK, USAGE, parser

if TYPE_CHECKING:
    from plugin.settings import Settings

#: The files that docker compose looks for, in this order.
_COMPOSE = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")


def add(commands: Any) -> None:
    """Add the commands to fwctl's."""
    serve = commands.add_parser("serve", help="run docker-fw on its socket (settings: FW_… in the environment)")
    serve.set_defaults(run=_serve, error_status=NO)
    dry = parser(
        commands,
        "dry-run",
        _dry_run,
        "show what installing docker-fw would close on this host, before anything is closed",
        "dry-run",
        "dry-run --json",
        more="Lists every container on a Docker network with what would close, and the established connections that "
        "would be cut. Changes nothing.",
        asks=False,
    )
    dry.add_argument("--json", action="store_true", help="print JSON, for programs")
    _add_check(commands)
    _add_boot(commands)
    parser(
        commands,
        "cleanup",
        _cleanup,
        "remove every rule, mark and link of docker-fw from this host",
        "cleanup",
        more="Use it if rules remain after removing the plugin.",
        asks=False,
    )


def _add_check(commands: Any) -> None:
    check = parser(
        commands,
        "check",
        _check,
        "show what compose files would open, and their mistakes; needs no Docker",
        "check compose.yml",
        "check compose.yml compose.prod.yml --json",
        "check",
        more="Exit status 0: no mistake; 1: mistakes; 2: a file cannot be read. FW_… in the environment count as "
        "the host's settings.",
        asks=False,
        error_status=USAGE,
    )
    check.add_argument("files", nargs="*", metavar="FILE", help="as for docker compose -f (default: compose.yml here)")
    check.add_argument("--json", action="store_true", help="print JSON, for programs")


def _add_boot(commands: Any) -> None:
    boot = parser(
        commands,
        "boot",
        _boot,
        "for the sidecar: a systemd unit that closes every bridge before Docker starts a container",
        "boot install",
        "boot remove",
        more="install writes /etc/docker-fw/boot.nft and docker-fw-boot.service below ROOT and enables the unit; "
        "remove deletes them. The rules in the kernel are not changed.",
        asks=False,
    )
    boot.add_argument("what", choices=("install", "remove"))
    boot.add_argument("--root", default="/host", help="where the host's / is mounted (default: /host, by -v /:/host)")


def _serve(_: argparse.Namespace) -> NoReturn:
    """Become the first program of a start, which becomes gunicorn: signals and the exit status are gunicorn's own."""
    os.execv(sys.executable, [sys.executable, "-m", "plugin.daemon.start"])  # noqa: S606


def _dry_run(options: argparse.Namespace) -> int:
    from plugin.fwctl.host.dry_run import dry_run  # noqa: PLC0415

    report = dry_run(_settings())
    print(json.dumps(report, indent=1) if options.json else render.dry_run(report))
    return OK


def _check(options: argparse.Namespace) -> int:
    from plugin.fwctl.check.run import run  # noqa: PLC0415

    files = options.files or [name for name in _COMPOSE if Path(name).is_file()][:1]
    return run(files, os.environ, options.json, sys.stdout, _settings().defaults)


def _boot(options: argparse.Namespace) -> int:
    from plugin.fwctl.host import boot  # noqa: PLC0415

    root = Path(options.root)
    print(boot.install(root, _settings()) if options.what == "install" else boot.remove(root))
    return OK


def _cleanup(_: argparse.Namespace) -> int:
    from plugin.fwctl.host.cleanup import cleanup, report  # noqa: PLC0415

    print(report(cleanup(_settings())))
    return OK


def _settings() -> Settings:
    """Read the settings from the environment. Raises FwError."""
    from plugin.settings import read  # noqa: PLC0415

    return read(os.environ)

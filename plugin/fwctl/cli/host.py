"""`fwctl serve`, `dry-run`, `boot`, `cleanup`, `check`: what needs no docker-fw that runs.

What each needs is imported by it alone: the driver itself, which is started by `serve`, is to stay small.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from plugin.fwctl.cli import render
from plugin.fwctl.cli.command import NO, OK, USAGE, failed, parser
from plugin.model import FwError


def add(commands: Any) -> None:
    commands.add_parser(
        "serve", help="run the network driver on its socket (settings: FW_… in the environment)"
    ).set_defaults(run=serve)
    dry = parser(
        commands,
        "dry-run",
        dry_run,
        "what installing docker-fw would close on this host, before anything is closed",
        "dry-run",
        "dry-run --json",
        more="Lists every container on Docker's own networks with what would close, and the connections that stand now "
        "and would be cut. Changes nothing.",
        asks=False,
    )
    dry.add_argument("--json", action="store_true", help="as JSON, for programs")
    check = parser(
        commands,
        "check",
        check_files,
        "what compose files would open, and their mistakes, without any Docker",
        "check compose.yml",
        "check compose.yml compose.prod.yml --json",
        "check",
        more="Exit status 0: no mistake; 1: mistakes; 2: a file cannot be read. FW_… in the environment count as the "
        "host's settings.",
        asks=False,
    )
    check.add_argument("files", nargs="*", metavar="FILE", help="as docker compose -f (default: compose.yml here)")
    check.add_argument("--json", action="store_true", help="as JSON, for programs")
    boot_unit = parser(
        commands,
        "boot",
        boot,
        "for the sidecar: a systemd unit that closes every bridge before Docker starts a container",
        "boot install",
        "boot remove",
        more="install writes /etc/docker-fw/boot.nft and docker-fw-boot.service below ROOT and enables it; "
        "remove takes them away. What stands in the kernel now is not touched.",
        asks=False,
    )
    boot_unit.add_argument("what", choices=("install", "remove"))
    boot_unit.add_argument("--root", default="/host", help="where the host's / is (default: /host, as by -v /:/host)")
    parser(
        commands,
        "cleanup",
        cleanup,
        "remove every rule, mark and link of docker-fw from this host",
        "cleanup",
        more="For when the plugin is gone, and its rules are not.",
        asks=False,
    )


def serve(_: argparse.Namespace) -> NoReturn:
    """Becomes gunicorn, so that signals and the exit status are its own."""
    gunicorn = os.path.join(os.path.dirname(sys.executable), "gunicorn")
    os.execv(gunicorn, [gunicorn, "-c", "python:plugin.gunicorn_conf"])  # noqa: S606


def dry_run(options: argparse.Namespace) -> int:
    from plugin.fwctl.host.dry_run import dry_run as report  # noqa: PLC0415
    from plugin.settings import read  # noqa: PLC0415

    try:
        found = report(read(os.environ))
    except FwError as error:
        failed(error)
        return NO
    print(json.dumps(found, indent=1) if options.json else render.dry_run(found))
    return OK


def check_files(options: argparse.Namespace) -> int:
    """Reads compose files; needs neither Docker nor root."""
    from plugin.fwctl.check.run import run  # noqa: PLC0415
    from plugin.settings import read  # noqa: PLC0415

    try:
        settings = read(os.environ)
    except FwError as error:
        failed(error)
        return USAGE
    files = options.files or [name for name in _COMPOSE if Path(name).is_file()][:1]
    return run(files, os.environ, options.json, sys.stdout, settings.defaults)


#: What docker compose looks for, in this order.
_COMPOSE = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")


def boot(options: argparse.Namespace) -> int:
    """Installs or removes the unit that closes every bridge before Docker starts."""
    from plugin.fwctl.host import boot as unit  # noqa: PLC0415
    from plugin.settings import read  # noqa: PLC0415

    root = Path(options.root)
    try:
        print(unit.install(root, read(os.environ)) if options.what == "install" else unit.remove(root))
    except FwError as error:
        failed(error)
        return NO
    return OK


def cleanup(_: argparse.Namespace) -> int:
    """Removes the table, the rule in DOCKER-USER, and every link of ours, of this network namespace."""
    from plugin.fwctl.host.cleanup import cleanup as remove  # noqa: PLC0415
    from plugin.settings import read  # noqa: PLC0415

    try:
        removed = remove(read(os.environ))
    except FwError as error:
        failed(error)
        return NO
    tables = " and ".join(f"table {table}" for table in removed.tables) or "no table"
    print(f"removed {removed.bridges} bridges, {tables}")
    for table in removed.unmanaged:
        print(f"table {table} stays: docker-fw did not make it")
    for family in removed.forwarding:  # not switched off: Docker's networks may live on it by now
        print(
            f"{family.replace('ip', 'IP')} forwarding stays on, which docker-fw had switched on, and the host's other "
            f"links are not kept apart any more. Unless Docker's networks need it: sysctl -w {_FORWARDING[family]}=0"
        )
    return OK


#: Forwarding by family, as nft names it.
_FORWARDING = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}

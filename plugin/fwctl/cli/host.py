"""`fwctl serve`, `dry-run`, `boot`, `cleanup`, `check`: what needs no docker-fw that runs.

What each needs is imported by it alone: the driver itself, which is started by `serve`, is to stay small.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from plugin.fwctl.cli import render
from plugin.fwctl.cli.command import NO, OK, USAGE, failed, parser
from plugin.model import Address, DockerUnavailable, FwError
from plugin.nftables.sets import TABLE

if TYPE_CHECKING:
    from plugin.policy.flows import ClosedFlow


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
        before_docker,
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
    """What installing docker-fw would close on this host: reads Docker's API and the kernel, changes nothing."""
    from plugin.docker.client import DockerApi  # noqa: PLC0415
    from plugin.fwctl.api.status import guarded_networks  # noqa: PLC0415
    from plugin.nftables import identity  # noqa: PLC0415
    from plugin.policy.view import evaluated  # noqa: PLC0415
    from plugin.settings import read  # noqa: PLC0415
    from plugin.state.closed_flows import closed_flows  # noqa: PLC0415

    try:
        settings = read(os.environ)
        api = DockerApi(settings.docker_socket, trust_images=settings.trust_images)
        look = api.look()
    except (FwError, DockerUnavailable) as error:
        failed(FwError(f"{error}; give it Docker's socket: -v /run:/host/run:ro, or FW_DOCKER_SOCKET=PATH"))
        return NO
    known = evaluated(settings.defaults, look.facts())
    told = guarded_networks(known, api.engine, settings.mark, {})
    names = {a: e.container.name for e in look.endpoints if e.container for a in (e.addr4, e.addr6) if a}
    try:
        unmanaged = identity.find().unmanaged
        flows = closed_flows(known.answers_of(known.owners()))
    except OSError as error:
        text = f"could not see which connections stand ({error.strerror}); run this on the host's network and with "
        failed(FwError(text + "--cap-add NET_ADMIN"))
        return NO
    refuses = identity.refusal(unmanaged)
    if options.json:
        cut = [_cut(flow, names) for flow in flows]
        print(json.dumps({"refuses": refuses, "guarded": told, "apart": dict(look.not_guarded), "cut": cut}, indent=1))
        return OK
    if refuses:
        print(f"docker-fw would not start: {refuses}\n")
    lines = (f"{flow.source} → {names[flow.address]} {flow.port}/{flow.proto}" for flow in flows)
    print(render.dry_run(told, dict(look.not_guarded), lines))
    return OK


def _cut(flow: ClosedFlow, names: Mapping[Address, str]) -> dict[str, Any]:
    ends = {"from": str(flow.source), "container": names[flow.address], "address": str(flow.address)}
    return {**ends, "port": flow.port, "proto": flow.proto}


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


def before_docker(options: argparse.Namespace) -> int:
    """Installs or removes the unit that closes every bridge before Docker starts."""
    from plugin.docker.client import DockerApi  # noqa: PLC0415
    from plugin.fwctl.host import boot_table, boot_unit  # noqa: PLC0415
    from plugin.kernel.links import Links  # noqa: PLC0415
    from plugin.kernel.sysctl import Sysctl  # noqa: PLC0415
    from plugin.settings import read  # noqa: PLC0415

    root = Path(options.root)
    try:
        if options.what == "remove":
            print(boot_unit.removed(boot_unit.remove(root)))
            return OK
        settings = read(os.environ)
        nft = boot_unit.find_nft(root)
        uplinks = Links(Sysctl(settings.sysctl)).default_route_links
        api = DockerApi(settings.docker_socket, trust_images=settings.trust_images)
        bridges = boot_unit.bridges(api, uplinks)
        text = boot_table.first_text(api.look(), bridges, root, settings)
        boot_unit.check(root, nft, text)
        changed = boot_unit.install(root, nft, text)
    except (FwError, DockerUnavailable) as error:
        failed(error)
        return NO
    print(boot_unit.installed(changed, bridges[1], boot_table.why_not_kept(root)))
    return OK


def cleanup(_: argparse.Namespace) -> int:
    """Removes the table, the rule in DOCKER-USER, and every link of ours, of this network namespace."""
    from plugin.kernel.docker_user import DockerUser  # noqa: PLC0415
    from plugin.kernel.links import Links  # noqa: PLC0415
    from plugin.kernel.sysctl import Sysctl  # noqa: PLC0415
    from plugin.nftables import identity  # noqa: PLC0415
    from plugin.settings import read  # noqa: PLC0415

    try:
        settings = read(os.environ)
        if _serves(settings.socket):
            raise FwError(
                "docker-fw runs on this host and would put everything back; stop it first "
                "(docker plugin disable -f fw:latest, or docker compose -f sidecar.yml down -v)"
            )
    except (FwError, OSError) as error:  # not to be told: nothing is touched
        failed(error)
        return NO
    links = Links(Sysctl(settings.sysctl))
    switched = _switched()
    ours = [name for name, mine in links.bridges().items() if mine]
    for name in ours:
        links.delete(name)
    links.sweep(set())
    DockerUser(settings.mark).remove()
    try:
        removed, unmanaged = identity.remove()
    except OSError as error:
        failed(FwError(f"the table inet {TABLE} stays ({error.strerror}): stop the program that owns it first"))
        return NO
    tables = " and ".join(f"table {table}" for table in removed) or "no table"
    print(f"removed {len(ours)} bridges, {tables}")
    for table in unmanaged:
        print(f"table {table} stays: docker-fw did not make it")
    for family in switched:  # not switched off: Docker's networks may live on it by now
        print(
            f"{family.replace('ip', 'IP')} forwarding stays on, which docker-fw had switched on, and the host's other "
            f"links are not kept apart any more. Unless Docker's networks need it: sysctl -w {_FORWARDING[family]}=0"
        )
    return OK


#: Forwarding by family, as nft names it.
_FORWARDING = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}


def _switched() -> list[str]:
    """The families for which docker-fw switched forwarding on, and keeps the host's other links apart."""
    import nftables  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415

    from plugin.nftables import identity  # noqa: PLC0415
    from plugin.nftables.codec import NFPROTO_INET  # noqa: PLC0415

    nft, text = nftables.Nftables(), ""
    for table in identity.find().ours:
        if table.family == NFPROTO_INET:
            _, listed, _ = nft.cmd(f"list set {table} no_transit")
            text += listed.partition("elements")[2]
    return [family for family in _FORWARDING if family in text]


def _serves(path: str) -> bool:
    """True if a program of this network namespace listens on this socket, whoever sees the file.

    The name is the one that the plugin knows it by; cleanup runs in a container that has no part in the host's /run.
    """
    # The flags' bit says that it listens (__SO_ACCEPTCON); the path is the eighth field, if there is one.
    lines = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return any(len(line) == 8 and int(line[3], 16) & 0x10000 and line[7] == path for line in lines)

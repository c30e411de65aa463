"""`fwctl`: start docker-fw, see what it does, take everything away again. The image's entrypoint."""

from __future__ import annotations

import argparse
import glob
import http.client
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from plugin import __version__, show
from plugin.model import FwError

#: Where Docker finds plugins: a managed one in a directory of its own, a sidecar's beside them. Inside the plugin's
#: own container the host's /run stands under /host.
SOCKETS = ("/run/docker/plugins/*/fw.sock", "/run/docker/plugins/fw.sock", "/host/run/docker/plugins/*/fw.sock")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fwctl",
        description="docker-fw: every container behind a default-deny nftables policy. TCP 22, 80, 443 and useful "
        'ICMP are open; the label fw.allow="8080" opens one more port.',
    )
    parser.add_argument("--version", action="version", version=f"docker-fw {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", help="run the network driver on its socket (settings: FW_… in the environment)")
    for name, text in (
        ("status", "networks, containers, addresses, and what each accepts"),
        ("ports", "published ports (`docker ps` cannot show a network driver's), and which of them are closed"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--socket", help=f"the plugin's socket (default: the first of {', '.join(SOCKETS)})")
        command.add_argument("--json", action="store_true", help="as JSON, for programs")
    commands.add_parser(
        "cleanup",
        help="remove every rule, mark and link of docker-fw from this host; run it when the plugin is gone",
    )
    commands.add_parser(
        "dry-run",
        help="what installing docker-fw would close on this host, before anything is closed",
        description="Lists every container on Docker's own networks with what would close, and the connections that "
        "stand now and would be cut. Changes nothing.",
    )
    command = commands.add_parser(
        "boot",
        help="for the sidecar: a systemd unit that closes every bridge before Docker starts a container",
        description="install writes /etc/docker-fw/boot.nft and docker-fw-boot.service below ROOT and enables it; "
        "remove takes them away. What stands in the kernel now is not touched.",
    )
    command.add_argument("what", choices=("install", "remove"))
    command.add_argument("--root", default="/host", help="where the host's / is (default: /host, as by -v /:/host)")
    options = parser.parse_args(arguments)
    if options.command == "serve":
        serve()
    if options.command == "cleanup":
        return cleanup()
    if options.command == "dry-run":
        return dry_run()
    if options.command == "boot":
        return before_docker(options.what, Path(options.root))
    try:
        told = ask(options.socket or find_socket(), "/status")
    except (OSError, ValueError) as error:
        print(f"fwctl: {error}", file=sys.stderr)
        return 1
    if options.command == "ports":
        print(json.dumps(show.published(told), indent=1) if options.json else show.ports(told))
    else:
        print(json.dumps(told, indent=1) if options.json else show.status(told))
    return 0


def serve() -> NoReturn:
    """Becomes gunicorn, so that signals and the exit status are its own."""
    gunicorn = os.path.join(os.path.dirname(sys.executable), "gunicorn")
    os.execv(gunicorn, [gunicorn, "-c", "python:plugin.gunicorn_conf"])  # noqa: S606


def find_socket() -> str:
    """The socket of the docker-fw that runs. Raises OSError that says what to do."""
    found = [path for pattern in SOCKETS for path in sorted(glob.glob(pattern))]
    if not found:
        raise OSError(f"no socket of docker-fw ({', '.join(SOCKETS)}); is the plugin enabled? (docker plugin ls)")
    return found[0]


def ask(path: str, url: str) -> dict[str, Any]:
    """GET over a unix socket. Raises OSError or ValueError with a text for people."""
    connection = http.client.HTTPConnection("fw", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(5)
    directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY)
    try:
        # The kernel takes 107 bytes of a socket's path; a directory's descriptor makes any path short.
        connection.sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        connection.request("GET", url)
        response = connection.getresponse()
        told = json.loads(response.read())
    except OSError as error:
        raise OSError(f"{path} does not answer: {error}") from error
    finally:
        os.close(directory)
        connection.close()
    if response.status != 200 or not isinstance(told, dict):
        raise ValueError(f"{path} answered {response.status} to {url}")
    return told


def dry_run() -> int:
    """What installing docker-fw would close on this host: reads Docker's API and the kernel, changes nothing."""
    from plugin import conntrack  # noqa: PLC0415
    from plugin.dockerapi import ApiSilent, DockerApi  # noqa: PLC0415
    from plugin.settings import read  # noqa: PLC0415
    from plugin.status import answers, guarded_networks  # noqa: PLC0415

    try:
        settings = read(os.environ)
        api = DockerApi(settings.docker_socket)
        look = api.look()
    except (FwError, ApiSilent) as error:
        print(
            f"fwctl: {error}; give it Docker's socket: -v /run:/host/run:ro, or FW_DOCKER_SOCKET=PATH", file=sys.stderr
        )
        return 1
    networks = {network.id: network for network in look.networks}
    policy = (settings.allow, settings.published)
    told = guarded_networks(networks, look.endpoints, *policy, api.engine, settings.mark)
    names = {a: e.container.name for e in look.endpoints if e.container for a in (e.addr4, e.addr6) if a}
    try:
        flows = conntrack.closed_flows(answers(networks, look.endpoints, *policy))
    except OSError as error:
        print(
            f"fwctl: could not see which connections stand ({error.strerror}); run this on the host's network and with "
            "--cap-add NET_ADMIN",
            file=sys.stderr,
        )
        return 1
    lines = (f"{flow.source} → {names[flow.address]} {flow.port}/{flow.proto}" for flow in flows)
    print(show.dry_run(told, dict(look.apart), lines))
    return 0


def before_docker(what: str, root: Path) -> int:
    """Installs or removes the unit that closes every bridge before Docker starts."""
    from plugin import boot, status  # noqa: PLC0415
    from plugin.dockerapi import ApiSilent, DockerApi  # noqa: PLC0415
    from plugin.links import Links  # noqa: PLC0415
    from plugin.settings import read  # noqa: PLC0415
    from plugin.sysctl import Sysctl  # noqa: PLC0415

    try:
        if what == "remove":
            print(boot.removed(boot.remove(root)))
            return 0
        settings = read(os.environ)
        nft = boot.find_nft(root)
        uplinks = Links(Sysctl(settings.sysctl)).default_route_links
        api = DockerApi(settings.docker_socket)
        dockers, foreign = boot.bridges(api, uplinks)
        look = api.look()
        networks = {network.id: network for network in look.networks}
        closed = status.closed(networks, look.endpoints, settings.allow, settings.published)
        text = boot.nft_text(settings.mark, dockers, foreign, closed)
        boot.check(root, nft, text)
        changed = boot.install(root, nft, text)
    except (FwError, ApiSilent) as error:
        print(f"fwctl: {error}", file=sys.stderr)
        return 1
    print(boot.installed(changed, foreign))
    return 0


def cleanup() -> int:
    """Removes the table, the rule in DOCKER-USER, and every link of ours, of this network namespace."""
    from plugin.dockeruser import DockerUser  # noqa: PLC0415
    from plugin.links import Links  # noqa: PLC0415
    from plugin.nft import remove_table  # noqa: PLC0415
    from plugin.settings import read  # noqa: PLC0415
    from plugin.sysctl import Sysctl  # noqa: PLC0415

    settings = read(os.environ)
    links = Links(Sysctl(settings.sysctl))
    ours = [name for name, mine in links.bridges().items() if mine]
    for name in ours:
        links.delete(name)
    links.sweep(set())
    DockerUser(settings.mark).remove()
    removed = remove_table()
    print(f"removed {len(ours)} bridges; the table inet fw was {'removed' if removed else 'not there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`fwctl`: start docker-fw, see what it does, take everything away again. The image's entrypoint."""

from __future__ import annotations

import argparse
import glob
import http.client
import json
import os
import socket
import sys
from typing import Any, NoReturn

from plugin import __version__

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
        ("ports", "published ports, which `docker ps` cannot show for a network driver"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--socket", help=f"the plugin's socket (default: the first of {', '.join(SOCKETS)})")
        command.add_argument("--json", action="store_true", help="as JSON, for programs")
    commands.add_parser(
        "cleanup",
        help="remove every rule, mark and link of docker-fw from this host; run it when the plugin is gone",
    )
    options = parser.parse_args(arguments)
    if options.command == "serve":
        serve()
    if options.command == "cleanup":
        return cleanup()
    try:
        told = ask(options.socket or find_socket(), "/status")
    except (OSError, ValueError) as error:
        print(f"fwctl: {error}", file=sys.stderr)
        return 1
    show = ports if options.command == "ports" else status
    rows = _published(told) if options.command == "ports" else told
    print(json.dumps(rows, indent=1) if options.json else show(told))
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


def status(told: dict[str, Any]) -> str:
    lines = []
    for network in told["networks"]:
        note = "  (internal: nobody from outside)" if network["internal"] else ""
        lines.append(f"{network['bridge']}  {' '.join(network['subnets'])}{note}")
        for endpoint in network["endpoints"]:
            name = endpoint["container"] or f"endpoint {endpoint['id'][:12]}"
            accepts = ", ".join(endpoint["accepts"]) or "ICMP only"
            why = "" if endpoint["known"] else "  (its labels are not known yet)"
            lines.append(f"  {name}  {' '.join(endpoint['addresses'])}  {accepts}{why}")
            lines += [f"    {problem}" for problem in endpoint["problems"]]
    return "\n".join(lines) or "no network of docker-fw; make one: docker network create -d fw:latest --ipv6 NAME"


def ports(told: dict[str, Any]) -> str:
    rows = []
    for row in _published(told):
        port = f"{row['container_port']}/{row['proto']}"
        closed = "" if row["open"] else f"  (closed to the outside: fw.allow does not open {port})"
        rows.append(f"{row['container'] or '-':<30} {_host(row['host_ip'])}:{row['host_port']}->{port}{closed}")
    return "\n".join(rows) or "no published ports"


def _published(told: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"container": endpoint["container"], "open": _opens(endpoint["accepts"], port), **port}
        for network in told["networks"]
        for endpoint in network["endpoints"]
        for port in endpoint["published"]
    ]


def _opens(accepts: list[str], port: dict[str, Any]) -> bool:
    for rule in accepts:
        span, _, proto = rule.partition("/")
        first, _, last = span.partition("-")
        if proto == port["proto"] and int(first) <= port["container_port"] <= int(last or first):
            return True
    return False


def _host(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


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

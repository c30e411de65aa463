"""List what docker-fw could leave behind on a host, to compare the state before and after it."""

from __future__ import annotations

from tests.lab import Engine

#: Where docker-fw, or installing it, could write. Docker's own working files are left out.
_FILES = """
find /etc /usr/local /root /opt /srv /var/lib /run /tmp -xdev \\
    \\( -path /var/lib/docker -o -path /run/docker/containerd -o -path /run/docker/libnetwork \\
       -o -path /run/docker/netns -o -path /run/docker/runtime-runc \\
       -o -path /run/containerd -o -path /run/netns \\) -prune -o -print
find /var/lib/docker/plugins /run/docker/plugins -mindepth 1 -maxdepth 1 -not -name storage -not -name tmp
"""
_COMMANDS = {
    "links": "ip -o link | sed 's/^[0-9]*: //; s/[@:].*//'",
    "addresses": "ip -o addr show scope global | awk '{print $2, $4}'",
    "proxied neighbours": "ip neigh show proxy; ip -6 neigh show proxy",
    "rules": "ip rule; ip -6 rule",
    "routes": "ip route show table all; ip -6 route show table all",
    "nftables": "nft -s list ruleset",
    "iptables": "for t in iptables ip6tables; do $t-save | grep -v '^#' | sed 's/ \\[[0-9:]*\\]//'; done",
    "legacy tables": "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null | sort",
    "sysctls": "cd /proc/sys/net; for f in $(find ipv4/conf ipv6/conf -type f) ipv4/ip_forward bridge/*;"
    " do echo $f $(cat $f 2>/dev/null); done",
    "files": _FILES,
    "plugins": "docker plugin ls",
    "containers": "docker ps -a --format '{{.Image}} {{.Names}}'",
    "images": "docker images --format '{{.Repository}}:{{.Tag}}'",
    "volumes": "docker volume ls",
    "networks": "docker network ls --format '{{.Name}} {{.Driver}}'",
    "units": "ls /etc/systemd/system /etc/systemd/system/*.wants 2>/dev/null",
}


def state_of(engine: Engine) -> dict[str, set[str]]:
    """Return the host's state line by line, by kind."""
    return {what: set(engine.host.run(["sh", "-c", how]).stdout.splitlines()) for what, how in _COMMANDS.items()}


def left(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the added lines, and with a minus the removed ones."""
    found = {
        what: (after[what] - lines) | {f"-{line}" for line in lines - after[what]} for what, lines in before.items()
    }
    return {what: lines for what, lines in found.items() if lines}

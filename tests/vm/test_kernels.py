"""See what each system's kernel and nft can do, and what docker-fw makes of it; write that into docs/kernels.md.

Each feature is tried, none is looked up: a table is loaded, a link is made.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import pytest

from tests.product import ROOT
from tests.vm import SYSTEMS, Machine
from tests.vm.product import MachineFw, installed

FILE = ROOT / "docs/kernels.md"
HEAD = """# Kernels

What docker-fw was seen to find on real systems: Debian's packages in virtual machines. `make test-vm` writes this file
({module}); do not edit it. A feature of nftables was tried with the nft of docker-fw's image, and with the
distribution's (in parentheses if that differs).

"""


@dataclass(frozen=True)
class Feature:
    """A thing to try: a table for nft, or a command for the shell."""

    title: str
    table: str = ""
    command: str = ""


def chain(family: str, rule: str, hook: str = "", before: str = "") -> str:
    """Return a table with one rule."""
    kind = f"type filter hook {hook} priority 0; " if hook else ""
    return f"table {family} docker-fw-try {{ {before} chain c {{ {kind}{rule}; }} }}"


def link(kind: str) -> str:
    return f"ip link add try0 link eth0 type {kind} && ip link delete try0"


FEATURES = (
    Feature("table of an owner (`flags owner, persist`)", "table inet docker-fw-try { flags owner, persist; }"),
    Feature("table of the bridge family", chain("bridge", "accept", "prerouting")),
    Feature("connection tracking in the bridge family", chain("bridge", "ct state new accept", "prerouting")),
    Feature(
        "control group of a socket (`socket cgroupv2`)",
        chain("inet", "socket cgroupv2 level 2 @s accept", before="set s { typeof socket cgroupv2 level 2; }"),
    ),
    Feature("listening socket (`socket transparent`)", chain("inet", "socket transparent 0 accept")),
    Feature(
        "flow table",
        chain("inet", "ip protocol tcp flow add @f", "forward", "flowtable f { hook ingress priority 0; }"),
    ),
    Feature(
        "time-out of connection tracking (`ct timeout`)",
        "table inet docker-fw-try { ct timeout t { protocol tcp; l3proto ip; policy = { established : 100 } } }",
    ),
    Feature("limit of connections (`ct count`)", chain("inet", "ct count over 9 drop")),
    Feature("log group (nfnetlink_log)", chain("inet", "log group 7", "input")),
    Feature("route look-up (`fib`)", chain("inet", "fib saddr . iif oif missing drop", "prerouting")),
    Feature("ipvlan", command=link("ipvlan mode l2")),
    Feature("macvlan", command=link("macvlan mode bridge")),
    Feature("IPVS (swarm's routing mesh)", command="modprobe ip_vs && grep -q . /proc/net/ip_vs"),
    Feature("br_netfilter", command="modprobe br_netfilter && test -e /proc/sys/net/bridge/bridge-nf-call-iptables"),
    Feature("control groups of version 2 only", command="test -e /sys/fs/cgroup/cgroup.controllers"),
)
#: What docker-fw says of itself, by the key of its status.
REPORTED = {
    "owned": "no other program can change the tables",
    "binds": "a container can use its own address only, also within its network",
}


def tried(fw: MachineFw, feature: Feature) -> str:
    """Return "yes" or "no", with the distribution's answer in parentheses if it differs."""
    if feature.command:
        return word(fw.vm.run(["sh", "-c", feature.command], check=False).returncode == 0)
    # The tables are tried in a namespace of their own, so that no rule of theirs is active.
    # An owned table is gone with its nft, so nothing is deleted.
    program = "import sys, nftables; sys.exit(nftables.Nftables().cmd(sys.argv[1])[0])"
    enter = ["nsenter", f"--target={fw.pids()[0]}", "--mount"]
    image = fw.vm.run([*enter, "unshare", "--net", "python3", "-c", program, feature.table], check=False)
    theirs = fw.vm.run(["unshare", "--net", "nft", feature.table], check=False)
    both = word(image.returncode == 0), word(theirs.returncode == 0)
    return both[0] if both[0] == both[1] else f"{both[0]} ({both[1]})"


def word(value: object) -> str:
    return "yes" if value else "no"


def seen(system: str) -> dict[str, str]:
    """Return the rows of a system, in order."""
    with Machine(state=installed(system), cold=True) as vm:
        fw = MachineFw(vm)
        status: dict[str, Any] = fw.status()
        versions = vm.state.disk.versions()
        rows = {
            "Linux": re.sub(r"-cloud-amd64$", "", vm.run(["uname", "-r"]).stdout.strip()),
            "Docker": vm.api("GET", "/version")["Version"].partition("+")[0],
            "nft": re.split(r"[-+]", versions["nftables"])[0],
            "iptables": re.split(r"[-+]", versions["iptables"])[0],
            **{feature.title: tried(fw, feature) for feature in FEATURES},
        }
        rows |= {f"docker-fw: {text}": word(status[key]) for key, text in REPORTED.items()}
        with fw.network() as net:
            app = fw.run(net, "--label", "fw.allow=8080")
            with vm.serve(app, tcp=[80, 8080, 9090]):
                addresses = fw.addresses(app, net)
                found = {
                    port: {*vm.wan.probe([("tcp", a, port) for a in addresses], timeout=3).values()}
                    for port in (80, 8080, 9090)
                }
        right = found == {80: {"open"}, 8080: {"open"}, 9090: {"silent"}}
        return {**rows, "docker-fw: opens 80 and what a label allows, nothing else": word(right)}


def text(columns: dict[str, dict[str, str]]) -> str:
    """Return the file."""
    names = [*columns]
    lines = [f"| | {' | '.join(f'Debian {name}' for name in names)} |", f"|---|{'---|' * len(names)}"]
    titles = [*columns[names[0]]]
    lines += [f"| {title} | {' | '.join(columns[name][title] for name in names)} |" for title in titles]
    return HEAD.format(module="`tests/vm/test_kernels.py`") + "\n".join(lines) + "\n"


@pytest.mark.timeout(3600)
def test_docker_fw_works_on_every_kernel_with_what_that_kernel_has() -> None:
    """Each system boots with docker-fw; what was seen is written down, and agrees with what docker-fw says of itself.

    `FW_SYSTEMS="bookworm trixie"` selects; then nothing is written.
    """
    chosen = os.environ.get("FW_SYSTEMS", " ".join(SYSTEMS)).split()
    columns = {system: seen(system) for system in chosen}
    if chosen == [*SYSTEMS]:
        FILE.write_text(text(columns))
    for system, rows in columns.items():
        assert rows["docker-fw: opens 80 and what a label allows, nothing else"] == "yes", system
        # docker-fw uses what its own nft can do with this kernel.
        assert rows[f"docker-fw: {REPORTED['owned']}"] == rows[FEATURES[0].title].split()[0], system
        assert rows[f"docker-fw: {REPORTED['binds']}"] == rows[FEATURES[1].title].split()[0], system

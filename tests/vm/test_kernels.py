"""See what each system's kernel and nft can do; write that into docs/kernels.md.

Each feature is tried, none is looked up: a table is loaded, a link is made.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import pytest

from tests.product import ROOT
from tests.vm import SYSTEMS, Machine
from tests.vm.product import rootfs

FILE = ROOT / "docs/kernels.md"
HEAD = """# Kernels

These are real systems, made of Debian's packages in virtual machines. `make test-vm` writes this file
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
    return f"table {family} docker-fw-try {{\n{before}\nchain c {{ {kind}{rule}; }}\n}}\n"


def link(kind: str) -> str:
    return f"ip link add try0 link eth0 type {kind} && ip link delete try0"


OWNER = Feature("table of an owner (`flags owner, persist`)", "table inet docker-fw-try { flags owner, persist; }")
CGROUP = Feature(
    "control group of a socket (`socket cgroupv2`)",
    chain("inet", "socket cgroupv2 level 2 @s accept", before="set s { typeof socket cgroupv2 level 2; }"),
)
LATE_FIB = Feature("route look-up in the hook forward", chain("inet", "fib saddr . iif oif missing drop", "forward"))
BOUND = """unshare --net sh -ec '
nft "table inet try {
    set s { typeof ip saddr; flags dynamic,timeout; timeout 1s; }
    chain c { update @s { ip saddr }; }
}"
nft list set inet try s | grep "size 65535"'"""
FEATURES = (
    OWNER,
    Feature("table of the bridge family", chain("bridge", "accept", "prerouting")),
    Feature("connection tracking in the bridge family", chain("bridge", "ct state new accept", "prerouting")),
    CGROUP,
    Feature("listening socket (`socket transparent`)", chain("inet", "socket transparent 0 accept")),
    Feature(
        "flow table",
        chain("inet", "ip protocol tcp flow add @f", "forward", "flowtable f { hook ingress priority 0; }"),
    ),
    Feature(
        "time-out of connection tracking (`ct timeout`)",
        "table inet docker-fw-try {\nct timeout t { protocol tcp; l3proto ip; policy = { established : 100 }; }\n}\n",
    ),
    Feature("limit of connections (`ct count`)", chain("inet", "ct count over 9 drop")),
    Feature("log group (nfnetlink_log)", chain("inet", "log group 7", "input")),
    Feature("route look-up (`fib`)", chain("inet", "fib saddr . iif oif missing drop", "prerouting")),
    LATE_FIB,
    Feature("label of a flow (`ct label`)", chain("inet", "ct label set 91", "forward")),
    Feature("bound of a set that packets fill (65,535)", command=BOUND),
    Feature("ipvlan", command=link("ipvlan mode l2")),
    Feature("macvlan", command=link("macvlan mode bridge")),
    Feature("IPVS (swarm's routing mesh)", command="modprobe ip_vs && grep -q . /proc/net/ip_vs"),
    Feature("br_netfilter", command="modprobe br_netfilter && test -e /proc/sys/net/bridge/bridge-nf-call-iptables"),
    Feature("control groups of version 2 only", command="test -e /sys/fs/cgroup/cgroup.controllers"),
)
#: The root file system of docker-fw's image, as the machine has it for this test.
ROOTFS = "/lab/rootfs"


def tried(vm: Machine, feature: Feature) -> str:
    """Return "yes" or "no", with the distribution's answer in parentheses if it differs."""
    if feature.command:
        return word(vm.run(["sh", "-c", feature.command], check=False).returncode == 0)
    # The tables are tried in a namespace of their own, so that no rule of theirs is active and none remains.
    program = "import sys, nftables; sys.exit(nftables.Nftables().cmd(sys.argv[1])[0])"
    ours = vm.run(["unshare", "--net", "chroot", ROOTFS, "python3", "-c", program, feature.table], check=False)
    theirs = vm.run(["unshare", "--net", "nft", feature.table], check=False)
    both = word(ours.returncode == 0), word(theirs.returncode == 0)
    return both[0] if both[0] == both[1] else f"{both[0]} ({both[1]})"


def word(value: object) -> str:
    return "yes" if value else "no"


def seen(system: str) -> dict[str, str]:
    """Return the rows of a system, in order."""
    with Machine(system) as vm:
        vm.put(rootfs())
        there = vm.run(
            ["sh", "-c", f"mv /lab/{rootfs().name} {ROOTFS}; for d in proc sys; do mount --rbind /$d {ROOTFS}/$d; done"]
        )
        assert not there.stderr
        versions = vm.state.disk.versions()
        return {
            "Linux": re.sub(r"-cloud-amd64$", "", vm.run(["uname", "-r"]).stdout.strip()),
            "Docker": vm.api("GET", "/version")["Version"].partition("+")[0],
            "nft": re.split(r"[-+]", versions["nftables"])[0],
            "iptables": re.split(r"[-+]", versions["iptables"])[0],
            **{feature.title: tried(vm, feature) for feature in FEATURES},
        }


def text(columns: dict[str, dict[str, str]]) -> str:
    """Return the file."""
    names = [*columns]
    lines = [f"| | {' | '.join(f'Debian {name}' for name in names)} |", f"|---|{'---|' * len(names)}"]
    titles = [*columns[names[0]]]
    lines += [f"| {title} | {' | '.join(columns[name][title] for name in names)} |" for title in titles]
    return HEAD.format(module="`tests/vm/test_kernels.py`") + "\n".join(lines) + "\n"


def at_least(version: str, major: int, minor: int) -> bool:
    first, second = version.split(".")[:2]
    return (int(first), int(second)) >= (major, minor)


@pytest.mark.timeout(3600)
def test_every_kernel_has_what_the_documents_say() -> None:
    """Each system's kernel is asked; the answers are written down, and are those that README and SECURITY name.

    `FW_SYSTEMS="bookworm trixie"` selects; then nothing is written.
    """
    chosen = os.environ.get("FW_SYSTEMS", " ".join(SYSTEMS)).split()
    columns = {system: seen(system) for system in chosen}
    if chosen == [*SYSTEMS]:
        FILE.write_text(text(columns))
    for system, rows in columns.items():
        ours = {title: answer.split()[0] for title, answer in rows.items()}
        assert ours[OWNER.title] == word(at_least(rows["Linux"], 6, 9)), system
        assert ours[CGROUP.title] == word(at_least(rows["Linux"], 5, 13)), system
        assert ours[LATE_FIB.title] == word(at_least(rows["Linux"], 5, 19)), system
        everywhere = {*FEATURES} - {OWNER, CGROUP, LATE_FIB}
        assert {ours[feature.title] for feature in everywhere} == {"yes"}, system

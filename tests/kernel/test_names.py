"""Test names that look like nft keywords, options or shell code: the kernel's own nft reads the text made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plugin.docker.client import DockerApi
from plugin.fwctl.host import boot_table, boot_unit
from plugin.fwctl.socket_client import ask
from tests.kernel.running import Running
from tests.kernel.site import MARK, Box
from tests.waiting import until

#: Names that the kernel accepts for a link; some are those of Docker bridges, some of others.
DOCKERS, OTHERS = ('";flush', "$(reboot)", "fw-*", "--help"), ("{}", "x*", 'a"}#', "`reboot`", "网桥")
#: Names that Docker would not accept, but that an API with wrong data might return.
NAMES = ('"; flush ruleset; "', "-x", "../../etc", "* {", "a\n\x1b[2J", "\u202egnp", "a\0b", "x" * 10_000)


def network(fw: Running, number: int, bridge: str, name: str) -> str:
    """Return a network of Docker's bridge driver."""
    identity = f"{number:012x}".ljust(64, "d")
    fw.docker.bridge_network(identity, name, f"10.{number}.0.0/24", f"2001:db8:{number}::/64", bridge=bridge)
    return identity


def guest(fw: Running, of: str, name: str, box: Box) -> None:
    labels = {"fw.allow": "8080", f"com.docker.compose.{name}": name}
    fw.docker.container(name, box.endpoint.id, of, labels)
    attached = fw.docker.containers[box.endpoint.id]["NetworkSettings"]["Networks"]["net"]
    attached.update(IPAddress=str(box.v4), GlobalIPv6Address=str(box.v6))


def test_odd_names_are_closed_alone_and_nft_never_reads_them(fw: Running) -> None:
    """Odd names of bridges, networks and containers close only what has them, and nft never parses them.

    A container on a bridge with an odd name stays closed; one that has an odd name itself is opened by its label like
    any other. nft accepts the files that `fwctl export` and `fwctl boot` write.
    """
    site = fw.site
    with site.inside():
        site.sysctl.forward({2, 10})
    odd, right = site.docker_box("$(reboot)", 7), site.docker_box("br-right", 8)
    for name in {*DOCKERS, *OTHERS} - {"$(reboot)"}:
        site.run("ip", "link", "add", "name", name, "type", "bridge")
    for number, bridge in enumerate(DOCKERS, 20):
        network(fw, number, bridge, NAMES[number - 20])
    guest(fw, network(fw, 7, "$(reboot)", "odd"), "odd", odd)
    good = network(fw, 8, "br-right", NAMES[0])
    guest(fw, good, NAMES[0], right)
    for number, name in enumerate(NAMES[1:], 3):
        fw.docker.container(name, f"{number:x}".ljust(64, "f"), good, {"fw.allow": "8080"})
    fw.start()
    rules = site.run("nft", "-s", "list", "chain", "inet", "docker-fw", "forward").stdout
    until(lambda: fw.opens(str(right.v4)) >= {"8080/6"}, "a container on a bridge with a valid name is opened")
    with odd.probe.serve(tcp=[8080]), right.probe.serve(tcp=[8080]):
        for address in (right.v4, right.v6):
            assert site.wan.probe.tcp(str(address), 8080) == "open"
        for address in (odd.v4, odd.v6):
            assert site.wan.probe.tcp(str(address), 8080) == "silent"
            assert site.wan.probe.ping(str(address)) == "open"
    exported: Any = ask(str(fw.socket), "/export")["text"]
    api = DockerApi(str(fw.docker.path))
    with site.inside():
        at_boot = boot_table.nft_text(MARK, *boot_table.bridges(api, set, lambda _: None))
        boot_unit.check(Path("/"), "/usr/sbin/nft", at_boot)
    elsewhere = exported.replace("inet docker-fw", "inet other").replace("bridge docker-fw", "bridge other")
    site.run("nft", "--check", "-f", "-", input=elsewhere)
    for text in (exported, at_boot):
        for name in (*DOCKERS, *OTHERS, *NAMES):
            assert f'"{name}"' not in text
    status = json.dumps(fw.status())
    assert json.dumps(NAMES[0])[1:-1] in status
    assert all(line.isprintable() and len(line) < 9000 for line in fw.log.read_text().split("\n"))
    assert site.run("nft", "-s", "list", "chain", "inet", "docker-fw", "forward").stdout == rules

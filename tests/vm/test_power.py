"""Test a power cut amid writes: what docker-fw and Docker were saving is cut off anywhere, and nothing opens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lab.probe import Target
from tests.lab.store import say
from tests.vm import churn
from tests.vm.fire import hosts, open_at, start, tcp
from tests.vm.product import MachineFw
from tests.waiting import until

#: How many changes are done before each power cut.
CUTS = (17, 36, 58)
COUNT = "/run/churned"


def churned(fw: MachineFw) -> int:
    """Return how many changes are done in this boot."""
    words = fw.vm.run(["cat", COUNT], check=False).stdout.split()  # none while the file is written
    return int(words[0]) if words else 0


@pytest.mark.timeout(1200)
def test_power_cuts_amid_writes_open_nothing(fw: MachineFw) -> None:
    """While networks, containers with labels, overrides and bans change, the power is cut three times.

    After each boot the state file is readable, or its fallback is used; Docker's networks are known, open ports are
    back, and no closed port has answered once. What was being created or removed at that moment can be removed.
    """
    with fw.network() as net:
        app = start(fw, net)
        addresses = fw.addresses(app, net)
        opened: list[Target] = [*tcp(addresses, 8080), *tcp(hosts(fw), 18080)]
        closed: list[Target] = [*tcp(addresses, 9090), *tcp(hosts(fw), 19090)]
        open_at(fw, opened)
        program = fw.vm.put(Path(churn.__file__))
        fw.vm.run(["sync"])  # Docker does not flush that a container runs
        with fw.wan.probe.hammer(*closed, every=0.005) as never:
            for changes in CUTS:
                arguments = ["/run/docker.sock", fw.socket_inside(), fw.driver, app, COUNT]
                fw.vm.popen(["python3", "-IS", program, *arguments])
                until(lambda changes=changes: churned(fw) >= changes, f"{changes} changes are done", 240)
                fw.vm.power_cut()
                fw.vm.boot()
                open_at(fw, opened)
                until(lambda: known_networks(fw) >= networks_of_docker(fw), "Docker's networks are known", 60)
                journal = fw.vm.run(["journalctl", "--no-pager", "-b", "-u", "docker"], check=False).stdout
                say(f"cut after {changes} changes: {state_file(journal)}")
                remove_rest(fw)
        assert not never.result.opened
        say(f"{len(never.result.shots)} probes of closed ports over {len(CUTS)} power cuts, none answered")
        assert fw.known(app)
        assert not fw.status()["unsaved"]
        fw.remove(app)


def state_file(journal: str) -> str:
    """Return what docker-fw logged about its state file at this boot."""
    lines = re.findall(r"(?:state file|flushed state|state\.json).*", journal)
    return "; ".join(lines) or "the state file was read"


def networks_of_docker(fw: MachineFw) -> set[str]:
    """Return the IDs of docker-fw's networks as Docker knows them."""
    return {each["Id"] for each in fw.vm.api("GET", "/networks") if each["Driver"] == fw.driver}


def known_networks(fw: MachineFw) -> set[str]:
    """Return the IDs of the networks that docker-fw knows."""
    return {each["id"] for each in fw.status()["networks"]}


def remove_rest(fw: MachineFw) -> None:
    """Remove what the changes have left."""
    for each in fw.vm.api("GET", "/containers/json?all=1"):
        if each["Names"][0].startswith("/churn"):
            fw.vm.api("DELETE", f"/containers/{each['Id']}?force=1")
    for each in fw.vm.api("GET", "/networks"):
        if each["Name"].startswith("churn"):
            fw.vm.api("DELETE", f"/networks/{each['Id']}")

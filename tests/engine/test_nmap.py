"""Test with nmap from outside on a real engine: the open ports that it finds are those that `fwctl status` lists."""

from __future__ import annotations

import os
import re
import shutil

import pytest

from tests.engine.outside import SERVERS, dockers, labels, publish, seen, tcp
from tests.inputs import TIMES
from tests.product import Fw
from tests.waiting import until


def listed(fw: Fw) -> set[int]:
    """Return the host ports of TCP that `fwctl status` lists as open to every client."""
    status = fw.status()
    endpoints = [each for net in (*status["networks"], *status["guarded"]) for each in net["endpoints"]]
    ports = [port for each in endpoints for port in each["published"] if port["proto"] == "tcp"]
    return {port["host_port"] for port in ports if port["open"]}


def found(fw: Fw, options: str) -> set[int]:
    """Return the TCP ports that nmap finds open on the host, by an address of it."""
    scan = ["nmap", "-n", "-Pn", "-sS", "--min-rate", "5000", "-oG", "-", *options.split()]
    return {int(port) for port in re.findall(r"\b(\d+)/open/tcp/", fw.wan.run(scan, timeout=240).stdout)}


def test_nmap_finds_the_published_ports_that_fwctl_status_lists(fw: Fw) -> None:
    """Of the host's TCP ports, those are open that `fwctl status` lists as open, and no others.

    A container on a docker-fw network and one on a Docker network publish a port that a label opens, and one that no
    rule opens. `make test-long` scans all 65,535 ports over IPv4. Otherwise, and over IPv6, where nmap is slow, nmap
    scans a part: the well-known ones, and those around the published ones.
    """
    if not shutil.which("nmap") and not os.environ.get("CI"):
        pytest.skip("nmap is not installed; `make test` installs it")
    with fw.network() as ours, dockers(fw) as theirs:
        chosen = [(net, *publish(8080, 9090)) for net in (ours, theirs)]
        for net, options, _ in chosen:
            fw.run(net, *options, *labels(allow="8080"), command=SERVERS)
        opened = {ports["8080"] for _, _, ports in chosen}
        answering = tcp((fw.host.v4, fw.host.v6), *opened)
        until(lambda: listed(fw) >= opened, "status lists the ports", 30)
        until(lambda: seen(fw, *answering) == set(answering), "they answer", 30)
        part = f"-p 1-1000,{min(listed(fw))}-{max(listed(fw)) + 20}"
        assert found(fw, f"{'-p-' if TIMES else part} {fw.host.v4}") == listed(fw)
        assert found(fw, f"-6 {part} {fw.host.v6}") == listed(fw)
        assert not listed(fw) & {ports["9090"] for _, _, ports in chosen}

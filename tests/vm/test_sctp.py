"""Test published SCTP ports with a kernel that has SCTP: docker-proxy's socket answers, and no rule can find it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.probe import Target
from tests.vm.fire import open_at
from tests.vm.product import MachineFw
from tests.waiting import until

#: Minutes of emulated work: more than other tests have.
pytestmark = pytest.mark.timeout(1200)


@contextmanager
def stopped(fw: MachineFw) -> Iterator[None]:
    """Stop all of docker-fw's processes for a while: it sees nothing of what Docker does."""
    fw.vm.run(["pkill", "-STOP", "-f", "python:plugin.gunicorn_conf"])
    try:
        yield
    finally:
        fw.vm.run(["pkill", "-CONT", "-f", "python:plugin.gunicorn_conf"])


def test_a_published_sctp_port_is_closed_before_docker_lists_its_container(fw: MachineFw) -> None:
    """docker-proxy answers an association to a port that a label opens, and to no other port.

    That holds for a container that docker-fw does not know yet, too. Without the rule for protocols whose sockets are
    not found its port answers.
    """
    fw.vm.run(["modprobe", "sctp"])
    # Docker 20.10 gives its default bridge no IPv6, so docker-proxy serves the port there, and nothing diverts packets.
    ports: list[Target] = [("sctp", fw.vm.v6, number) for number in (13868, 13869, 13870)]
    opened, closed, unknown = ports
    first = ("--label", "fw.allow=3868/sctp", "-p", "13868:3868/sctp", "-p", "13869:3869/sctp")
    with fw.wan.probe.hammer(closed, unknown, every=0.05) as never:
        fw.run("bridge", *first)
        open_at(fw, [opened])
    assert len(never.result.shots) > 20
    assert not never.result.opened
    with stopped(fw):
        with fw.wan.probe.hammer(closed, unknown, every=0.05) as never:
            fw.run("bridge", "-p", "13870:3870/sctp")
            until(lambda: "13870" in fw.vm.read("/proc/net/sctp/eps"), "docker-proxy listens", 60)
            assert fw.wan.probe.one(unknown, timeout=5).verdict == "silent"
        assert not never.result.opened
        fw.vm.run(["nft", "flush", "set", "inet", "docker-fw", "unfound_protocols"])
        assert fw.wan.probe.one(unknown, timeout=5).verdict == "open"

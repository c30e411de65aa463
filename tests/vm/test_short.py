"""The one run of a virtual machine in `make test`: seconds, from a snapshot. `make test-vm` makes what it needs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator

import pytest

from tests.vm import Machine
from tests.vm.hardware import QEMU
from tests.vm.product import MachineFw, cached_running, running
from tests.waiting import until

#: With `engine`, it is a test of `make test` and `make test-engine`.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@pytest.fixture
def fw(request: pytest.FixtureRequest) -> Iterator[MachineFw]:
    """Yield a machine with docker-fw and a container on a docker-fw network, from its snapshot."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed; `make test-vm` installs it")
    asked_for = any("tests/vm" in argument for argument in request.config.args)
    state = running() if asked_for else cached_running()
    if state is None:
        pytest.skip("no snapshot of a machine with this docker-fw is in the cache; `make test-vm` makes it")
    with Machine(state=state) as vm:
        yield MachineFw(vm)


def test_a_restored_machine_is_closed_and_stays_so_when_docker_fw_is_killed(
    fw: MachineFw,
) -> None:
    """On a real kernel: a label's port is open and others are closed, also while docker-fw is killed and is back.

    After `nft flush ruleset` the table is restored, where the kernel cannot prevent the flush.
    """
    with_label, without = fw.vm.read("/root/addresses").split(), 9090
    opened = [("tcp", a, 8080) for a in with_label]
    closed = [("tcp", a, without) for a in with_label]
    assert {*fw.wan.probe([*opened], timeout=5).values()} == {"open"}
    with fw.wan.probe.hammer(*closed, every=0.01) as never:
        began = time.monotonic()
        fw.vm.run(["pkill", "-9", "-n", "-f", "python:plugin.gunicorn_conf"])  # the worker
        until(fw.answers, "docker-fw answers again", 60)
        assert {*fw.wan.probe([*opened], timeout=5).values()} == {"open"}
        took = time.monotonic() - began
    assert len(never.result.shots) > 20 * took
    assert not never.result.opened
    fw.vm.run(["nft", "flush", "ruleset"])
    until(lambda: {*fw.wan.probe([*closed]).values()} == {"silent"}, "closed again", 15)

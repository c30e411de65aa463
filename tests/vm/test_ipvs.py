"""Test IP Virtual Server on the host: its addresses and ports have no socket, and docker-fw leaves them to it."""

from __future__ import annotations

import pytest

from tests.lab.probe import Target
from tests.vm.fire import hosts, open_at
from tests.vm.packages import install
from tests.vm.product import MachineFw
from tests.vm.systems import DEFAULT

#: Minutes of emulated work: more than other tests have.
pytestmark = pytest.mark.timeout(1200)


def test_what_ipvs_serves_is_not_refused(fw: MachineFw) -> None:
    """A virtual service answers, over TCP and UDP, in both families, though no program listens on its port.

    Another port without a program is refused.
    """
    install(fw.vm, DEFAULT, ("ipvsadm",))
    served: list[Target] = [(proto, host, 8081) for proto in ("tcp", "udp") for host in hosts(fw)]
    for proto, host in ((each[0], each[1]) for each in served):
        address = f"[{host}]" if ":" in host else host
        fw.vm.run(["ipvsadm", "-A", f"-{proto[0]}", f"{address}:8081"])
        fw.vm.run(["ipvsadm", "-a", f"-{proto[0]}", f"{address}:8081", "-r", f"{address}:8082", "-m"])
    server = fw.vm.popen(["python3", "-IS", "/usr/local/lib/lab/serve.py", "host", "tcp:8082", "udp:8082"])
    try:
        open_at(fw, served)
        refused: list[Target] = [(proto, host, 8083) for proto, host, _ in served]
        assert {*fw.wan.probe(refused, timeout=5).values()} == {"refused"}
    finally:
        server.end()

"""All differences between Docker alone and Docker with docker-fw whose policy is open, each with its reason.

Each one is asserted exactly: the probe finds `docker` without docker-fw and `ours` with it, in every set-up of `when`.
"""

from __future__ import annotations

from tests.promises.model import Difference

#: The reasons, by the word with which the table names them.
REASONS = {
    "routed": "On a network that is reached by container addresses (gateway mode `routed`), docker-fw's policy "
    "decides instead of Docker's list of published ports: `FW_POLICY=open` opens every port there. This is how "
    "`fw.allow` opens a port on such a network. Containers of other Docker networks still need a published port.",
    "loopback": "A port that is published on loopback only is closed at the container's own address, for machines "
    "with a route to it and for other networks. Docker itself has closed it since version 28.",
    "internal": "An internal network is closed over IPv6 too. Docker 20.10 filters IPv6 only with `--ip6tables`. "
    "Without it, containers of an internal network reach all addresses over IPv6, and all others reach them.",
}


def _differences(reason: str, promise: str, docker: str, ours: str, *probes: str, when: str = "") -> list[Difference]:
    return [Difference(promise, probe, docker, ours, reason, when) for probe in probes]


DIFFERENCES: tuple[Difference, ...] = (
    *_differences("routed", "direct, routed", "silent", "open", "remote → tcp4 routed:81", "remote → tcp6 routed:81"),
    *_differences("routed", "direct, nat for IPv4 and routed for IPv6", "silent", "open", "remote → tcp6 mixed:81"),
    *_differences(
        "routed",
        "routed, not the way out",
        "silent",
        "open",
        "remote → tcp4 ways/routed:80",
        "remote → tcp6 ways/routed:80",
    ),
    *_differences(
        "loopback",
        "loopback is not reached by a route",
        "open",
        "silent",
        "remote → tcp4 local:80",
        "remote → tcp6 local:80",
        when="<28",
    ),
    *(
        difference
        for profile in ("default", "no-proxy")  # Docker does not filter IPv6 there
        for difference in _differences(
            "loopback",
            "loopback is not reached by a route",
            "open",
            "silent",
            "stranger → tcp6 local:80",
            when=f"<27 {profile}",
        )
    ),
    *(
        difference
        for promise, probes in {
            "an internal network": (
                "inside → tcp6 remote:7000",
                "inside → ping6 remote",
                "inside → tcp6 mate:80",
            ),
            "an internal network from outside": (
                "remote → tcp6 inside:80",
                "remote → ping6 inside",
                "stranger → tcp6 inside:80",
                "stranger → ping6 inside",
                "deeper → tcp6 inside:80",
            ),
            "a front and an internal network": ("inside → tcp6 both/plain:80",),
        }.items()
        for profile in ("default", "no-proxy")
        for difference in _differences("internal", promise, "open", "silent", *probes, when=f"<26 {profile}")
    ),
)

#: Promises of Docker's that are not tried, with the reason.
UNTRIED = {
    "published ports over SCTP": "docker-proxy, and Docker ≥ 28 without it, open an SCTP socket, which needs the "
    "kernel's module `sctp`; the lab's kernel has none. `tests/engine/test_networks.py` has SCTP on docker-fw "
    "networks.",
    "`--bridge-accept-fwmark` and the nftables backend": "They are Docker 29's, which no Debian has yet. "
    "`tests/kernel/test_docker29.py` sends packets through Docker 29's tables and docker-fw's.",
    "link-local addresses as published or container addresses": "IPv6 scopes; nothing in docker-fw depends on them but "
    "the rule that lets link-local sources pass within one network (`tests/kernel/test_hostile.py`).",
    "swarm's ingress and overlay networks": "docker-fw closes the ingress mesh on purpose (README, Swarm); "
    "`tests/engine/test_swarm.py` has these.",
    "macvlan and ipvlan": "They bypass the host's rules (README).",
    "`/etc/hosts`, environment variables, MAC addresses, inspect": "No packet is involved.",
}

"""Recorded requests of dockerd, for tests of the driver and for fuzzing."""

from __future__ import annotations

from typing import Any

NETWORK_ID = "4b4b1cd3b7a0c9a0b0a5c1c3e3b0e4a2f2b8d6f1a9f0e7c6d5b4a3928170f6e5"
ENDPOINT_ID = "9f8e7d6c5b4a39281706f5e4d3c2b1a09f8e7d6c5b4a39281706f5e4d3c2b1a0"
GENERIC = "com.docker.network.generic"
PORTMAP = "com.docker.network.portmap"

#: `docker network create -d fw:latest --ipv6 --subnet … --subnet …` on 28.5.2, as recorded.
CREATE_NETWORK: dict[str, Any] = {
    "NetworkID": NETWORK_ID,
    "Options": {
        "com.docker.network.enable_ipv4": True,
        "com.docker.network.enable_ipv6": True,
        GENERIC: {},
    },
    "IPv4Data": [
        {"AddressSpace": "LocalDefault", "Gateway": "172.18.0.1/16", "Pool": "172.18.0.0/16", "AuxAddresses": {}}
    ],
    "IPv6Data": [
        {"AddressSpace": "LocalDefault", "Gateway": "2001:db8:1::1/64", "Pool": "2001:db8:1::/64", "AuxAddresses": {}}
    ],
}
#: A container's start: `docker run -p … --network …`.
CREATE_ENDPOINT: dict[str, Any] = {
    "NetworkID": NETWORK_ID,
    "EndpointID": ENDPOINT_ID,
    "Interface": {"Address": "172.18.0.2/16", "AddressIPv6": "2001:db8:1::2/64", "MacAddress": ""},
    "Options": {
        "com.docker.network.endpoint.exposedports": [{"Proto": 6, "Port": 80}],
        "com.docker.network.portmap": [
            {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8081, "HostPortEnd": 8081}
        ],
    },
}

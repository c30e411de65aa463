"""The cases of nmap: every scan type, in both families, and what it has to slip past filters."""

from __future__ import annotations

from collections.abc import Iterator

from .case import CLOSED_UDP, ECHO4, ECHO6, NOTHING, OPEN_TCP, OPEN_UDP, Case, NotApplicable

#: TCP ports that every container has open, and the label's.
_OPEN = frozenset({"tcp 22", "tcp 80", "tcp 443", f"tcp {OPEN_TCP}"})
_FEW = "-p 20-25,53,80,443,1723,3306,5432,8080,9090"
_ALL = "-p- --min-rate 2000 --max-retries 3"
#: On a busy machine a server answers late.
_PATIENT = "--min-rtt-timeout 1s --max-retries 5"
#: Scan types of TCP, with what arrives and the state that nmap reports for open ports. A segment that opens no
#: connection and belongs to none is invalid, except for an ACK: conntrack takes it for the middle of a connection
#: (nf_conntrack_tcp_loose), so it reaches open ports, and the answer reports no more than the answer to a SYN.
_TCP = {
    "-sS": ("SYN", _OPEN, "open"),
    "-sT": ("connect", _OPEN, "open"),
    "-sA": ("ACK", _OPEN, "unfiltered"),
    "-sW": ("window", _OPEN, "closed"),
    "-sM": ("Maimon (FIN and ACK)", NOTHING, ""),
    "-sF": ("FIN", NOTHING, ""),
    "-sN": ("null", NOTHING, ""),
    "-sX": ("Xmas", NOTHING, ""),
    "-sS --scanflags SYNFIN": ("SYN and FIN", NOTHING, ""),
    "-sS --scanflags SYNRST": ("SYN and RST", NOTHING, ""),
    "-sS --scanflags SYNACK": ("SYN and ACK", NOTHING, ""),
    "-sS --scanflags SYNURGPSH": ("SYN, URG and PSH", _OPEN, "open"),
    "-sS --scanflags 0xff": ("all flags", NOTHING, ""),
    "-sS --scanflags RST": ("RST", NOTHING, ""),
}
#: Options against filters, each with a SYN scan.
_EVASIONS = {
    "-g 20": "source port 20",
    "-g 53": "source port 53",
    "-g 67": "source port 67",
    "-g 80": "source port 80",
    "--data-length 40": "40 bytes of data",
    "--ttl 3": "hop limit 3",
    "-f": "fragments of 8 bytes",
    "--mtu 16": "fragments of 16 bytes",
    "--ip-options R": "record route",
    "--ip-options T": "timestamps",
}
_ONLY_V4 = ("-f", "--mtu 16", "--ip-options R", "--ip-options T")
_FAMILIES = {4: "{v4}", 6: "-6 {v6}"}


def _scan(version: int, name: str, options: str, **more: object) -> Case:
    command = f"nmap -n -Pn {_PATIENT if _ALL not in options else ''} -oG - {options} {_FAMILIES[version]}"
    return Case("nmap", f"{name}, IPv{version}", command, **more)  # type: ignore[arg-type]


def _types() -> Iterator[Case]:
    for version in (4, 6):
        for options, (name, arrives, state) in _TCP.items():
            quick = options in ("-sS", "-sA", "-sX")
            yield _scan(version, name, f"{options} {_FEW}", arrives=arrives, finds=(state, "tcp"), quick=quick)
        ports = f"-p 53,67,123,161,{OPEN_UDP},{CLOSED_UDP}"
        arrives = frozenset({f"udp {OPEN_UDP}"})
        yield _scan(version, "UDP", f"-sU {ports}", arrives=arrives, finds=("open", "udp"), quick=True)
        yield _scan(version, "UDP from port 53", f"-sU -g 53 {ports}", arrives=arrives, finds=("open", "udp"))
        yield _scan(version, "SCTP INIT", "-sY -p 22,80,443,8080", finds=("open", "sctp"))
        yield _scan(version, "SCTP COOKIE ECHO", "-sZ -p 22,80,443,8080")
        echo = ECHO4 if version == 4 else ECHO6
        # Its probe for TCP is an ACK to port 80, and the one for ICMP an echo request.
        yield _scan(version, "IP protocols", "-sO", arrives=frozenset({echo, "tcp 80"}), quick=True)
        yield _scan(version, "OS detection", f"-O {_FEW}", arrives=_OPEN | {echo}, finds=("open", "tcp"))
        more = "-PP -PM" if version == 4 else ""
        hosts = f"-sn -PE {more} -PS443,9090 -PA8080,9090 -PU53,9053 -PY80"
        yield Case(
            "nmap",
            f"host discovery, IPv{version}",
            f"nmap -n -oG - {hosts} {_FAMILIES[version]}",
            frozenset({echo, "tcp 443", "tcp 8080"}),
        )
    yield _scan(4, "SYN, all 65,535 ports", f"-sS {_ALL}", arrives=_OPEN, finds=("open", "tcp"))


def _evasions() -> Iterator[Case]:
    for version in (4, 6):
        for options, name in _EVASIONS.items():
            if version == 4 or options not in _ONLY_V4:
                yield _scan(
                    version, name, f"-sS {options} {_FEW}", arrives=_OPEN, finds=("open", "tcp"), quick=options == "-f"
                )
        wrong = "the host drops a wrong checksum: conntrack calls it invalid"
        yield _scan(version, "wrong checksums", f"-sS --badsum {_FEW}", note=wrong)
        yield _scan(version, "wrong checksums, UDP", f"-sU --badsum -p {OPEN_UDP},{CLOSED_UDP}", note=wrong)
    refused = "the host refuses source routes (accept_source_route is 0)"
    for option in ("L", "S"):
        yield _scan(4, f"source route {option}", f'-sS --ip-options "{option} 198.51.100.1" {_FEW}', note=refused)


CASES = (*_types(), *_evasions())
NOT_APPLICABLE = (
    NotApplicable(
        "nmap", "SYN, all 65,535 ports, IPv6", "takes minutes; the other IPv6 scans take a part of the ports"
    ),
    NotApplicable(
        "nmap", "fragments, IPv6 (-6 -f, -6 --mtu)", "nmap does not support it; firewall6 and frag6 send such fragments"
    ),
    NotApplicable("nmap", "IP options, IPv6", "IPv6 has none; firewall6 sends extension headers"),
    NotApplicable(
        "nmap",
        "FTP bounce (-b)",
        "needs an FTP server that opens connections for its clients: not a packet to the container",
    ),
    NotApplicable(
        "nmap", "idle scan (-sI)", "needs a third host with predictable identifications, which Linux no longer has"
    ),
)

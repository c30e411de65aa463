"""All cases, and those that are not applicable."""

from __future__ import annotations

from . import ipv6toolkit, nmap, thc_ipv6

CASES = (*thc_ipv6.CASES, *ipv6toolkit.CASES, *nmap.CASES)
NOT_APPLICABLE = nmap.NOT_APPLICABLE
#: A program of each Debian package that the cases need.
PROGRAMS = {"thc-ipv6": "atk6-firewall6", "ipv6toolkit": "frag6", "nmap": "nmap"}

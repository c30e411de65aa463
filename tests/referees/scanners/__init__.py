"""Scanners and attack tools from Debian (thc-ipv6, ipv6toolkit, nmap) against the real plugin, in namespaces.

`case` says what a case is. `registry` collects all of them from `thc_ipv6`, `ipv6toolkit` and `nmap`: one entry for
each case, with its exact expectation or the reason why it is not applicable; `neighbours` has those of hostile
neighbours. `bed` has the hosts and containers, `arrivals` reads what an attacked one received, `referee` runs cases and
judges by that, and `report` writes docs/scanners.md.
"""

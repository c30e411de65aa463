"""What `fwctl` prints for people: status, published ports, the dry run. Pure; the data is `plugin.status`'s."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def status(told: dict[str, Any]) -> str:
    lines: list[str] = []
    for network in told["networks"]:
        lines += _network(network["bridge"], "", network)
    for network in told["guarded"]:
        # An empty network of Docker's is as closed as any, and of no interest.
        if network["endpoints"] or network["problems"]:
            lines += _network(network["name"], f" on {network['bridge']} (Docker's own)", network)
    lines += [f"{name}: {why}" for name, why in sorted(told["apart"].items())]
    if told["foreign"]:
        lines.append(f"left alone (not Docker's): {', '.join(told['foreign'])}")
    if not told["proxy_known"]:
        lines.append("docker-proxy is not known by its control group: its ports are closed when Docker tells of them")
    if not told["listening"]:
        lines.append("Docker's API is silent: what is new, or was in doubt, answers on ICMP only until it speaks again")
    return "\n".join(lines) or "no container on any network; all that comes will be closed but for TCP 22, 80, 443"


def _network(name: str, more: str, network: dict[str, Any]) -> list[str]:
    note = "  (internal: nobody from outside)" if network["internal"] else ""
    lines = [f"{name}{more}  {' '.join(network['subnets'])}{note}"]
    lines += [f"  {problem}" for problem in network.get("problems", [])]
    for endpoint in network["endpoints"]:
        who = endpoint["container"] or f"endpoint {endpoint['id'][:12]}"
        accepts = ", ".join(endpoint["accepts"]) or "ICMP only"
        why = "" if endpoint["known"] else "  (its labels are not known yet)"
        lines.append(f"  {who}  {' '.join(endpoint['addresses'])}  {accepts}{why}")
        if not network["internal"]:
            lines += [f"    {_port(port)}: closed to the outside" for port in endpoint["published"] if not port["open"]]
        lines += [f"    {text}" for text in (*endpoint["problems"], *endpoint.get("no_effect", []))]
    return lines


def published(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Every published port with its container, on Docker's own networks and on ours."""
    return [
        {"container": endpoint["container"], **port}
        for network in (*told["networks"], *told["guarded"])
        for endpoint in network["endpoints"]
        for port in endpoint["published"]
    ]


def ports(told: dict[str, Any]) -> str:
    rows = []
    for row in published(told):
        port = f"{row['container_port']}/{row['proto']}"
        closed = "" if row["open"] else f"  (closed to the outside: fw.allow does not open {port})"
        rows.append(f"{row['container'] or '-':<30} {_port(row)}{closed}")
    return "\n".join(rows) or "no published ports"


def dry_run(guarded: list[dict[str, Any]], apart: dict[str, str], flows: Iterable[str]) -> str:
    """What installing docker-fw would close, container by container, and what it would leave as it is."""
    lines: list[str] = []
    for network in guarded:
        for endpoint in network["endpoints"]:
            addresses = " ".join(endpoint["addresses"])
            lines.append(f"{endpoint['container']} on {network['name']} ({addresses})")
            lines.append(f"  answers from outside on: {', '.join(endpoint['accepts']) or 'ICMP only'}")
            for port in endpoint["published"]:
                if port["host_ip"] in ("127.0.0.1", "::1"):
                    continue
                label = f"{port['container_port']}" + ("" if port["proto"] == "tcp" else f"/{port['proto']}")
                verdict = "stays open" if port["open"] else f'CLOSES (to keep it: label fw.allow: "{label}")'
                lines.append(f"  published {_port(port)}: {verdict}")
            lines += [f"  {text}" for text in (*endpoint["problems"], *endpoint["no_effect"])]
    if not lines:
        lines = ["no container is on a network of Docker's own; nothing would close"]
    lines += [f"{name}: {why}; docker-fw changes nothing there" for name, why in sorted(apart.items())]
    cut = sorted(set(flows))
    if cut:
        lines += ["connections that stand now and would be cut:", *(f"  {flow}" for flow in cut)]
    return "\n".join(lines)


def _port(port: dict[str, Any]) -> str:
    host = f"[{port['host_ip']}]" if ":" in port["host_ip"] else port["host_ip"]
    return f"{host}:{port['host_port']}->{port['container_port']}/{port['proto']}"

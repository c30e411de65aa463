"""fwctl's output of a status: lines of text, each part with a style for a terminal. Pure; the data is docker-fw's.

`plain` makes text of the lines, for pipes and files. `plugin.fwctl.cli.terminal` prints the same texts in colours and
tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from plugin.labels.duration import left
from plugin.labels.keys import EVERYTHING
from plugin.labels.peer_kinds import NAMED
from plugin.text import printable

#: Texts and their styles: "", good, bad, warn, dim, name.
Line = list[tuple[str, str]]
_EVERYTHING = {str(rule) for rule in EVERYTHING}
EMPTY = "no container on any network; inbound traffic will be blocked, except TCP 22, 80, 443"


def plain(lines: Iterable[Line]) -> str:
    """Return the lines as text."""
    return "\n".join("".join(printable(text) for text, _ in line) for line in lines)


# --- status -----------------------------------------------------------------------------------------------------------


def status(answer: dict[str, Any]) -> str:
    """Return a status (`GET /status`) as text."""
    return plain(status_lines(answer))


def status_lines(answer: dict[str, Any]) -> Iterator[Line]:
    """Yield each network with its containers, then what concerns the whole host."""
    for network in networks(answer):
        yield [(title(network), "name")]
        yield from ([("  " + problem, "bad")] for problem in network.get("problems", []))
        for endpoint in network["endpoints"]:
            style = "" if endpoint["accepts"] else "warn"
            addresses = ("  " + " ".join(endpoint["addresses"]) + "  ", "")
            yield [("  " + container(endpoint), "name"), addresses, (accepted(endpoint) + unknown(endpoint), style)]
            yield from ([("    " + text, style)] for text, style in details(endpoint, network, answer["now"]))
    yield from host_lines(answer)


def networks(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the networks to show: all of docker-fw's, and Docker's unless they are empty."""
    docker_networks = [network for network in answer["guarded"] if network["endpoints"] or network["problems"]]
    return [*answer["networks"], *({**network, "docker": True} for network in docker_networks)]


def title(network: dict[str, Any]) -> str:
    """Return a network's headline."""
    if network.get("docker"):
        name = f"{network['name']} on {network['bridge']} (Docker network)"
    else:
        name = network["bridge"] + (f" ({network['name']})" if network["name"] else "")
    note = "  (internal: no access from outside)" if network["internal"] else ""
    return f"{name}  {' '.join(network['subnets'])}{note}"


def container(endpoint: dict[str, Any]) -> str:
    """Return the container's name, or the endpoint's ID while the name is unknown."""
    return endpoint["container"] or f"endpoint {endpoint['id'][:12]}"


def unknown(endpoint: dict[str, Any]) -> str:
    """Return a note if the container's labels are not known yet."""
    return "" if endpoint["known"] else " (labels not known yet)"


def accepted(endpoint: dict[str, Any]) -> str:
    """Return the ports that a container accepts connections on."""
    rules = endpoint["accepts"]
    if set(rules) >= _EVERYTHING:
        rules = ["everything", *(rule for rule in rules if rule not in _EVERYTHING)]
    return ", ".join(rules) or "ICMP only"


def details(endpoint: dict[str, Any], network: dict[str, Any], now: float) -> Iterator[tuple[str, str]]:
    """Yield what else there is to know about a container: (text, style)."""
    by_origin: dict[str, list[str]] = {}
    for rule in endpoint["rules"]:
        if rule["origin"] not in ("base", "", "fwctl allow"):  # an override has a line of its own below
            by_origin.setdefault(rule["origin"], []).append(_rule(rule, "from"))
    for origin, texts in by_origin.items():
        yield f"{origin}: {'everything' if len(texts) == len(_EVERYTHING) else ', '.join(texts)}", "good"
    if endpoint["egress"] is not None:
        allowed = ", ".join(_rule(rule, "to") for rule in endpoint["egress"]) or "nothing"
        yield f"egress: {allowed}{_origins(endpoint['egress'])}", "dim"
    if endpoint["rates"]:
        yield f"rate limit: {', '.join(r['rate'] for r in endpoint['rates'])}{_origins(endpoint['rates'])}", "dim"
    if endpoint["log"] == "drop":
        yield "drops are logged", "dim"
    for each in endpoint["overrides"]:
        yield override(each, now), "warn"
    if not network["internal"]:
        yield from ((f"{port(p)}: {closed(p)}", "warn") for p in endpoint["published"] if not p["open"])
    yield from ((text, "bad") for text in endpoint["problems"])
    yield from ((text, "warn") for text in endpoint["no_effect"])
    if endpoint["dropped"] or endpoint["refused"]:
        yield f"dropped: {endpoint['dropped']} packets to it, {endpoint['refused']} from it", "dim"


def _rule(rule: dict[str, Any], preposition: str) -> str:
    """Return a rule, with the current addresses of peers that are written by name."""
    if not rule["peers"]:
        return str(rule["what"])
    now = [address for address in rule["addresses"] if address not in rule["peers"]]
    named = [peer for peer in rule["peers"] if ":" in peer and peer.partition(":")[0] in NAMED]
    addresses = f" = {' '.join(now) or 'no container now'}" if named else ""
    return f"{rule['what']} {preposition} {' '.join(rule['peers'])}{addresses}"


def _origins(rules: Iterable[dict[str, Any]]) -> str:
    found = list(dict.fromkeys(rule["origin"] for rule in rules if rule["origin"]))
    return f" ({', '.join(found)})" if found else ""


def override(each: dict[str, Any], now: float) -> str:
    """Return one rule of `fwctl allow` or `fwctl deny`, and when it ends."""
    return f"fwctl {each['kind']} {each['rule']}, {until(each['until'], now)}"


def until(end: float | None, now: float) -> str:
    """Return the time that is left, or "permanent"."""
    return f"{left(end - now)} left" if end else "permanent"


def closed(published: dict[str, Any]) -> str:
    """Return from where a published port is closed."""
    peers = " ".join(published["peers"])
    return f"open to {peers}, closed to others" if published["some"] else "closed to the outside"


def host_lines(answer: dict[str, Any]) -> Iterator[Line]:
    """Yield what concerns the whole host: the table, Docker, containers and bridges without protection."""
    if not networks(answer) and not answer["apart"]:
        yield [(EMPTY, "")]
    yield from _table(answer)
    boot = answer.get("boot", "")
    yield from ([(text, "bad")] for text in (answer["unfit"], "" if boot == "kept" else boot) if text)
    if answer["unsaved"]:
        yield [(f"{answer['unsaved']}: nothing new opens, and what closes now reopens if docker-fw restarts", "bad")]
    yield from _dns(answer)
    yield from ([(f"{name}: {why}", "dim")] for name, why in sorted(answer["apart"].items()))
    for each in answer["overrides"]:
        yield [(f"container {each['container_id'][:12]} (on no network now): {override(each, answer['now'])}", "warn")]
    if answer["banned"]:
        several = "address or prefix is" if answer["banned"] == 1 else "addresses and prefixes are"
        yield [(f"{answer['banned']} {several} banned: fwctl bans", "warn")]
    if answer["foreign"]:
        yield [(f"bridges not protected, because they are not Docker's: {', '.join(answer['foreign'])}", "dim")]
    yield from _docker(answer)


def _table(answer: dict[str, Any]) -> Iterator[Line]:
    if answer["owned"]:
        text = "the table is owned by docker-fw: no other tool can change or flush it while docker-fw runs"
    else:
        text = "the table is watched: changes by other tools are reverted (Linux 6.9 can prevent them)"
    yield [(text, "dim")]
    if not answer["binds"]:
        text = (
            "containers on one network can use each other's addresses: this kernel has no nftables for bridges "
            "(CONFIG_NF_TABLES_BRIDGE)"
        )
        yield [(text, "warn")]


def _dns(answer: dict[str, Any]) -> Iterator[Line]:
    """Warn if DNS queries bypass `fw.egress` on this host, and a container has it."""
    egress = (endpoint["egress"] for network in networks(answer) for endpoint in network["endpoints"])
    if answer["host_resolver"] and any(rules is not None for rules in egress):
        text = (
            f"DNS queries bypass fw.egress: Docker's DNS forwards them to the host's resolver "
            f"({answer['host_resolver']}) from the host, whatever the container may connect to"
        )
        yield [(text, "warn")]


def _docker(answer: dict[str, Any]) -> Iterator[Line]:
    """Warn about what docker-fw does not know of Docker now, and what stays closed because of it."""
    if not answer["proxy_known"]:
        closed_ports = f"; closed now: {', '.join(answer['held'])}" if answer.get("held") else ""
        text = (
            "docker-proxy's control group is unknown: a new listening port of the host stays closed until Docker "
            f"confirms whose it is{closed_ports}"
        )
        yield [(text, "warn")]
    if not answer["watched"]:
        text = "docker-fw is behind Docker's events: Docker networks accept no new connections until it has caught up"
        yield [(text, "bad")]
    if not answer["listening"]:
        text = "Docker's API does not answer: containers that are new or unconfirmed answer on ICMP only until it does"
        yield [(text, "bad")]


# --- published ports, the dry run -------------------------------------------------------------------------------------


def published(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every published port with its container."""
    return [
        {"container": endpoint["container"], **each}
        for network in (*answer["networks"], *answer["guarded"])
        for endpoint in network["endpoints"]
        for each in endpoint["published"]
    ]


def ports(answer: dict[str, Any]) -> str:
    """Return the published ports of a status as text."""
    rows = [f"{row['container'] or '-':<30} {port(row)}{_why(row)}" for row in published(answer)]
    return "\n".join(map(printable, rows)) or "no published ports"


def _why(row: dict[str, Any]) -> str:
    if row["open"]:
        return ""
    if row["some"]:
        return f"  ({closed(row)})"
    return f"  (closed to the outside: fw.allow does not open {row['container_port']}/{row['proto']})"


def dry_run(report: dict[str, Any]) -> str:
    """Return as text what installing docker-fw would close, container by container, and what it would not change."""
    lines = [line for network in report["guarded"] for each in network["endpoints"] for line in _closes(each, network)]
    if not lines:
        lines = ["no container is on a Docker network; nothing would close"]
    lines += [f"{name}: {why}; docker-fw would not change that" for name, why in sorted(report["apart"].items())]
    if cut := sorted(
        {f"{flow['from']} → {flow['container']} {flow['port']}/{flow['proto']}" for flow in report["cut"]}
    ):
        lines += ["established connections that would be cut:", *(f"  {flow}" for flow in cut)]
    if report["refuses"]:
        lines = [f"docker-fw would not start: {report['refuses']}", "", *lines]
    return "\n".join(map(printable, lines))


def _closes(endpoint: dict[str, Any], network: dict[str, Any]) -> Iterator[str]:
    yield f"{endpoint['container']} on {network['name']} ({' '.join(endpoint['addresses'])})"
    yield f"  accepts from outside: {accepted(endpoint)}"
    for each in endpoint["published"]:
        if each["host_ip"] not in ("127.0.0.1", "::1"):
            yield f"  published {port(each)}: {_stays_open(each)}"
    yield from (f"  {text}" for text in (*endpoint["problems"], *endpoint["no_effect"]))


def _stays_open(published: dict[str, Any]) -> str:
    if published["open"]:
        return "stays open"
    if published["some"]:
        return f"stays open to {' '.join(published['peers'])}, CLOSES to others"
    label = f"{published['container_port']}" + ("" if published["proto"] == "tcp" else f"/{published['proto']}")
    return f'CLOSES (to keep it open: label fw.allow: "{label}")'


def port(published: dict[str, Any]) -> str:
    """Return a published port as Docker writes it."""
    host = f"[{published['host_ip']}]" if ":" in published["host_ip"] else published["host_ip"]
    return f"{host}:{published['host_port']}->{published['container_port']}/{published['proto']}"

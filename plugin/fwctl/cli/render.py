"""What `fwctl` tells people: lines of words, each with a style for a terminal. Pure; the data is the plugin's.

`plain` makes text of them for pipes and files. `plugin.fwctl.cli.terminal` makes colours and tables of the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from plugin.labels.duration import left
from plugin.labels.keys import EVERYTHING
from plugin.labels.peer_kinds import NAMED
from plugin.text import printable

#: Words and their style: "", good, bad, warn, dim, name.
Line = list[tuple[str, str]]
_EVERYTHING = {str(rule) for rule in EVERYTHING}
EMPTY = "no container on any network; all that comes will be closed but for TCP 22, 80, 443"


def plain(lines: Iterable[Line]) -> str:
    return "\n".join("".join(printable(words) for words, _ in line) for line in lines)


# --- status -----------------------------------------------------------------------------------------------------------


def status(told: dict[str, Any]) -> str:
    return plain(status_lines(told))


def status_lines(told: dict[str, Any]) -> list[Line]:
    return list(_status(told))


def _status(told: dict[str, Any]) -> Iterator[Line]:
    for network in networks(told):
        yield [(title(network), "name")]
        yield from ([("  " + problem, "bad")] for problem in network.get("problems", []))
        for endpoint in network["endpoints"]:
            who = endpoint["container"] or f"endpoint {endpoint['id'][:12]}"
            why = "" if endpoint["known"] else "  (its labels are not known yet)"
            style = "" if endpoint["accepts"] else "warn"
            addresses = ("  " + " ".join(endpoint["addresses"]) + "  ", "")
            yield [("  " + who, "name"), addresses, (accepted(endpoint) + why, style)]
            yield from ([("    " + words, style)] for words, style in details(endpoint, network, told["now"]))
    yield from around(told)


def networks(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Those worth a look: an empty network of Docker's is as closed as any, and of no interest."""
    guarded = [network for network in told["guarded"] if network["endpoints"] or network["problems"]]
    return [*told["networks"], *({**network, "docker": True} for network in guarded)]


def title(network: dict[str, Any]) -> str:
    if network.get("docker"):
        name = f"{network['name']} on {network['bridge']} (Docker's own)"
    else:
        name = network["bridge"] + (f" ({network['name']})" if network["name"] else "")
    note = "  (internal: nobody from outside)" if network["internal"] else ""
    return f"{name}  {' '.join(network['subnets'])}{note}"


def accepted(endpoint: dict[str, Any]) -> str:
    rules = endpoint["accepts"]
    if set(rules) >= _EVERYTHING:
        rules = ["everything", *(rule for rule in rules if rule not in _EVERYTHING)]
    return ", ".join(rules) or "ICMP only"


def details(endpoint: dict[str, Any], network: dict[str, Any], now: float) -> Iterator[tuple[str, str]]:
    """What else there is to say of a container: (words, style)."""
    by_origin: dict[str, list[str]] = {}
    for rule in endpoint["rules"]:
        if rule["origin"] not in ("base", "", "fwctl allow"):  # of which there is more to say
            by_origin.setdefault(rule["origin"], []).append(_rule(rule, "from"))
    for origin, texts in by_origin.items():
        yield f"{origin}: {'everything' if len(texts) == len(_EVERYTHING) else ', '.join(texts)}", "good"
    if endpoint["egress"] is not None:
        may = ", ".join(_rule(rule, "to") for rule in endpoint["egress"]) or "nothing"
        yield f"may begin {may}{_origins(endpoint['egress'])}", "dim"
    if endpoint["rates"]:
        yield f"at most {', '.join(r['rate'] for r in endpoint['rates'])}{_origins(endpoint['rates'])}", "dim"
    if endpoint["log"] == "drop":
        yield "what is dropped is logged", "dim"
    for each in endpoint["overrides"]:
        yield override(each, now), "warn"
    if not network["internal"]:
        yield from ((f"{port(p)}: {closed(p)}", "warn") for p in endpoint["published"] if not p["open"])
    yield from ((text, "bad") for text in endpoint["problems"])
    yield from ((text, "warn") for text in endpoint["no_effect"])
    if endpoint["dropped"] or endpoint["refused"]:
        yield f"dropped: {endpoint['dropped']} packets on their way to it, {endpoint['refused']} that it began", "dim"


def _rule(rule: dict[str, Any], word: str) -> str:
    """With who the peers are now, where they were written by name."""
    if not rule["peers"]:
        return str(rule["what"])
    now = [address for address in rule["addresses"] if address not in rule["peers"]]
    named = [peer for peer in rule["peers"] if ":" in peer and peer.partition(":")[0] in NAMED]
    who = f" = {' '.join(now) or 'nobody now'}" if named else ""
    return f"{rule['what']} {word} {' '.join(rule['peers'])}{who}"


def _origins(rules: Iterable[dict[str, Any]]) -> str:
    found = list(dict.fromkeys(rule["origin"] for rule in rules if rule["origin"]))
    return f" ({', '.join(found)})" if found else ""


def override(each: dict[str, Any], now: float) -> str:
    return f"fwctl {each['kind']} {each['rule']}, {until(each['until'], now)}"


def until(end: float | None, now: float) -> str:
    return f"{left(end - now)} left" if end else "for ever"


def closed(published: dict[str, Any]) -> str:
    peers = " ".join(published["peers"])
    return f"open to {peers}, closed to others" if published["some"] else "closed to the outside"


def around(told: dict[str, Any]) -> Iterator[Line]:
    """What is not of one network."""
    if not networks(told) and not told["apart"]:
        yield [(EMPTY, "")]
    if told["owned"]:
        text = "the table is docker-fw's alone: while it runs, no other tool can change or flush it"
    else:
        text = "the table is watched: what another tool changes or flushes is put back (Linux 6.9 can keep it off)"
    yield [(text, "dim")]
    if not told["binds"]:
        yield [
            (
                "containers of one network may take each other's addresses: this kernel has no nftables for bridges "
                "(CONFIG_NF_TABLES_BRIDGE)",
                "warn",
            )
        ]
    boot = told.get("boot", "")
    yield from ([(text, "bad")] for text in (told["unfit"], "" if boot == "kept" else boot) if text)
    if told["unsaved"]:
        yield [(f"{told['unsaved']}: nothing new opens, and what closed is forgotten if docker-fw restarts now", "bad")]
    yield from _names_that_leave(told)
    yield from ([(f"{name}: {why}", "dim")] for name, why in sorted(told["apart"].items()))
    for each in told["overrides"]:
        who = f"container {each['container_id'][:12]}, which is on no network now"
        yield [(f"{who}: {override(each, told['now'])}", "warn")]
    if told["banned"]:
        several = "address or prefix is" if told["banned"] == 1 else "addresses and prefixes are"
        yield [(f"{told['banned']} {several} banned: fwctl bans", "warn")]
    if told["foreign"]:
        yield [(f"left alone (not Docker's): {', '.join(told['foreign'])}", "dim")]
    if not told["proxy_known"]:
        held = f"; held now: {', '.join(told['held'])}" if told.get("held") else ""
        text = "docker-proxy is not known by its control group: what begins to listen on the host is held"
        yield [(f"{text} until Docker has told whose it is{held}", "warn")]
    if not told["watched"]:
        text = "docker-fw does not keep up with Docker: Docker's own networks take no new connection until it does"
        yield [(text, "bad")]
    if not told["listening"]:
        text = "Docker's API is silent: what is new, or was in doubt, answers on ICMP only until it speaks again"
        yield [(text, "bad")]


def _names_that_leave(told: dict[str, Any]) -> Iterator[Line]:
    """Past `fw.egress`, where somebody is held to it."""
    egress = (endpoint["egress"] for network in networks(told) for endpoint in network["endpoints"])
    if told["host_resolver"] and any(rules is not None for rules in egress):
        yield [
            (
                f"fw.egress does not hold names back: Docker's DNS asks the host's resolver ({told['host_resolver']}) "
                "from the host, so that containers send names out whatever they may begin",
                "warn",
            )
        ]


# --- published ports, the dry run -------------------------------------------------------------------------------------


def published(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Every published port with its container, on Docker's own networks and on ours."""
    return [
        {"container": endpoint["container"], **each}
        for network in (*told["networks"], *told["guarded"])
        for endpoint in network["endpoints"]
        for each in endpoint["published"]
    ]


def ports(told: dict[str, Any]) -> str:
    rows = [f"{row['container'] or '-':<30} {port(row)}{_why(row)}" for row in published(told)]
    return "\n".join(map(printable, rows)) or "no published ports"


def _why(row: dict[str, Any]) -> str:
    if row["open"]:
        return ""
    if row["some"]:
        return f"  ({closed(row)})"
    return f"  (closed to the outside: fw.allow does not open {row['container_port']}/{row['proto']})"


def dry_run(guarded: list[dict[str, Any]], not_guarded: dict[str, str], flows: Iterable[str]) -> str:
    """What installing docker-fw would close, container by container, and what it would leave as it is."""
    lines: list[str] = []
    for network in guarded:
        for endpoint in network["endpoints"]:
            addresses = " ".join(endpoint["addresses"])
            lines.append(f"{endpoint['container']} on {network['name']} ({addresses})")
            lines.append(f"  answers from outside on: {accepted(endpoint)}")
            for each in endpoint["published"]:
                if each["host_ip"] in ("127.0.0.1", "::1"):
                    continue
                label = f"{each['container_port']}" + ("" if each["proto"] == "tcp" else f"/{each['proto']}")
                verdict = f'CLOSES (to keep it: label fw.allow: "{label}")'
                if each["open"]:
                    verdict = "stays open"
                elif each["some"]:
                    verdict = f"stays open to {' '.join(each['peers'])}, CLOSES to others"
                lines.append(f"  published {port(each)}: {verdict}")
            lines += [f"  {text}" for text in (*endpoint["problems"], *endpoint["no_effect"])]
    if not lines:
        lines = ["no container is on a network of Docker's own; nothing would close"]
    lines += [f"{name}: {why}; docker-fw changes nothing there" for name, why in sorted(not_guarded.items())]
    cut = sorted(set(flows))
    if cut:
        lines += ["connections that stand now and would be cut:", *(f"  {flow}" for flow in cut)]
    return "\n".join(map(printable, lines))


def port(published: dict[str, Any]) -> str:
    host = f"[{published['host_ip']}]" if ":" in published["host_ip"] else published["host_ip"]
    return f"{host}:{published['host_port']}->{published['container_port']}/{published['proto']}"

"""Measure adding and removing one element of the table.

docker-fw's messages are compared with libnftables' text for the same change; another measurement adds one more rate,
which has chains and sets of its own. Nothing here needs Docker.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Collection
from ipaddress import IPv6Address
from typing import Any

from plugin.nftables import identity, rate_chains
from plugin.nftables.document import element_text
from plugin.nftables.sets import TABLE, Change, Element
from plugin.nftables.table import KernelTable
from tests.bench.scale import Scale
from tests.bench.table import Table, median, say
from tests.kernel.netns import nowhere

_NET = int(IPv6Address("2001:db8:b::"))
#: Rates that are active already when one more is added.
_FEW, _CROWD = 10, 1000


def measure(table: Table, scale: Scale, _: Collection[str]) -> None:
    with nowhere():
        _measure(table, scale.elements)


def _measure(table: Table, many: int) -> None:
    say(f"rules: one change at 10 and {many:,} elements, and beside a blocklist of {many:,}")
    nft, elements = KernelTable(0x08000000), _elements(many)
    empty = _weight(lambda: nft.replace([]), identity.remove)
    _changes(nft, table, "10", 10)
    began = time.perf_counter()
    nft.replace(elements)
    table.detail("rules", f"the whole table again, {many:,} elements", 1e3 * (time.perf_counter() - began), "ms")
    _changes(nft, table, f"{many:,}", many)
    _blocklist(many)
    _changes(nft, table, f"{many:,}, beside a blocklist of {many:,}", many)
    subprocess.run(["nft", "delete", "table", "inet", "blocklist"], check=True, timeout=60)
    table.detail("rules", "is the table intact?", 1e3 * median([_timed(nft.intact) for _ in range(50)]), "ms")
    full = _weight(lambda: nft.replace(elements), lambda: nft.replace([]))
    table.detail("rules", "memory of the kernel: the empty table", empty / 1e6, "MB")
    table.detail("rules", f"memory of the kernel: {many:,} elements", full / 1e6, "MB")
    for count in (_FEW, min(_CROWD, many)):
        rates = _rates(nft, count)
        table.detail("rules", f"a rate of a new address is added, beside {count:,} others", 1e3 * rates["in"], "ms")
        table.detail("rules", f"it is removed, beside {count:,} others", 1e3 * rates["out"], "ms")
    table.detail("rules", "memory of the kernel: one more rate, unused", rates["empty"] / 1e3, "kB")
    table.detail("rules", "memory of the kernel: one more rate, its set full of sources", rates["full"] / 1e3, "kB")


def _changes(nft: KernelTable, table: Table, state: str, count: int) -> None:
    own, text = _pair(nft, count)
    table.detail("rules", f"one element in or out of {state}, to libnftables", 1e3 * own, "ms", 1e3 * text)


def _rates(nft: KernelTable, count: int) -> dict[str, float]:
    """Return the seconds under the writer's lock, and the bytes, for one more rate beside so many others."""
    crowd = Change(add=tuple(map(_rated, range(count))))
    empty = _weight(lambda: _settled(nft.change, crowd), lambda: nft.replace([])) / count
    times: dict[str, list[float]] = {"in": [], "out": []}
    for n in range(20):
        one = (_rated(count + n),)
        times["in"].append(_timed(lambda o=one: nft.change(Change(add=o))))  # type: ignore[misc]
        times["out"].append(_timed(lambda o=one: nft.change(Change(remove=o))))  # type: ignore[misc]
    return {"in": median(times["in"]), "out": median(times["out"]), "empty": empty, "full": _full(nft)}


def _rated(number: int) -> Element:
    """Return SSH of one container, with a rate for which proven sources are remembered for hours."""
    address = IPv6Address(_NET + number)
    chain = f"limit6__{str(address).replace(':', '-')}__5_hour_10"
    return Element("rate_limit6", (address, 6, 22), (chain,))


def _full(nft: KernelTable) -> float:
    """Return the bytes that the sources of one flooded rate take."""
    name = f"sources6__{str(IPv6Address(_NET)).replace(':', '-')}__5_hour_10"
    sources = ", ".join(f"tcp . 22 . 2001:db8:{n:x}::" for n in range(2 * rate_chains.NEW))
    fill = f"add element inet {TABLE} {name} {{ {sources} }}"
    return _weight(lambda: _settled(_must, nft, fill), lambda: _must(nft, f"flush set inet {TABLE} {name}"))


def _settled(work: Callable[..., None], *args: Any) -> None:
    work(*args)
    time.sleep(0.3)  # sets shrink a moment later


def _pair(nft: KernelTable, count: int) -> tuple[float, float]:
    """Return the seconds for one element in or out, by docker-fw's messages and libnftables' text, alternately."""
    if count == 10:
        nft.replace(_elements(count))
    own: list[float] = []
    text: list[float] = []
    for turn in range(20):
        # Several in a row, because libnftables' reading leaves the CPU's caches full of other data.
        for n in range(10):
            element = Element("allow6", (IPv6Address(_NET + (1 << 40) + 10 * turn + n), 6, 8080))
            own.append(_timed(lambda e=element: nft.change(Change(add=(e,)))))  # type: ignore[misc]
            own.append(_timed(lambda e=element: nft.change(Change(remove=(e,)))))  # type: ignore[misc]
        for verb in ("add", "delete"):
            command = f"{verb} element inet {TABLE} allow6 {{ {element_text(element)} }}"
            text.append(_timed(lambda c=command: _must(nft, c)))  # type: ignore[misc]
    return median(own), median(text)


def _must(nft: KernelTable, command: str) -> None:
    # Its own context: a table with an owner accepts no other socket.
    code, _, error = nft._client._nft.cmd(command)
    if code:
        raise RuntimeError(f"{command}: {error}")


def _elements(count: int) -> list[Element]:
    """Return elements like those of many containers with three ports."""
    return [Element("allow6", (IPv6Address(_NET + n // 3), 6, (22, 80, 443)[n % 3])) for n in range(count)]


def _blocklist(count: int) -> None:
    """Add a table like those of CrowdSec or fail2ban."""
    addresses = ", ".join(f"100.{n >> 15}.{n >> 7 & 255}.{(n & 127) * 2}" for n in range(count))
    text = (
        "table inet blocklist {\nset banned {\ntypeof ip saddr\nflags interval\n"
        f"elements = {{ {addresses} }}\n}}\n}}\n"
    )
    done = subprocess.run(["nft", "-f", "-"], check=False, input=text, text=True, capture_output=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"nft: {done.stderr[:300]}")


def _weight(put: Callable[[], object], take: Callable[[], object]) -> float:
    """Return the kernel memory in bytes that `put` allocates: the median of several runs, as others allocate too."""
    deltas = []
    for _ in range(7):
        take()
        time.sleep(0.3)  # the kernel frees later
        before = _kernel_memory()
        put()
        deltas.append(_kernel_memory() - before)
    return median(deltas)


def _kernel_memory() -> float:
    """Return the bytes that the kernel allocated for itself, on the whole machine."""
    with open("/proc/meminfo") as lines:
        sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return 1024.0 * (sizes["Slab"] + sizes["VmallocUsed"] + sizes["Percpu"])


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began

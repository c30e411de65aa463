"""Compare the tables' text of two commits: for drawn packets, the same verdict, mark, labels, addresses and counts.

    python -m tests.pure.nftables.former write F               # at the former commit
    python -m tests.pure.nftables.former compare F --cases 5000  # at the later one

`compare` prints each difference with both ways, and the rules that no packet reached: those were not compared. It
refuses a file of other facts, whose texts may differ for that reason.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from plugin.nftables.sets import Element
from tests.mutation.nft_text import general
from tests.pure.nftables.drawn import Case, cases, drawing
from tests.pure.nftables.packets import Packet
from tests.pure.nftables.path import Outcome, Tables

#: Random tables, in addition to the golden ones.
COUNT = 60
#: Differences that are shown in full.
SHOWN = 2


_LENGTH = re.compile(r"\| \d+ \. (ip6? \w+)( & \S+)?")


class Difference(NamedTuple):
    """A packet for which two texts differ."""

    case: str
    family: str
    hook: str
    packet: Packet
    former: Outcome
    later: Outcome

    @property
    def kind(self) -> str:
        """What the later text does otherwise; the worst comes first in the report."""
        was, now = self.former.lasting[0], self.later.lasting[0]
        if was == now:
            return (
                "4 leaves other traces of a drop"
                if now != "accept"
                else "3 accepts with another mark, label or address"
            )
        return "1 OPENS" if now == "accept" else "2 closes" if was == "accept" else "4 drops in another way"

    def __str__(self) -> str:
        ways = []
        for name, outcome in (("former", self.former), ("later", self.later)):
            steps = "".join(f"\n      {each}" for each in outcome.matched)
            ways.append(f"    {name}: {outcome.lasting}{steps}")
        return "\n".join([f"{self.case}, {self.family} {self.hook}: {self.packet}", *ways])


class Seen:
    """The rules of the later texts, and which of them packets reached and matched."""

    def __init__(self) -> None:
        self.reached: Counter[tuple[str, str, str]] = Counter()
        self.matched: Counter[tuple[str, str, str]] = Counter()
        self.all: set[tuple[str, str, str]] = set()

    def add(self, tables: Tables, seen: dict[str, set[tuple[str, int]]]) -> None:
        """Add what the packets of one text reached."""
        for family in tables.tables:
            for chain, number, text in tables.rules(family):
                rule = (family, general(chain), general(text))
                self.all.add(rule)
                self.reached[rule] += (chain, number) in seen.get(family, ())
                self.matched[rule] += (chain, ~number) in seen.get(family, ())

    def never(self, what: Counter[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
        """Return the rules that are not in this count, sorted."""
        return sorted(rule for rule in self.all if not what[rule])


def differences(case: str, former: Tables, later: Tables, number: int, count: int, seen: Seen) -> Iterator[Difference]:
    """Yield the differences of two texts of the same facts, for that many packets."""
    draw = drawing((former, later), number)
    here: dict[str, set[tuple[str, int]]] = {family: set() for family in later.tables}
    for _ in range(count):
        family, hook, packet = draw()
        if family not in former.tables:
            continue
        one, other = former.walk(family, hook, packet), later.walk(family, hook, packet, here[family])
        if one.lasting != other.lasting:
            yield Difference(case, family, hook, packet, one, other)
    seen.add(later, here)


def saved(case: Case) -> dict[str, Any]:
    """Return a case as JSON."""
    more = [[element.set, *element.key] for element in case.more]
    return {"name": case.name, "facts": case.digest, "text": case.text, "more": more}


def tables(entry: dict[str, Any]) -> Tables:
    """Return the tables of such an entry."""
    return Tables(entry["text"], [Element(name, tuple(key)) for name, *key in entry["more"]])


def write(path: Path) -> None:
    """Write the texts of this commit."""
    path.write_text(json.dumps([saved(case) for case in cases(COUNT)], indent=1) + "\n")


def compare(path: Path, count: int) -> int:
    """Compare the texts of a file with those of this commit; return the number of differences."""
    now = {case.name: case for case in cases(COUNT)}
    seen, found = Seen(), Counter[str]()
    for number, entry in enumerate(json.loads(path.read_text())):
        case = now.get(entry["name"])
        if case is None or case.digest != entry["facts"]:
            sys.exit(f"{entry['name']} has other facts at this commit: write {path} again with this drawn.py")
        for difference in differences(case.name, tables(entry), tables(saved(case)), number, count, seen):
            kind = f"{difference.kind}, at {difference.later.matched[-1] if difference.later.matched else 'no rule'}"
            found[kind] += 1
            if found[kind] <= SHOWN:
                print(difference)
    _report(seen)
    print(f"{found.total()} differences")
    for kind, times in sorted(found.items()):
        print(f"{times:8} {kind}")
    return found.total()


def _report(seen: Seen) -> None:
    for what, rules in (("reached", seen.never(seen.reached)), ("matched", seen.never(seen.matched))):
        print(f"{len(rules)} of {len(seen.all)} rules were never {what}")
        # Look-ups that differ in the length of a prefix only are one line.
        for rule, count in Counter(
            re.sub(r"\| \d+ \. (ip6? \w+)( & \S+)?", r"| LENGTH . \1", " ".join(r)) for r in rules
        ).items():
            print(f"    {rule}" + (f" ({count} lengths)" if count > 1 else ""))


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("write", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", type=int, default=5000, help="packets for each text")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.command == "write":
        write(options.file)
        return 0
    return int(compare(options.file, options.cases) > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Write the generated parts of docs/networkpolicy.md: tables of fields, differences, families, changed labels.

`python -m tests.referees.networkpolicy.report` writes the parts that follow from the code; `make referee-policy` all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tests.referees.networkpolicy import documented, families
from tests.referees.networkpolicy.cases import FAMILIES
from tests.referees.networkpolicy.expected import DIFFERENCES
from tests.referees.networkpolicy.placing import LAYOUTS
from tests.referees.networkpolicy.pure import Result, states

assert families.__all__, "importing the package registers the families"
FILE = Path(__file__).resolve().parents[3] / "docs/networkpolicy.md"
#: The families whose steps change pods and namespaces.
_STORIES = ("actions", "example", "e2e")


def replaced(text: str, part: str, body: str) -> str:
    """Return the text with another body between the markers of a part."""
    start, end = f"<!-- generated: {part} -->\n", f"<!-- end: {part} -->"
    assert text.count(start) == text.count(end) == 1, f"{FILE.name} has no part {part}"
    return re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: f"{start}{body}\n{end}", text, flags=re.DOTALL)


def static(text: str) -> str:
    """Return the document with the parts that follow from the code alone."""
    text = replaced(text, "fields", documented.fields())
    text = replaced(text, "subjects", subjects())
    text = replaced(text, "differences", differences())
    text = replaced(text, "limits", limits())
    return replaced(text, "changes", changes())


def with_run(text: str, level: str, results: Mapping[str, Result]) -> str:
    """Return the document with the counts of a whole run at one level, by family."""
    return replaced(static(text), level, counts(results))


def counts(results: Mapping[str, Result]) -> str:
    """Return the table of one level: its families, and the connections that showed each difference."""
    lines = [
        f"| family | cases | states | connections | {' | '.join(DIFFERENCES)} | disagreements |",
        "|---|" + "---:|" * (4 + len(DIFFERENCES)),
    ]
    total = Result()
    for name in FAMILIES:
        total.add(results[name])
        lines.append(f"| {name} {_counts(results[name])}")
    lines.append(f"| **all** {_counts(total)}")
    return "\n".join(lines)


def _counts(result: Result) -> str:
    numbers = [result.cases, result.states, result.probes, *(result.differences[name] for name in DIFFERENCES)]
    return f"| {' | '.join(f'{number:,}' for number in numbers)} | {len(result.wrong)} |"


def subjects() -> str:
    """Return the table of families."""
    lines = ["| family | subject | list from |", "|---|---|---|"]
    lines += [f"| {name} | {family.subject} | {family.origin} |" for name, family in FAMILIES.items()]
    return "\n".join(lines)


def differences() -> str:
    """Return the table of differences between Kubernetes and docker-fw."""
    lines = ["| difference | Kubernetes | docker-fw |", "|---|---|---|"]
    lines += [f"| {name} | {theirs} | {ours} |" for name, (theirs, ours) in DIFFERENCES.items()]
    return "\n".join(lines)


def limits() -> str:
    """Return the table of policies that labels cannot express."""
    lines = ["| policy | nearest labels |", "|---|---|"]
    for case in FAMILIES["limits"].cases(LAYOUTS["separate"]):
        assert case.nearest
        lines.append(f"| {case.name} | {case.reason} |")
    return "\n".join(lines)


def changes() -> str:
    """Return the table of steps after which running containers need other labels."""
    lines = ["| case | change | containers with other labels |", "|---|---|---|"]
    layout = LAYOUTS["separate"]
    for name in _STORIES:
        for case in FAMILIES[name].cases(layout):
            before: Mapping[str, Mapping[str, str]] = {}
            for number, state in enumerate(states(layout, case)):
                other = [pod for pod, labels in state.labels.items() if before.get(pod, labels) != labels]
                if number:
                    lines.append(f"| {case.name} | {state.step.text} | {', '.join(other) or 'none'} |")
                before = state.labels
    return "\n".join(lines)


if __name__ == "__main__":
    FILE.write_text(static(FILE.read_text()))

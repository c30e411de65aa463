"""Real packets pass where Kubernetes' NetworkPolicy lets them: a case of each family, through the table in the kernel.

`make referee-policy` sends the packets of every case.
"""

from __future__ import annotations

from tests.referees.networkpolicy import families
from tests.referees.networkpolicy.cases import FAMILIES
from tests.referees.networkpolicy.expected import DIFFERENCES, HOST, NARROWER, NEIGHBOURS
from tests.referees.networkpolicy.placing import LAYOUTS
from tests.referees.networkpolicy.probes import SAMPLE
from tests.referees.networkpolicy.pure import Result, ready
from tests.referees.networkpolicy.wire import Bed, bed

assert families.__all__
_OPPOSITES = ("deny all ingress", "allow all ingress")


def _compare(made: Bed, *names: str) -> None:
    """Compare the longest case of each family."""
    result = Result()
    for name in names:
        case = max(FAMILIES[name].cases(made.layout), key=lambda case: len(case.steps))
        result.add(made.compare(case, SAMPLE))
    assert not result.wrong, "\n".join(result.wrong[:10])
    assert result.probes > 1000 * result.states
    seen = set(DIFFERENCES) - ({NEIGHBOURS} if made.layout.name == "separate" else set())
    assert seen - {NARROWER, HOST} <= set(result.differences) <= seen


def test_packets_pass_as_in_kubernetes() -> None:
    """With one network for each container, a packet passes exactly if Kubernetes would let it pass, but for the
    differences of docs/networkpolicy.md: the longest case of each family."""
    with bed(LAYOUTS["separate"]) as made:
        _compare(made, *FAMILIES)


def test_packets_between_neighbours_pass() -> None:
    """With one network for each namespace, the same holds, but packets between neighbours always pass.

    The comparison can fail: packets that were to be dropped pass once the table has another case's labels.
    """
    layout = LAYOUTS["shared"]
    denied, free = (next(each for each in FAMILIES["e2e"].cases(layout) if each.name == name) for name in _OPPOSITES)
    with bed(layout) as made:
        _compare(made, "rules", "limits")
        (_, compiler), *_ = ready(layout, made.places, free, Result())
        made.load(compiler)
        made.load = lambda _: None  # type: ignore[method-assign]
        assert made.compare(free, SAMPLE).wrong == []
        assert made.compare(denied, SAMPLE).wrong

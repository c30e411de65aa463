"""A network's answer with one endpoint parsed of many: the same as if all of it were parsed, whatever names contain."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.docker import one_endpoint, parse
from plugin.docker.container_labels import ContainerLabels
from tests.pure.strategies import examples

IDS = [digit * 64 for digit in "0ae"]
#: Text that people choose, among it parts of what Docker writes.
texts = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["web", "db.1", '"', "\\", "{", "}", "}}", "}},", ",", '"Containers":{', *IDS]),
    st.sampled_from([f'"EndpointID":"{IDS[0]}"', f'{{"Name":"web","EndpointID":"{IDS[0]}"}}', '"Name":"web"']),
).flatmap(lambda one: st.sampled_from([one, f"x{one}", f'"{one}', f"{one}{one}"]))
endpoints = st.fixed_dictionaries(
    {"Name": texts, "EndpointID": st.one_of(st.sampled_from(IDS), texts), "IPv4Address": st.just("10.0.0.2/24")}
)
keys = st.one_of(st.sampled_from([*IDS, *(f"ep-{each}" for each in IDS)]), texts)
labels = st.dictionaries(st.one_of(texts, st.sampled_from(["Name", "EndpointID", "Containers"])), texts, max_size=3)
members = {
    "Name": texts,
    "Id": st.sampled_from(IDS),
    "IPAM": st.just({"Config": [{"Subnet": "10.0.0.0/24"}], "Options": None}),
    "Containers": st.dictionaries(keys, endpoints, max_size=4),
    "Options": labels,
    "Labels": labels,
    "Status": st.just({"IPAM": {"Subnets": {"10.0.0.0/24": {"IPsInUse": 3}}}}),
}
networks = st.permutations(list(members)).flatmap(
    lambda order: st.fixed_dictionaries({name: members[name] for name in order})
)
Question = tuple[Callable[[bytes], Any], Callable[[str, Any], bool]]
QUESTIONS: list[Question] = [
    (one_endpoint.network, lambda *_: False),
    *(
        (
            (lambda text, each=each: one_endpoint.of_endpoint(text, each)),
            lambda _, v, each=each: v["EndpointID"] == each,
        )
        for each in (*IDS, "f" * 64)
    ),
    *(
        (
            (lambda text, each=each, name=name: one_endpoint.of_container(text, each, name)),
            lambda key, v, each=each, name=name: each == key or v["Name"] == name,
        )
        for each, name in [(IDS[0], "web"), (IDS[1], "db.1"), ("f" * 64, "}},"), (IDS[2], "}}")]
    ),
]


@examples(400)
@given(networks, st.booleans(), st.booleans())
def test_all_that_is_asked_for_is_as_in_the_whole_answer(network: Any, compact: bool, ascii_only: bool) -> None:
    """The network is the same, and so are the endpoints in question, in their order; no other text passes for one."""
    separators = (",", ":") if compact else None
    text = json.dumps(network, separators=separators, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    whole = json.loads(text)
    for ask, wanted in QUESTIONS:
        found = ask(text)
        there = found.pop("Containers")
        assert found == {name: value for name, value in whole.items() if name != "Containers"}
        chosen = [(key, value) for key, value in there.items() if wanted(key, value)]
        assert chosen == [(key, value) for key, value in whole["Containers"].items() if wanted(key, value)]


@pytest.mark.parametrize("text", [b"", b"[", b'{"Containers":{"a":{"Name":"', b'{"Containers":{"a":{"Name":"b"}}'])
def test_an_incomplete_answer_is_an_error(text: bytes) -> None:
    """An answer that breaks off has no endpoint."""
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        one_endpoint.of_endpoint(text, IDS[0])


@pytest.mark.parametrize("inner", ['"x":"y",%s,', "%s,"])
@pytest.mark.parametrize("key", [IDS[0], f"ep-{IDS[1]}"])
def test_an_object_within_an_endpoint_is_none(inner: str, key: str) -> None:
    """If an endpoint of another container contains an object like an endpoint, it is not taken for one."""
    false = f'"{key}":{{"Name":"web","EndpointID":"{IDS[1]}","IPv4Address":"10.0.0.9/24"}}'
    other = f'"{IDS[2]}":{{"Name":"db",{inner % false}"EndpointID":"{IDS[2]}"}}'
    text = f'{{"Name":"app","Id":"{IDS[2]}","Containers":{{{other}}},"Options":{{}}}}'.encode()
    whole = json.loads(text)
    assert parse.endpoint_name(one_endpoint.of_endpoint(text, IDS[1]), IDS[1]) is parse.endpoint_name(whole, IDS[1])
    labels = ContainerLabels(IDS[0], "web")
    assert parse.attached(one_endpoint.of_container(text, IDS[0], "web"), labels, {}) is None


def test_a_thousand_endpoints_cost_no_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network of a thousand endpoints as much is parsed as of one of ten."""

    def parsed(many: int) -> int:
        there = {
            f"{n:064x}": {"Name": f"c{n}", "EndpointID": f"{n + 4096:064x}", "IPv4Address": ""} for n in range(many)
        }
        network = {"Name": "app", "Id": IDS[1], "Containers": there, "Options": {}, "Labels": {}}
        text, sizes = json.dumps(network, separators=(",", ":")).encode(), []
        loads = json.loads
        monkeypatch.setattr(one_endpoint.json, "loads", lambda text: [sizes.append(len(text)), loads(text)][1])
        assert list(one_endpoint.of_endpoint(text, f"{4096:064x}")["Containers"]) == [f"{0:064x}"]
        assert list(one_endpoint.of_container(text, f"{5:064x}", "c5")["Containers"]) == [f"{5:064x}"]
        monkeypatch.undo()
        return sum(sizes)

    assert parsed(10) == parsed(1000)

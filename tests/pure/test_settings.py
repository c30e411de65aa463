"""Settings from the environment: defaults that work, and every mistake at once before anything runs."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.model import FwError, Rule
from plugin.settings import SETTINGS, Settings, read
from tests.pure.strategies import examples

DEFAULT = Settings(
    socket="/run/docker/plugins/fw.sock",
    docker_socket="/host/run/docker.sock",
    state="/var/lib/docker-fw/state.json",
    sysctl="/host/proc/sys/net",
    cgroup="/host/cgroup",
    dockerd_ports=(
        Rule("tcp", 2375, 2377), Rule("tcp", 7946, 7946), Rule("tcp", 9323, 9323), Rule("udp", 4789, 4789),
        Rule("udp", 7946, 7946),
    ),
    allow=(),
    published=False,
    mark=0x08000000,
    log_level="info",
)


def test_nothing_needs_to_be_set() -> None:
    """An empty environment is a working configuration: the base, and nothing more."""
    assert read({}) == DEFAULT


def test_every_setting_has_a_field() -> None:
    """Each documented setting is one that is read."""
    assert {name.removeprefix("FW_").lower() for name in SETTINGS} == {f.name for f in dataclasses.fields(Settings)}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_empty_means_default(name: str) -> None:
    """`docker plugin set FW_X=` gives the default back; so do blanks."""
    assert read({name: ""}) == read({name: "  "}) == DEFAULT


def test_variables_of_others_are_left_alone() -> None:
    """The environment's other variables are nobody's mistake."""
    assert read({"PATH": "/bin", "fw_mark": "x", "FWX": "y"}) == DEFAULT


@pytest.mark.parametrize(
    ("text", "mark"),
    [("0x1", 1), ("0X80000000", 1 << 31), ("134217728", 1 << 27), ("1", 1), (" 0x2 ", 2), ("0x00000004", 4)],
)
def test_the_mark_is_read_in_hex_or_decimal(text: str, mark: int) -> None:
    """A mark is written as iptables and nft show it."""
    assert read({"FW_MARK": text}).mark == mark


@pytest.mark.parametrize(
    "text", ["0", "0x0", "3", "0x100000000", "4294967296", "-1", "0b1", "0o1", "x", "1e3", "0x", "1_0", "٤", "9" * 50]
)
def test_the_mark_is_one_bit_of_32(text: str) -> None:
    """Anything else than one bit is refused: it would let through what others marked, or clear their marks."""
    with pytest.raises(FwError, match="must be one bit of 32, like 0x08000000"):
        read({"FW_MARK": text})


def test_what_the_host_allows_is_read_like_a_label() -> None:
    """FW_ALLOW speaks fw.allow's language, sorted and without doubles."""
    assert read({"FW_ALLOW": "53/udp, 8080, 8080"}).allow == (Rule("tcp", 8080, 8080), Rule("udp", 53, 53))


@pytest.mark.parametrize("level", ["debug", "INFO", "Warning", "error"])
def test_log_levels_in_any_case(level: str) -> None:
    """A level is a keyword: its case does not matter."""
    assert read({"FW_LOG_LEVEL": level}).log_level == level.lower()


def test_every_mistake_at_once() -> None:
    """All that is wrong is told in one go, each with its name, its value and what would be right."""
    with pytest.raises(FwError) as caught:
        read(
            {
                "FW_ALLOW": "808O, 8080, 0",
                "FW_ALOW": "1",
                "FW_MARK": "3",
                "FW_LOG_LEVEL": "loud",
                "FW_STATE": "state.json",
                "FW_SOCKET": "fw.sock",
            }
        )
    assert str(caught.value).split("; ") == [
        f"FW_ALOW is not a setting (known: {', '.join(SETTINGS)})",
        'FW_ALLOW="808O, 8080, 0": "808O" is not a port (1-65535, a range like 9000-9100, or *)',
        'FW_ALLOW="808O, 8080, 0": "0" is not a port (1-65535, a range like 9000-9100, or *)',
        'FW_MARK="3": must be one bit of 32, like 0x08000000',
        'FW_LOG_LEVEL="loud": must be debug, info, warning or error',
        'FW_SOCKET="fw.sock": must be an absolute path',
        'FW_STATE="state.json": must be an absolute path',
    ]


@given(st.dictionaries(st.sampled_from([*SETTINGS, "FW_X", "HOME"]), st.text(max_size=30), max_size=4))
@examples(100)
def test_any_environment_is_settings_or_one_clear_error(environ: dict[str, str]) -> None:
    """No value whatever crashes the start in another way than with a message that names the setting."""
    try:
        settings = read(environ)
    except FwError as refused:
        said = str(refused)
        assert any(name in said for name in environ)
    else:
        assert settings.mark.bit_count() == 1
        assert settings.socket.startswith("/")

"""Settings from the environment: defaults that work, and every mistake at once before anything runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.labels.keys import EVERYTHING, KEYS
from plugin.model import Defaults, FwError, PolicySpec, Rate, Rule
from plugin.settings import SETTINGS, Settings, read
from tests.pure.strategies import examples

DEFAULT = Settings(
    socket="/run/docker/plugins/fw.sock",
    docker_socket="/host/run/docker.sock",
    state="/var/lib/docker-fw/state.json",
    sysctl="/host/proc/sys/net",
    cgroup="/host/cgroup",
    dockerd_cgroup=("system.slice/docker.service", "system.slice/snap.docker.dockerd.service", "openrc.docker"),
    boot="/host/etc/docker-fw",
    dockerd_ports=(
        Rule("tcp", 2375, 2377),
        Rule("tcp", 7946, 7946),
        Rule("tcp", 9323, 9323),
        Rule("udp", 4789, 4789),
        Rule("udp", 7946, 7946),
    ),
    defaults=Defaults(PolicySpec(log="none")),
    refuse=True,
    trust_images=False,
    mark=0x08000000,
    log_level="info",
)


def test_nothing_needs_to_be_set() -> None:
    """An empty environment is a working configuration: the base, and no more."""
    assert read({}) == DEFAULT


#: By setting, a value other than its default.
OTHERS = {
    "FW_SOCKET": "/x",
    "FW_DOCKER_SOCKET": "/x",
    "FW_STATE": "/x",
    "FW_SYSCTL": "/x",
    "FW_CGROUP": "/x",
    "FW_BOOT": "/x",
    "FW_DOCKERD_CGROUP": "docker",
    "FW_DOCKERD_PORTS": "1",
    "FW_ALLOW": "1",
    "FW_DENY": "22",
    "FW_POLICY": "closed",
    "FW_EGRESS": "none",
    "FW_RATE": "22 1/day",
    "FW_LOG": "drop",
    "FW_MISTAKES": "close",
    "FW_IMAGE_LABELS": "trust",
    "FW_PUBLISHED": "allow",
    "FW_MARK": "1",
    "FW_LOG_LEVEL": "debug",
}


def test_every_setting_is_read() -> None:
    """Each documented setting has an effect, and each label key except fw.network has one."""
    assert OTHERS.keys() == SETTINGS.keys()
    for name, value in OTHERS.items():
        assert read({name: value}) != DEFAULT
    assert {key.setting for key in KEYS.values()} <= SETTINGS.keys()
    assert read(OTHERS) == Settings(
        "/x",
        "/x",
        "/x",
        "/x",
        "/x",
        ("docker",),
        "/x",
        (Rule("tcp", 1, 1),),
        Defaults(
            PolicySpec(
                (Rule("tcp", 1, 1),), (Rule("tcp", 22, 22),), "closed", (), (Rate("tcp", 22, 22, 1, "day", 5),), "drop"
            ),
            published=True,
        ),
        refuse=False,
        trust_images=True,
        mark=1,
        log_level="debug",
    )


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_empty_means_default(name: str) -> None:
    """`docker plugin set FW_X=` restores the default; so do blanks."""
    assert read({name: ""}) == read({name: "  "}) == DEFAULT


def test_variables_of_other_programs_are_ignored() -> None:
    """Other variables in the environment are not mistakes."""
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
    """Any other value than one bit is refused: it would let through packets that other programs marked, or clear their
    marks."""
    with pytest.raises(FwError, match="must be one bit of 32, like 0x08000000"):
        read({"FW_MARK": text})


def test_a_setting_is_read_like_a_label() -> None:
    """FW_ALLOW uses fw.allow's language, sorted and without duplicates; each other setting uses its key's."""
    spec = read({"FW_ALLOW": "53/udp, 8080, 8080"}).defaults.spec
    assert spec.allow == (Rule("tcp", 8080, 8080), Rule("udp", 53, 53))
    assert {rule.origin for rule in spec.allow} == {"setting fw.allow"}
    assert read({"FW_EGRESS": "all"}).defaults.spec.egress == EVERYTHING
    assert str(read({"FW_ALLOW": "22 from 10.0.0.0/8"}).defaults.spec.allow[0]) == "22/tcp from 10.0.0.0/8"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "FW_DENY",
            "22 from any",
            'FW_DENY="22 from any": "22 from any": a denied port is closed to all sources; '
            'to open it to some, write fw.allow: "22 from 2001:db8::/32"',
        ),
        ("FW_POLICY", "clsed", 'FW_POLICY="clsed": "clsed" is not default, closed or open; did you mean closed?'),
        (
            "FW_EGRESS",
            "443 from 10.0.0.1",
            'FW_EGRESS="443 from 10.0.0.1": "443 from 10.0.0.1": write "to" here, not "from"',
        ),
        (
            "FW_RATE",
            "22",
            'FW_RATE="22": "22" is not a rate, like 22 5/minute burst 10 (per second, minute, hour or day)',
        ),
        ("FW_LOG", "yes", 'FW_LOG="yes": "yes" is not drop or none'),
        ("FW_MISTAKES", "ignore", 'FW_MISTAKES="ignore": must be refuse or close'),
        ("FW_IMAGE_LABELS", "yes", 'FW_IMAGE_LABELS="yes": must be ignore or trust'),
        ("FW_PUBLISHED", "open", 'FW_PUBLISHED="open": must be policy or allow'),
        (
            "FW_DOCKERD_CGROUP",
            "/",
            'FW_DOCKERD_CGROUP="/": "/" must be a path of one to four names, like system.slice/docker.service',
        ),
        (
            "FW_DOCKERD_CGROUP",
            "a, ../b",
            'FW_DOCKERD_CGROUP="a, ../b": "../b" must be a path of one to four names, like system.slice/docker.service',
        ),
        (
            "FW_DOCKERD_CGROUP",
            "a/b/c/d/e",
            'FW_DOCKERD_CGROUP="a/b/c/d/e": "a/b/c/d/e" must be a path of one to four names, '
            "like system.slice/docker.service",
        ),
        ("FW_DOCKERD_PORTS", "gre", 'FW_DOCKERD_PORTS="gre": gre has no ports'),
        ("FW_DOCKERD_PORTS", "x", 'FW_DOCKERD_PORTS="x": "x" is not a port (1-65535, a range like 9000-9100, or *)'),
    ],
)
def test_a_wrong_setting_stops_the_start(name: str, value: str, message: str) -> None:
    """A value with a mistake in the label language is reported like a label's, with the setting's name: no start with a
    guess."""
    with pytest.raises(FwError) as caught:
        read({name: value})
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["FW_MISTAKES", "FW_IMAGE_LABELS", "FW_PUBLISHED", "FW_POLICY", "FW_EGRESS", "FW_LOG"])
def test_keywords_in_any_case(name: str) -> None:
    """A keyword's case does not matter."""
    assert read({name: OTHERS[name].upper()}) == read({name: OTHERS[name]})


@pytest.mark.parametrize("level", ["debug", "INFO", "Warning", "error"])
def test_log_levels_in_any_case(level: str) -> None:
    """A level is a keyword: its case does not matter."""
    assert read({"FW_LOG_LEVEL": level}).log_level == level.lower()


def test_every_mistake_is_reported_at_once() -> None:
    """All mistakes are reported at once, each with its name, its value and what would be right."""
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


def test_the_state_file_is_not_the_boot_table() -> None:
    """docker-fw would write its boot table over a state file of that name."""
    with pytest.raises(FwError, match=r"must not be named boot\.nft"):
        read({"FW_STATE": "/var/lib/docker-fw/boot.nft"})
    assert read({"FW_STATE": "/boot.nft/state.json"}).state == "/boot.nft/state.json"


@given(st.dictionaries(st.sampled_from([*SETTINGS, "FW_X", "HOME"]), st.text(max_size=30), max_size=4))
@examples(100)
def test_any_environment_gives_settings_or_one_clear_error(environ: dict[str, str]) -> None:
    """For any values, the start fails only with a message that names the setting."""
    try:
        settings = read(environ)
    except FwError as refused:
        spec = str(refused)
        assert any(name in spec for name in environ)
    else:
        assert settings.mark.bit_count() == 1
        assert settings.socket.startswith("/")

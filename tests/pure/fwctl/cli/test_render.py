"""The output of `fwctl`: plain text for pipes, and colours on a terminal."""

from __future__ import annotations

import dataclasses
import io
import re
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from plugin.docker.engine import Engine
from plugin.fwctl.api import status
from plugin.fwctl.cli import render, render_answers, terminal
from plugin.kernel.resolver import asked_from_host
from plugin.labels.duration import left, parse
from plugin.labels.parser import parse as labels
from plugin.model import Container, Defaults, Overriding, Problem, Published, Rule
from plugin.policy.saved import SavedState
from tests.pure.answers import QUIET_STATUS
from tests.pure.site import BACK, FRONT, Site, container, guest, ours, published

pytestmark = pytest.mark.usefixtures("no_flows")

ROOT = Path(__file__).parents[4]
NOW = 1_000_000.0
WEB = container("web", {"fw.allow": "8080, 5432 from service:api container:db, 9000 from 203.0.113.0/24"}, "shop_front")
_SHY = {"fw.egress": "443, 53/udp to container:db", "fw.rate": "22 5/minute burst 10", "fw.log": "drop"}
SHY = container("shy", _SHY)
DB = container("db")
OPEN = container("open", {"fw.policy": "open", "fw.deny": "22"})
WRONG = Container("w" * 64, "wrong", problems=(Problem("label fw.dney", "80", "is not a key of docker-fw"),))
LOOP = Published("tcp", ip_address("127.0.0.1"), 18081, 80)


def answer(site: Site, **more: Any) -> dict[str, Any]:
    """Return an answer as `GET /status` gives it."""
    inventory = site.state.snapshot()
    dropped = {endpoint.addr4: (12, 3) for endpoint in inventory.state.endpoints.values() if endpoint.addr4}
    guarded = status.guarded_networks(inventory, Engine("28.5.2"), 0x08000000, {})
    return {
        **QUIET_STATUS,
        "version": "1.2.3",
        "now": NOW,
        "networks": status.driver_networks(inventory, dropped),
        "guarded": guarded,
        "overrides": status.elsewhere(inventory),
        **more,
    }


def report(site: Site, not_protected: dict[str, str], source: str, container: str) -> dict[str, Any]:
    """Return a report as `fwctl dry-run --json` gives it, with one connection that would be cut."""
    cut = {"from": source, "container": container, "address": "172.18.0.2", "port": 5432, "proto": "tcp"}
    return {"refuses": "", "guarded": answer(site)["guarded"], "apart": not_protected, "cut": [cut]}


def words(site: Site, **more: Any) -> str:
    return render.status(answer(site, **more))


@pytest.fixture
def site() -> Site:
    state = SavedState(
        overrides=(
            Overriding(WEB.id, Rule("tcp", 7000, 7000, origin="fwctl allow"), until=NOW + 3540),
            Overriding(WEB.id, Rule("tcp", 22, 22, origin="fwctl deny"), deny=True),
            Overriding("9" * 64, Rule("tcp", 80, 80), deny=True, until=NOW + 90),
        )
    )
    return Site(
        ours(2, WEB, *published(8080, 18080), *published(5432, 15432), *published(6000, 16000), LOOP),
        ours(3, SHY),
        ours(4, DB),
        ours(5, None),
        guest(FRONT, 2, OPEN),
        guest(FRONT, 3, WRONG),
        guest(BACK, 2, DB),
        state=state,
        existing=("9" * 64,),
        defaults=Defaults(labels({"fw.allow": "9100"}, "setting ").spec),
    )


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_shows_ports_with_their_peers_and_origins(site: Site) -> None:
    """Networks, containers, addresses; ports with their origin; named peers with their current addresses."""
    lines = words(site).splitlines()
    assert lines[0] == "fw-ffffffffffff (shop_front)  10.1.0.0/24 2001:db8:1::/64"
    web = "  web  10.1.0.2 2001:db8:1::2  80/tcp, 443/tcp, 5432/tcp from container:db service:api, 7000/tcp, "
    assert lines[1].startswith(web)
    assert "    setting fw.allow: 9100/tcp" in lines
    here = next(line for line in lines if line.startswith("    label fw.allow: 5432/tcp"))
    assert here == (
        "    label fw.allow: 5432/tcp from container:db service:api = 10.1.0.4 172.19.0.2 2001:db8:1::4, 8080/tcp, "
        "9000/tcp from 203.0.113.0/24"
    )
    assert "front on br-front (Docker network)  172.18.0.0/16 2001:db8:a::/64" in lines
    assert "  endpoint eeeeeeeeeeee  10.1.0.5 2001:db8:1::5  ICMP only (labels not known yet)" in lines


def test_a_name_without_a_match_is_shown(site: Site) -> None:
    """A rule for a name that matches no container is shown as such: it opens nothing, which a user may wonder about."""
    alone = Site(ours(2, container("web", {"fw.allow": "5432 from service:api"})))
    assert "label fw.allow: 5432/tcp from service:api = no container now" in words(alone)


def test_status_shows_egress_rates_and_logging(site: Site) -> None:
    """Egress, rates and logging are shown with their origin."""
    text = words(site)
    assert "    egress: 443/tcp, 53/udp to container:db = 10.1.0.4 172.19.0.2 2001:db8:1::4 (label fw.egress)" in text
    assert "    rate limit: 22/tcp 5/minute burst 10 (label fw.rate)" in text
    assert "    drops are logged" in text
    assert "egress: nothing" not in text
    none = Site(ours(2, container("shy", {"fw.egress": "none"})))
    assert "    egress: nothing" in words(none)


def test_an_open_policy_is_shown_as_everything(site: Site) -> None:
    """`fw.policy: open` is not shown as a list of seven rules; with a denied port, the remaining ranges are shown."""
    whole = Site(guest(FRONT, 2, container("open", {"fw.policy": "open"})))
    assert "  open  172.18.0.2 2001:db8:a::2  everything\n    fw.policy: open: everything" in words(whole)
    assert "1-21/tcp" in words(site)


def test_status_shows_overrides_with_the_remaining_time(site: Site) -> None:
    """Overrides of a stopped container are shown too, because they apply again when it starts."""
    text = words(site)
    assert "    fwctl allow 7000/tcp, 59 min left" in text
    assert "    fwctl deny 22/tcp, permanent" in text
    assert "container 999999999999 (on no network now): fwctl deny 80/tcp, 90 s left" in text


def test_status_shows_mistakes_and_rules_without_effect(site: Site) -> None:
    """Mistakes, labels of an image, rules without effect because of Docker's firewall, drops."""
    text = words(site)
    assert '    label fw.dney="80": is not a key of docker-fw' in text
    assert "  wrong  172.18.0.3 2001:db8:a::3  ICMP only" in text
    assert "    dropped: 12 packets to it, 3 from it" in text
    notice = 'label fw.allow="80" comes from the image and opens nothing (FW_IMAGE_LABELS=trust allows it)'
    quiet = dataclasses.replace(container("app", {"fw.allow": "9999"}), notices=(notice,))
    text = words(Site(guest(FRONT, 2, quiet)))
    assert f"    {notice}" in text
    assert "fw.allow=9999 has no effect on front because it is a nat network" in text


def test_an_override_without_effect_is_shown() -> None:
    """Docker drops the packets on a nat network, whatever opened the port."""
    rule = Rule("tcp", 9999, 9999, origin="fwctl allow")
    site = Site(guest(FRONT, 2, DB), state=SavedState(overrides=(Overriding(DB.id, rule),)))
    assert "fwctl allow 9999 has no effect on front because it is a nat network" in words(site)


def test_status_shows_closed_published_ports(site: Site) -> None:
    """Ports closed for all sources, or for some; a port on the host's loopback has no line."""
    text = words(site)
    assert "    0.0.0.0:16000->6000/tcp: closed to the outside" in text
    assert "    [::]:15432->5432/tcp: open to container:db service:api, closed to others" in text
    assert "18080" not in text
    assert "18081" not in text


def test_status_warns_that_names_leave_by_the_hosts_resolver() -> None:
    """The warning appears if a container has fw.egress and the host's resolver is on loopback, and only then."""
    free, egress_restricted = Site(ours(2, DB)), Site(ours(2, container("db", {"fw.egress": "none"})))
    warning = (
        "DNS queries bypass fw.egress: Docker's DNS forwards them to the host's resolver (127.0.0.1) from the host"
    )
    assert warning in words(egress_restricted, host_resolver="127.0.0.1")
    assert "DNS" not in words(egress_restricted)
    assert "DNS" not in words(free, host_resolver="127.0.0.1")


@pytest.mark.parametrize(
    ("hosts", "systemd", "found"),
    [
        ("nameserver 192.0.2.53\n", "", ""),
        ("# nameserver 127.0.0.1\nsearch lan\nnameserver 192.0.2.53\n  nameserver 127.0.1.1 \n", "", "127.0.1.1"),
        ("nameserver ::1\n", "", "::1"),
        ("nameserver fe80::1%eth0\n", "", ""),
        ("nameserver 127.0.0.53\n", "nameserver 192.0.2.53\n", ""),
        ("nameserver 127.0.0.53\n", "nameserver 127.0.0.1\n", "127.0.0.1"),
        ("nameserver 127.0.0.53\n", "", "127.0.0.53"),
        ("nameserver 127.0.0.53\nnameserver 127.0.0.1\n", "nameserver 192.0.2.53\n", "127.0.0.53"),
        ("nameserver\nnameserver x\n\x00", "", ""),
        (None, "", ""),
    ],
)
def test_the_resolver_that_docker_asks_from_the_host(
    tmp_path: Path, hosts: str | None, systemd: str, found: str
) -> None:
    """The first one on loopback; but if systemd's stub is the only one, Docker uses the servers of systemd."""
    mine, theirs = tmp_path / "resolv.conf", tmp_path / "systemd.conf"
    for path, text in ((mine, hosts), (theirs, systemd)):
        if text:
            path.write_text(text)
    assert asked_from_host(26, str(mine), (str(theirs),)) == found


@pytest.mark.parametrize("major", [0, 27, 28, 29])
def test_newer_docker_asks_every_server_from_the_host(tmp_path: Path, major: int) -> None:
    """Docker 27 and later, and an unknown version, ask every server from the host."""
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\n")
    assert asked_from_host(major, str(tmp_path / "resolv.conf"), ()) == "192.0.2.53"
    assert asked_from_host(26, str(tmp_path / "resolv.conf"), ()) == ""


def test_status_shows_the_host(site: Site) -> None:
    """Unprotected containers and bridges, bans, docker-proxy, a silent API, and a docker-fw that is behind Docker's
    events are shown; none of them when all is well."""
    more = {"apart": {"tool": "has the host's network"}, "foreign": ["lxdbr0", "virbr0"], "banned": 2}
    text = words(site, **more, listening=False, proxy_known=False, held=["80/tcp on ::"], watched=False)
    assert "tool: has the host's network" in text
    assert "bridges not protected, because they are not Docker's: lxdbr0, virbr0" in text
    assert "2 addresses and prefixes are banned: fwctl bans" in text
    closed = "a new listening port of the host stays closed until Docker confirms whose it is; closed now: 80/tcp on ::"
    assert f"docker-proxy's control group is unknown: {closed}" in text
    assert (
        "Docker's API does not answer: containers that are new or unconfirmed answer on ICMP only until it does" in text
    )
    assert (
        "docker-fw is behind Docker's events: Docker networks accept no new connections until it has caught up" in text
    )
    quiet = words(Site(ours(2, DB)))
    assert not any(word in quiet for word in ("not answer", "behind", "banned", "not protected", "control group"))
    assert "the table is owned by docker-fw" in quiet
    assert "the table is watched" in words(Site(ours(2, DB)), owned=False)
    assert "CONFIG_NF_TABLES_BRIDGE" not in quiet
    assert "CONFIG_NF_TABLES_BRIDGE" in words(Site(ours(2, DB)), binds=False)
    assert "upgrade Docker" in words(Site(ours(2, DB)), unfit="upgrade Docker")
    assert words(Site(ours(2, DB)), banned=1).endswith("1 address or prefix is banned: fwctl bans")


def test_an_empty_status_is_a_sentence() -> None:
    """An empty Docker network is not listed."""
    empty = answer(Site())
    assert "fw-ffffffffffff" in render.status(empty)
    assert render.status({**empty, "networks": []}).splitlines() == [
        "no container on any network; inbound traffic will be blocked, except TCP 22, 80, 443",
        "the table is owned by docker-fw: no other tool can change or flush it while docker-fw runs",
    ]


def test_ports_are_shown_with_their_sources(site: Site) -> None:
    """Each published port is shown with its container, and the sources for which it is open."""
    lines = render.ports(answer(site)).splitlines()
    assert f"{'web':<30} 0.0.0.0:18080->8080/tcp" in lines
    assert f"{'web':<30} 0.0.0.0:15432->5432/tcp  (open to container:db service:api, closed to others)" in lines
    assert f"{'web':<30} [::]:16000->6000/tcp  (closed to the outside: fw.allow does not open 6000/tcp)" in lines
    assert render.ports(answer(Site())) == "no published ports"


def test_a_dry_run_shows_the_ports_that_close() -> None:
    """A port that would close is shown before anything is closed; one that stays open to some addresses is listed with
    them."""
    app = container("app", {"fw.allow": "5432 from 203.0.113.0/24"})
    site = Site(guest(FRONT, 2, app, *published(5432, 15432), *published(6000, 16000), *published(80, 10080)))
    text = render.dry_run(report(site, {"tool": "has the host's network"}, "203.0.113.9", "app"))
    assert "published 0.0.0.0:15432->5432/tcp: stays open to 203.0.113.0/24, CLOSES to others" in text
    assert 'published 0.0.0.0:16000->6000/tcp: CLOSES (to keep it open: label fw.allow: "6000")' in text
    assert "published 0.0.0.0:10080->80/tcp: stays open\n" in text
    assert text.endswith("established connections that would be cut:\n  203.0.113.9 → app 5432/tcp")


# --- answers ----------------------------------------------------------------------------------------------------------


def test_an_explanation_is_shown_step_by_step() -> None:
    """Source, target, port; each step with its origin and outcome; the parts that were not checked."""
    flow = {
        "family": 4,
        "what": "8080/tcp",
        "accepted": True,
        "from": {"name": "the Internet", "address": "203.0.113.1"},
        "to": {"name": "web", "address": "10.1.0.2"},
        "steps": [
            {"text": "10.1.0.2 is web", "outcome": "", "origin": ""},
            {"text": "web accepts 8080/tcp", "outcome": "accept", "origin": "label fw.allow"},
        ],
    }
    out = {"name": "203.0.113.7", "address": "203.0.113.7"}
    host = {
        **flow,
        "from": {"name": "the host", "address": None},
        "to": out,
        "accepted": False,
        "steps": [{"text": "no", "outcome": "drop", "origin": "Docker"}],
    }
    assert render.plain(render_answers.explain({"flows": [flow, host], "notes": ["not asked: ufw"]})) == (
        "the Internet (203.0.113.1) → web (10.1.0.2), 8080/tcp, IPv4: accepted\n"
        "  10.1.0.2 is web\n"
        "  web accepts 8080/tcp  (label fw.allow): accepted\n"
        "the host → 203.0.113.7, 8080/tcp, IPv4: dropped\n"
        "  no  (Docker): dropped\n"
        "not asked: ufw"
    )


def test_a_plan_is_shown_as_a_diff() -> None:
    """Each line starts with its sign, so that grep finds it."""
    line = {"sign": "+", "what": "policy", "text": "accepts 9100/tcp", "who": "web on front", "origin": "setting x"}
    gone = {"sign": "-", "what": "element", "text": "allow4 10.1.0.2 . tcp . 9999", "who": "web"}
    empty: dict[str, Any] = {"drift": [], "policy": [], "elements": [], "rules": [], "notes": [], "changes": False}
    full = {**empty, "drift": [gone], "policy": [line], "changes": True, "notes": ["a note"]}
    text = render.plain(render_answers.plan(full))
    assert text.splitlines() == [
        "the table in the kernel has changed; docker-fw would repair it:",
        "- allow4 10.1.0.2 . tcp . 9999  web",
        "with these settings:",
        "+ web on front: accepts 9100/tcp  (setting x)",
        "a note",
    ]
    assert render.plain(render_answers.plan(empty)) == "no change"


def test_bans_are_sorted_by_their_end() -> None:
    """Each ban is shown with its remaining time, the one that ends first at the top."""
    there = [{"address": "203.0.113.7", "until": None}, {"address": "2001:db8::/48", "until": NOW + 60}]
    assert render.plain(render_answers.bans({"now": NOW, "bans": there})).split() == [
        "2001:db8::/48",
        "60",
        "s",
        "left",
        "203.0.113.7",
        "permanent",
    ]
    assert render.plain(render_answers.bans({"now": NOW, "bans": []})) == "no address is banned"


def test_a_change_is_confirmed_with_its_result(site: Site) -> None:
    """The output contains the ports that the container accepts now, and overrides without effect."""
    places = status.places(site.state.snapshot(), WEB.id, Engine(), 0)
    word = {"kind": "allow", "rule": "7000/tcp", "until": NOW + 3600}
    text = render.plain(render_answers.overridden({"container": "web", "said": [word], "places": places}, NOW))
    assert text.startswith("web: fwctl allow 7000/tcp, 1 h left\n")
    assert "\n  on fw-ffffffffffff (10.1.0.2 2001:db8:1::2) it accepts 80/tcp, " in text
    assert render.plain(render_answers.reverted({"reverted": []})) == "there was no override"
    assert render.plain(render_answers.reverted({"reverted": [{"container": None, "id": "a" * 64}]})) == (
        "aaaaaaaaaaaa: its labels apply again"
    )
    still = {"unbanned": [], "absent": ["203.0.113.7"], "still": [{"address": "203.0.113.7", "by": "203.0.113.0/24"}]}
    assert render.plain(render_answers.unbanned(still)) == (
        "was not banned: 203.0.113.7\n203.0.113.7 is still banned, as a part of 203.0.113.0/24"
    )
    assert render.plain(render_answers.unbanned({"unbanned": [], "absent": [], "still": []})) == "no address was banned"


# --- on a terminal ----------------------------------------------------------------------------------------------------


def drawn(*what: Any, width: int = 160) -> str:
    file = io.StringIO()
    on = Console(file=file, force_terminal=True, width=width, color_system="standard", highlight=False, markup=False)
    for each in what:
        on.print(each)
    return file.getvalue()


def bare(text: str) -> str:
    """Return the text without colours and the borders of tables."""
    return re.sub(r"\x1b\[[0-9;]*m|[─]", "", text)


@pytest.mark.parametrize("width", [200, 80])
def test_a_terminal_shows_the_same_text(site: Site, width: int) -> None:
    """Tables if the terminal is wide enough, coloured lines otherwise; no text of the plain form is missing."""
    data = answer(site, foreign=["virbr0"], banned=1)
    shown = bare(drawn(terminal.status(data, width), width=width)).split()
    plain = render.status(data).replace(",", " ").split()
    missing = {word for word in plain if word not in set(" ".join(shown).replace(",", " ").split())}
    assert not {word for word in missing if word not in "".join(shown)}
    assert "\x1b[" in drawn(terminal.status(data, width), width=width)
    ports = bare(drawn(terminal.ports(data)))
    assert "open to container:db service:api, closed to others" in ports
    assert "no published ports" in drawn(terminal.ports(answer(Site())))
    assert "no container on any network" in bare(drawn(terminal.status({**answer(Site()), "networks": []}, width)))


EVIL = "\x1b[31m\x1b]0;owned\x07\r\n[red]no[/red][link=http://x]:smile:\u202e"


def test_text_from_outside_moves_no_cursor() -> None:
    """A label's value is quoted on a terminal: it is plain text there, no escape sequence and no markup."""
    site = Site(guest(FRONT, 2, Container("c" * 64, f"a{EVIL}", problems=(Problem(f"label {EVIL}", EVIL, EVIL),))))
    data = answer(site, apart={EVIL: EVIL}, foreign=[EVIL])
    for text in (
        render.status(data),
        render.ports(data),
        render.dry_run(report(site, {EVIL: EVIL}, "203.0.113.1", EVIL)),
    ):
        assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text)
        assert "[red]no[/red]" in text or text == "no published ports"
    for width in (80, 200):
        text = bare(drawn(terminal.status(data, width), terminal.ports(data), terminal.problem(EVIL), width=width))
        assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text)
        assert "[red]no[/red]" in "".join(text.split())


def test_times_are_read_and_shown_with_their_units() -> None:
    """The duration of `--for`, and the remaining time."""
    assert [parse(text) for text in ("30s", "10m", "1h", "2d", "1h30m", "1H")] == [30, 600, 3600, 172800, 5400, 3600]
    for text in ("", "1", "h", "1w", "-1h", "1 h", "0s", "1.5h", "99999999d", "1h x"):
        with pytest.raises(ValueError, match="is not"):
            parse(text)
    assert [left(seconds) for seconds in (-1, 0, 59.6, 90, 119, 120, 3540, 3600, 3660, 7325, 86400, 176400)] == [
        "0 s",
        "0 s",
        "60 s",
        "90 s",
        "119 s",
        "2 min",
        "59 min",
        "1 h",
        "1 h 1 min",
        "2 h 2 min",
        "1 d",
        "2 d 1 h",
    ]


def test_the_driver_never_imports_rich() -> None:
    """rich is for terminals only; the process that serves Docker stays small. So does `fwctl` in a pipe."""
    serves = "plugin.daemon.plugin, plugin.driver.http, plugin.gunicorn_conf"
    tool = "plugin.fwctl.cli.main, plugin.fwctl.cli.render, plugin.fwctl.cli.render_answers"
    for modules in (serves, tool):
        tops = "('rich', 'pygments', 'yaml')"
        code = f"import sys, {modules}\nprint([m for m in sys.modules if m.split('.')[0] in {tops}])"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert (done.stdout, done.stderr) == ("[]\n", "")

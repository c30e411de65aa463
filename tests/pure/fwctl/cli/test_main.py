"""`fwctl`'s commands: their requests, their output, and their exit statuses."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

import pytest

from plugin.fwctl.cli.main import main
from plugin.fwctl.socket_client import ask
from plugin.model import FwError
from tests.pure.answers import QUIET_STATUS
from tests.waiting import until

ROOT = Path(__file__).parents[4]
PORT = {
    "proto": "tcp",
    "host_ip": "0.0.0.0",
    "host_port": 18080,
    "container_port": 8080,
    "open": False,
    "some": False,
    "peers": [],
}
WEB = {
    "id": "e" * 64, "container": "web", "container_id": "c" * 64, "addresses": ["10.1.0.2"], "known": True,
    "icmp_only": False, "accepts": ["22/tcp", "8080/tcp"], "egress": None, "rates": [], "log": "", "published": [PORT],
    "rules": [{"what": "8080/tcp", "peers": [], "addresses": None, "origin": "label fw.allow"}], "problems": [],
    "no_effect": [], "overrides": [], "dropped": 0, "refused": 0,
}  # fmt: skip
NETWORK = {
    "id": "n" * 64,
    "name": "",
    "bridge": "fw-n",
    "subnets": ["10.1.0.0/24"],
    "internal": False,
    "problems": [],
    "endpoints": [WEB],
}
STATUS = {**QUIET_STATUS, "networks": [NETWORK]}
FLOW = {
    "family": 4,
    "from": {"name": "a", "address": None},
    "to": {"name": "b", "address": None},
    "what": "80/tcp",
    "steps": [{"text": "b accepts 80/tcp", "outcome": "accept", "origin": "base"}],
    "accepted": True,
}
PLAN: dict[str, Any] = {"drift": [], "policy": [], "elements": [], "rules": [], "notes": [], "changes": False}
DONE: dict[str, Any] = {
    "/allow": {"container": "web", "said": [{"kind": "allow", "rule": "9000/tcp", "until": None}], "places": []},
    "/deny": {"container": "web", "said": [{"kind": "deny", "rule": "22/tcp", "until": None}], "places": []},
    "/revert": {"reverted": [{"container": "web", "id": "c"}]},
    "/ban": {"banned": [{"address": "203.0.113.7", "until": None}], "cut": 2, "notes": []},
    "/unban": {"unbanned": ["203.0.113.7"], "absent": [], "still": []},
    "/status": STATUS,
    "/explain": {"flows": [FLOW], "accepted": True, "notes": []},
    "/plan": PLAN,
    "/export": {"text": "table inet docker-fw {}\n"},
    "/bans": {"now": 1.0, "bans": [{"address": "203.0.113.7", "until": None}]},
}


class Fake:
    """docker-fw's socket; `answers` by path, `asked` is (path, body) of every call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Any] = dict(DONE)
        self.asked: list[tuple[str, Any]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake._answer(self, None)

            def do_POST(self) -> None:
                fake._answer(self, self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, *_: object) -> None:
                pass

            def address_string(self) -> str:
                return "unix"

        class Server(ThreadingMixIn, UnixStreamServer):
            daemon_threads = True

        self._server = Server(str(path), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, body: bytes | None) -> None:
        self.asked.append((request.path, None if body is None else json.loads(body)))
        answer = self.answers.get(request.path, (404, {"Err": "no such call"}))
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    made = Fake(tmp_path / "fw.sock")
    yield made
    made.close()


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(fake: Fake, capsys: pytest.CaptureFixture[str]) -> Run:
    def go(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main([*arguments, "--socket", str(fake.path)])
        except SystemExit as error:
            status = int(error.code or 0)
        output = capsys.readouterr()
        return status, output.out, output.err

    return go


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "path", "body"),
    [
        ("allow web 9000", "/allow", {"container": "web", "rules": ["9000"], "seconds": None}),
        ("allow web 900 53/udp --for 1h", "/allow", {"container": "web", "rules": ["900", "53/udp"], "seconds": 3600}),
        ("allow --for 30s web 9000", "/allow", {"container": "web", "rules": ["9000"], "seconds": 30}),
        ("allow db 80 from 10.0.0.7", "/allow", {"container": "db", "rules": ["80 from 10.0.0.7"], "seconds": None}),
        ("deny web 22 --for 2d", "/deny", {"container": "web", "rules": ["22"], "seconds": 172800}),
        ("revert web", "/revert", {"container": "web"}),
        ("revert --all", "/revert", {"all": True}),
        (
            "ban 203.0.113.7 2001:db8::/48 --for 10m",
            "/ban",
            {"bans": [{"address": "203.0.113.7", "seconds": 600}, {"address": "2001:db8::/48", "seconds": 600}]},
        ),
        ("unban 203.0.113.7", "/unban", {"addresses": ["203.0.113.7"]}),
        ("unban --all", "/unban", {"all": True}),
        ("explain internet web 80", "/explain", {"from": "internet", "to": "web", "what": "80", "family": None}),
        ("explain -6 internet web gre", "/explain", {"from": "internet", "to": "web", "what": "gre", "family": 6}),
        ("plan", "/plan", {"settings": {}}),
        ("plan FW_ALLOW=80=x FW_DENY=", "/plan", {"settings": {"FW_ALLOW": "80=x", "FW_DENY": ""}}),
        ("status", "/status", None),
        ("ports", "/status", None),
        ("bans", "/bans", None),
        ("export", "/export", None),
    ],
)
def test_each_command_sends_its_request(fake: Fake, run: Run, words: str, path: str, body: Any) -> None:
    """One call, with a body that the plugin accepts; status 0, and nothing on stderr."""
    assert run(*words.split())[::2] == (0, "")
    assert fake.asked == [(path, body)]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "stauts",
        "status x",
        "allow",
        "allow web",
        "allow web 80 --for",
        "allow web 80 --for 1",
        "allow web 80 --for x",
        "deny web",
        "revert",
        "revert web --all",
        "ban",
        "ban 203.0.113.7 --for -1s",
        "unban",
        "unban 203.0.113.7 --all",
        "explain internet web",
        "explain -4 -6 internet web 80",
        "plan FW_ALLOW",
        "plan =80",
        "status --watch 0",
        "status --watch x",
        "status --color blue",
        "boot",
        "boot up",
    ],
)
def test_wrong_usage_is_status_2_and_sends_nothing(fake: Fake, run: Run, words: str) -> None:
    """stderr has a message that says what is wrong."""
    status, out, err = run(*words.split())
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("fwctl")
    assert fake.asked == []


def test_every_command_has_help_with_an_example(run: Run) -> None:
    """`--help` of each command, and the general one, show an example."""
    status, out, _ = run("--help")
    assert status == 0
    names = re.findall(r"^    ([a-z-]+) ", out, re.MULTILINE)
    assert {
        "status",
        "ports",
        "explain",
        "plan",
        "export",
        "allow",
        "deny",
        "revert",
        "ban",
        "unban",
        "bans",
        "check",
        "log",
        "dry-run",
        "boot",
        "cleanup",
        "serve",
    } == set(names)
    for name in set(names) - {"serve", "log"}:
        status, out, _ = run(name, "--help")
        assert status == 0
        assert f"examples:\n  fwctl {name}" in out


def test_examples_of_the_help_work(fake: Fake, run: Run) -> None:
    """Each command line that the help shows works, as far as requests to the plugin go."""
    import shlex

    tried = 0
    for name in ("status", "ports", "explain", "plan", "export", "allow", "deny", "revert", "ban", "unban", "bans"):
        for line in run(name, "--help")[1].partition("examples:\n")[2].splitlines():
            words = shlex.split(line.partition("|")[0].partition(">")[0])[1:]
            if "--watch" not in words:
                assert run(*words)[0] == 0, line
                tried += 1
    assert tried > 20


# --- output -----------------------------------------------------------------------------------------------------------


def test_output_is_lines_or_json(fake: Fake, run: Run) -> None:
    """--json prints the plugin's answer, and can be parsed."""
    assert "  web  10.1.0.2  22/tcp, 8080/tcp\n    label fw.allow: 8080/tcp\n" in run("status")[1]
    assert json.loads(run("status", "--json")[1]) == STATUS
    assert json.loads(run("ports", "--json")[1]) == [{"container": "web", **PORT}]
    for name, path in (("bans", "/bans"), ("export", "/export"), ("plan", "/plan")):
        assert json.loads(run(name, "--json")[1]) == DONE[path]
    assert json.loads(run("allow", "web", "9000", "--json")[1]) == DONE["/allow"]
    assert json.loads(run("explain", "a", "b", "80", "--json")[1]) == DONE["/explain"]
    assert run("allow", "web", "9000")[1] == "web: fwctl allow 9000/tcp, permanent\n"
    assert run("ban", "203.0.113.7")[1] == "banned: 203.0.113.7, permanent\nconnections ended: 2\n"
    assert run("export")[1] == "table inet docker-fw {}\n"


def test_exit_statuses_are_for_scripts(fake: Fake, run: Run) -> None:
    """explain: 1 is dropped. plan, as diff: 1 is a difference, 2 is trouble."""
    assert run("explain", "a", "b", "80")[0] == 0
    fake.answers["/explain"] = {**DONE["/explain"], "accepted": False}
    assert run("explain", "a", "b", "80")[0] == 1
    assert run("plan")[0] == 0
    fake.answers["/plan"] = {**PLAN, "changes": True}
    assert run("plan")[0] == 1
    fake.answers["/plan"] = (400, {"Err": "FW_ALOW is not a setting"})
    assert run("plan", "FW_ALOW=80") == (2, "", "fwctl: FW_ALOW is not a setting\n")


def test_a_refusal_is_one_line_on_stderr(fake: Fake, run: Run) -> None:
    """Status 1, nothing on stdout; and no escape sequence from a label."""
    fake.answers["/allow"] = (400, {"Err": "no container 'wbe'; did you mean web?\x1b[31m\n"})
    status, out, err = run("allow", "wbe", "80")
    assert (status, out) == (1, "")
    assert err == "fwctl: no container 'wbe'; did you mean web?\\x1b[31m\\n\n"


@pytest.mark.parametrize("answer", [(500, b"<html>"), (200, b""), (200, []), (502, {"x": 1}), (200, b"\xff")])
def test_an_invalid_answer_is_an_error(fake: Fake, run: Run, answer: Any) -> None:
    """Any answer on the socket that is not docker-fw's is an error without a traceback."""
    fake.answers["/status"] = answer
    status, out, err = run("status")
    assert (status, out) == (1, "")
    assert err.startswith(f"fwctl: {fake.path} answered {answer[0]} to /status")


def test_an_unreachable_socket_is_reported_with_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No socket, a socket without a server, one that hangs up; plan exits with 2, as diff does."""
    gone, dead = tmp_path / "gone.sock", tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(dead))
    for path in (gone, dead, tmp_path / "no" / "fw.sock"):
        assert main(["status", "--socket", str(path)]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"fwctl: {path} does not answer")
        assert "docker plugin ls" in err
        assert main(["plan", "--socket", str(path)]) == 2
        assert main(["explain", "a", "b", "80", "--socket", str(path)]) == 1
        capsys.readouterr()
    monkeypatch.setattr("plugin.fwctl.socket_client.SOCKETS", (str(tmp_path / "*.none"),))
    assert main(["status"]) == 1
    assert "is the plugin enabled?" in capsys.readouterr().err


def test_a_path_of_any_length_is_reached(tmp_path: Path) -> None:
    """The kernel accepts 107 bytes in an address; a managed plugin's path is longer."""
    deep = tmp_path / ("a" * 100) / ("b" * 100)
    deep.mkdir(parents=True)
    here = Fake(tmp_path / "s")
    (tmp_path / "s").rename(deep / "fw.sock")
    try:
        assert ask(str(deep / "fw.sock"), "/status") == STATUS
        with pytest.raises(FwError, match="no such call"):
            ask(str(deep / "fw.sock"), "/nothing")
    finally:
        here.close()


# --- as a process -----------------------------------------------------------------------------------------------------


def fwctl(fake: Fake, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "plugin.fwctl.cli", *arguments, "--socket", str(fake.path)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False, env={**os.environ, **environ}
    )


def test_colours_are_for_terminals(fake: Fake) -> None:
    """A pipe gets no colours, unless they are requested."""
    assert "\x1b[" not in fwctl(fake, "status").stdout
    assert "\x1b[" not in fwctl(fake, "status", "--color=never").stdout
    for name in ("status", "ports", "bans", "plan"):
        assert "\x1b[" in fwctl(fake, name, "--color=always", TERM="xterm").stdout, name
    assert json.loads(fwctl(fake, "status", "--json", "--color=always").stdout) == STATUS


def on_terminal(fake: Fake, *arguments: str, until: bytes, **environ: str) -> bytes:
    """Return the terminal's output until these bytes appear; a watch is then interrupted, as a user does."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        command = [sys.executable, "-m", "plugin.fwctl.cli", *arguments, "--socket", str(fake.path)]
        size = {"TERM": "xterm-256color", "COLUMNS": "160", "LINES": "40"}
        os.execve(command[0], command, {**os.environ, **size, **environ})  # noqa: S606
    shown, end = b"", time.monotonic() + 20
    with contextlib.suppress(OSError):
        while until not in shown and time.monotonic() < end:
            shown += os.read(fd, 4096)
        if "--watch" in arguments:
            os.write(fd, b"\x03")
        while data := os.read(fd, 4096):
            shown += data
    _, status = os.waitpid(pid, 0)
    os.close(fd)
    assert until in shown, shown
    assert os.waitstatus_to_exitcode(status) == 0, shown
    return shown


def test_a_terminal_is_shown_colours_and_tables(fake: Fake) -> None:
    """Colours are the default; NO_COLOR is honoured."""
    shown = on_terminal(fake, "status", until=b"closed to the outside")
    assert b"\x1b[" in shown
    assert b"details" in shown
    plain = on_terminal(fake, "status", until=b"closed to the outside", NO_COLOR="1")
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9]m", plain)


def test_watch_repeats_until_interrupted(fake: Fake) -> None:
    """On a terminal the output stays in one place; an interrupt ends it without an error. A plugin that restarts
    meanwhile is reported, and queried again."""
    on_terminal(fake, "status", "--watch", "0.1", until=b"closed to the outside")
    fake.answers["/status"] = (500, b"")
    before = len(fake.asked)

    def restarted() -> None:
        until(lambda: len(fake.asked) >= before + 3, "three more requests")
        fake.answers["/status"] = {**STATUS, "foreign": ["virbr7"]}

    later = threading.Thread(target=restarted)
    later.start()
    shown = on_terminal(fake, "status", "--watch", "0.1", until=b"virbr7")
    later.join(60)
    assert b"answered 500" in shown


def test_watch_in_a_pipe_is_one_text_after_another(fake: Fake) -> None:
    """Each answer is one line with JSON, for programs that follow."""
    watch = ["status", "--watch", "0.1", "--json", "--socket", str(fake.path)]
    command = [sys.executable, "-m", "plugin.fwctl.cli", *watch]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        assert [json.loads(process.stdout.readline()) for _ in range(3)] == [STATUS] * 3
        process.send_signal(2)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


def test_a_closed_pipe_is_no_error(fake: Fake) -> None:
    """`fwctl export | head -1` ends without an error."""
    fake.answers["/export"] = {"text": "x\n" * 1_000_000}
    command = f"{sys.executable} -m plugin.fwctl.cli export --socket {fake.path} | head -1"
    shell = ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "x\n", "")


def test_output_works_in_any_locale(fake: Fake) -> None:
    """Output works without a locale, as often in a container."""
    fake.answers["/status"] = {**STATUS, "apart": {"tool": "→ läuft …"}}
    done = fwctl(fake, "status", LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "tool: \\u2192 l\\xe4uft \\u2026" in done.stdout


def test_check_reads_compose_files_without_any_docker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 is right, 1 a mistake, 2 a file that cannot be read; FW_… variables apply as the host's settings."""
    file = tmp_path / "compose.yml"
    file.write_text("services:\n  web:\n    image: nginx\n    labels:\n      fw.allow: '8080'\n")
    assert main(["check", str(file)]) == 0
    assert "8080/tcp" in capsys.readouterr().out
    assert json.loads(_out(capsys, lambda: main(["check", str(file), "--json"])))["mistakes"] == []
    file.write_text("services:\n  web:\n    image: nginx\n    labels:\n      fw.allow: '808O'\n")
    assert main(["check", str(file)]) == 1
    assert main(["check", str(tmp_path / "none.yml")]) == 2


def _out(capsys: pytest.CaptureFixture[str], work: Callable[[], object]) -> str:
    capsys.readouterr()
    work()
    return capsys.readouterr().out


# --- hooks of other programs ------------------------------------------------------------------------------------------


def test_the_fail2ban_action_runs_valid_commands(fake: Fake, tmp_path: Path) -> None:
    """The exact command lines of examples/fail2ban, as fail2ban runs them: tags filled in, through sh."""
    import configparser

    file = ROOT / "examples/fail2ban/action.d/docker-fw.conf"
    # As fail2ban reads it: a semicolon starts a comment.
    config = configparser.ConfigParser(inline_comment_prefixes=(";",), interpolation=None)
    config.read_string(file.read_text())
    assert set(config["Definition"]) == {"actionstart", "actionstop", "actioncheck", "actionban", "actionunban"}
    assert "docker run" in config["Init"]["fwctl"]
    (tmp_path / "fwctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m plugin.fwctl.cli "$@" --socket {fake.path}\n')
    (tmp_path / "fwctl").chmod(0o755)

    def acts(action: str, ip: str, bantime: str) -> None:
        command = config["Definition"][action]
        for tag, value in (("fwctl", str(tmp_path / "fwctl")), ("ip", ip), ("bantime", bantime)):
            command = command.replace(f"<{tag}>", value)
        assert "<" not in command
        subprocess.run(["sh", "-c", command], cwd=ROOT, check=True, capture_output=True, timeout=30)

    acts("actionban", "203.0.113.7", "600")
    acts("actionban", "2001:db8::7", "-1")
    acts("actionunban", "203.0.113.7", "600")
    assert fake.asked == [
        ("/ban", {"bans": [{"address": "203.0.113.7", "seconds": 600}]}),
        ("/ban", {"bans": [{"address": "2001:db8::7", "seconds": None}]}),
        ("/unban", {"addresses": ["203.0.113.7"]}),
    ]


BOUNCER = ROOT / "examples/crowdsec/docker-fw-bouncer"


def decide(action: str, value: str, duration: str = "3h59m58.5s", **more: Any) -> str:
    """Return a line as crowdsec-custom-bouncer writes it."""
    decision = {"duration": duration, "id": 1, "origin": "CAPI", "scenario": "x", "scope": "Ip", "type": "ban"}
    return json.dumps({**decision, "value": value, "action": action, **more}) + "\n"


def bounce(fake: Fake, *lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BOUNCER)],
        input="".join(lines),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "DOCKER_FW_SOCKET": str(fake.path)},
    )


def test_the_crowdsec_bouncer_sends_decisions(fake: Fake) -> None:
    """Decisions that arrive together are one request, with the remaining time; others are ignored."""
    done = bounce(
        fake,
        decide("add", "203.0.113.7"),
        decide("add", "203.0.113.8", "1m30s"),
        decide("add", "2001:db8::/48", scope="Range"),
        decide("add", "FR", scope="Country"),
        decide("add", "203.0.113.9", type="captcha"),
        decide("add", "203.0.113.5", "-3s"),
        "nonsense\n",
        decide("add", "203.0.113.6"),
        decide("del", "203.0.113.6"),
    )
    assert done.returncode == 0
    assert "not a decision" in done.stderr
    assert fake.asked == [
        (
            "/ban",
            {
                "bans": [
                    {"address": "203.0.113.7", "seconds": 14398.5},
                    {"address": "203.0.113.8", "seconds": 90.0},
                    {"address": "2001:db8::/48", "seconds": 14398.5},
                    {"address": "203.0.113.5", "seconds": 1.0},
                ]
            },
        ),
        ("/unban", {"addresses": ["203.0.113.6"]}),
    ]


def test_one_refused_decision_blocks_no_other(fake: Fake) -> None:
    """If one of the host's addresses is in a blocklist, the others are banned, and the error is printed."""
    fake.answers["/ban"] = (400, {"Err": "cannot ban 10.1.0.1: it is the host's own"})
    done = bounce(fake, decide("add", "203.0.113.7"), decide("add", "10.1.0.1"))
    assert [len(body["bans"]) for _, body in fake.asked] == [2, 1, 1]
    assert done.stderr.count("cannot ban 10.1.0.1") == 2
    assert done.returncode == 0


def test_the_crowdsec_bouncer_waits_for_docker_fw(fake: Fake, tmp_path: Path) -> None:
    """No decision is lost while docker-fw restarts."""
    hidden = tmp_path / "hidden.sock"
    fake.path.rename(hidden)
    with subprocess.Popen(
        [sys.executable, str(BOUNCER)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DOCKER_FW_SOCKET": str(fake.path)},
    ) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(decide("add", "203.0.113.7"))
        process.stdin.close()
        assert "does not answer, trying again" in process.stderr.readline()
        hidden.rename(fake.path)
        assert "does not answer" not in process.stderr.read()
        assert process.wait(20) == 0
    assert len(fake.asked) == 1


def test_the_crowdsec_configuration_is_valid() -> None:
    """YAML with crowdsec-custom-bouncer's own keys, and the path that its comment installs."""
    import yaml

    text = (ROOT / "examples/crowdsec/crowdsec-custom-bouncer.yaml.local").read_text()
    config = yaml.safe_load(text)
    assert config == {"bin_path": "/usr/local/bin/docker-fw-bouncer", "feed_via_stdin": True, "total_retries": -1}
    assert f"cp docker-fw-bouncer {os.path.dirname(config['bin_path'])}/" in text
    assert os.access(BOUNCER, os.X_OK)

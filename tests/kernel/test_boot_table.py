"""Test the sidecar's boot table: what docker-fw closes is closed at the next boot from before Docker starts."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from plugin.fwctl.host import boot_table, boot_unit
from plugin.nftables.sets import CLOSED, TABLE
from tests.kernel.host_table import THEIRS, listed
from tests.kernel.running import ROOT, Running
from tests.kernel.site import BR_DOCKER, MARK, Box, Site, arriving
from tests.lab import Wan
from tests.waiting import until

NFT = "/usr/sbin/nft"
GUEST, DOCKERS = "e" * 64, "d" * 64
RESTRICTED = "br-" + "d" * 12
HOSTS = (str(Site.HOST4), str(Site.HOST6))
#: A service of the host's own, a published port without a label, one that a label opens.
SERVICE, SHUT, OPENED = 2222, 19090, 18080


class Host:
    """docker-fw on a host on which `fwctl boot install` was run before any container existed."""

    def __init__(self, fw: Running) -> None:
        self.fw = fw
        self.root = fw.directory / "root"
        self.root.mkdir()
        (self.root / "etc").mkdir()
        fw.environ["FW_BOOT"] = str(self.root / boot_unit.DIRECTORY)
        self.install()

    def install(self) -> None:
        boot_unit.install(self.root, NFT, boot_table.nft_text(MARK, (), ()))

    @property
    def text(self) -> str:
        return (self.root / boot_unit.FILE).read_text()

    def guest(self, labels: dict[str, str]) -> Box:
        """Add a container on a Docker network that publishes its ports 9090 and 8080, served by docker-proxy."""
        fw = self.fw
        fw.docker.bridge_network(DOCKERS, "app", "10.100.0.0/24", "2001:db8:100::/64")
        fw.docker.container("guest", GUEST, DOCKERS, labels)
        container = fw.docker.containers[GUEST]
        container["NetworkSettings"]["Networks"]["net"] |= {
            "IPAddress": "10.100.0.2",
            "GlobalIPv6Address": "2001:db8:100::2",
        }
        container["Ports"] = [
            {"IP": ip, "Type": "tcp", "PublicPort": public, "PrivatePort": private}
            for ip in ("0.0.0.0", "::")
            for public, private in ((SHUT, 9090), (OPENED, 8080))
        ]
        return fw.site.docker_box(RESTRICTED, 100)

    def fwctl(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "plugin.fwctl.cli", *arguments, "--socket", str(self.fw.socket)]
        subprocess.run(command, cwd=ROOT, check=True, timeout=60, stdout=subprocess.DEVNULL)

    def reboots(self) -> None:
        """Reboot up to where docker.service starts: docker-fw does not run, and the unit has done its work."""
        self.fw.stop()
        self.fw.site.run("nft", "flush", "ruleset")
        self.unit()
        self.fw.site.forget_flows()

    def unit(self) -> int:
        script = (self.root / boot_unit.SCRIPT).read_text()
        script = script.replace(f"/{boot_unit.FILE}", str(self.root / boot_unit.FILE))
        return self.fw.site.run("sh", "-s", input=script, check=False).returncode


@pytest.fixture
def host(own: Running) -> Host:
    return Host(own)


def test_current_restrictions_apply_at_the_next_boot(host: Host) -> None:
    """A restriction from after `boot install` applies at the next boot, before docker-fw runs.

    The container with `fw.egress: none` initiates nothing; its closed published port and the one that a label opens are
    closed. Banned addresses reach nothing of the host; after its ban has expired an address reaches it again.
    """
    fw, wan = host.fw, host.fw.site.wan
    box, free = host.guest({"fw.egress": "none", "fw.allow": "8080"}), fw.site.docker_box(BR_DOCKER, 101)
    fw.start()
    until(
        lambda: f"ipv4 . tcp . {SHUT}" in host.text and f'egress_restricted {{ "{RESTRICTED}" }}' in host.text,
        "the restrictions are written",
    )
    host.fwctl("ban", Wan.V6)
    host.fwctl("ban", "2001:db8:5::/64", "--for", "1h")
    host.fwctl("ban", Wan.FAR_V4, "--for", "4s")
    until(lambda: host.text.count("\n#until") == 2 and Wan.V6 in host.text, "the bans are written")
    fw.stop()
    assert f"banned4 {Wan.FAR_V4}\n" in host.text
    until(lambda: over(host.text, Wan.FAR_V4), "a ban is over", 10)
    host.reboots()
    servers = fw.site.host.probe.serve(tcp=[SERVICE, SHUT, OPENED])
    with servers, wan.probe.serve(tcp=[80]), box.probe.serve(tcp=[22, 8080]):
        assert wan.probe.tcp(HOSTS[0], SERVICE, source=Wan.FAR_V4) == "open"
        assert wan.probe.tcp(HOSTS[0], SERVICE, source=Wan.V4) == "open"
        for source in (Wan.V6, Wan.FAR_V6):
            assert wan.probe.tcp(HOSTS[1], SERVICE, source=source) == "silent"
            assert wan.probe.ping(HOSTS[1], source=source) == "silent"
        assert wan.probe.tcp(HOSTS[0], SHUT, source=Wan.V4) == "silent"
        assert fw.site.host.probe.tcp(str(box.v4), 8080) == "open"
        assert wan.probe.tcp(str(box.v4), 8080, source=Wan.V4) == "silent"
        assert box.probe.tcp(Wan.V4, 80) == "silent"
        assert box.probe.tcp(HOSTS[0], SERVICE) == "silent"
        assert free.probe.tcp(Wan.V4, 80) == "open"
        assert free.probe.tcp(HOSTS[0], SERVICE) == "open"
    lasts = re.search(r"timeout (\S+) expires", fw.site.run("nft", "list", "set", "inet", TABLE, "banned6_64").stdout)
    assert lasts
    assert re.fullmatch(r"59m\d+s|1h(1s)?", lasts[1])


def over(text: str, address: str) -> bool:
    found = re.search(rf"^#until (\d+) \w+ {re.escape(address)}$", text, re.MULTILINE)
    assert found
    return int(found[1]) <= time.time()


def test_the_file_is_kept_current_but_not_created(host: Host) -> None:
    """`fwctl deny`, `ban` and `unban` are in the file a second later, also just after `fwctl boot install` rewrote it.

    A file removed by `fwctl boot remove` stays removed, until `boot install` is run again.
    """
    fw = host.fw
    host.guest({"fw.allow": "8080"})
    fw.start()
    until(lambda: f"ipv4 . tcp . {SHUT}" in host.text, "the closed port is written")
    until(lambda: fw.status()["boot"] == "kept", "status says that it is kept")
    assert f"ipv4 . tcp . {OPENED}" not in host.text
    host.fwctl("deny", "guest", "8080")
    until(lambda: f"ipv4 . tcp . {OPENED}" in host.text, "the denied port is written")
    host.fwctl("ban", "203.0.113.99")
    until(lambda: "banned4 { 203.0.113.99 }" in host.text, "the ban is written")
    host.install()
    until(lambda: "banned4 { 203.0.113.99 }" in host.text, "the ban is written again")
    host.fwctl("unban", "203.0.113.99")
    until(lambda: "203.0.113.99" not in host.text, "the ban's end is written")
    boot_unit.remove(host.root)
    until(lambda: fw.status()["boot"] == "", "docker-fw sees that it is gone")
    assert not (host.root / boot_unit.FILE).exists()
    host.install()
    until(lambda: fw.status()["boot"] == "kept", "the file is kept current again")
    assert f"ipv4 . tcp . {SHUT}" in host.text


def test_a_directory_that_is_full_or_read_only_is_reported(host: Host) -> None:
    """Where the file cannot be written, `fwctl status` and the log report it; the old file stays complete."""
    fw = host.fw
    (host.root / f"{boot_unit.FILE}.kept").mkdir()
    before = host.text
    fw.start()
    until(lambda: "is not kept current" in fw.status()["boot"], "status says why")
    assert host.text == before
    (host.root / f"{boot_unit.FILE}.kept").rmdir()
    until(lambda: fw.status()["boot"] == "kept", "the file is kept current again")


def test_install_includes_bans_and_restricted_networks(host: Host) -> None:
    """`fwctl boot install` writes the current restrictions though docker-fw does not see the directory.

    The command says that the file is not kept current, and when to run it again.
    """
    fw, root = host.fw, host.root
    fw.environ["FW_BOOT"] = str(fw.directory / "elsewhere")
    fw.environ["FW_SOCKET"] = str(root / "run/docker/plugins/fw.sock")
    for path in ("run/docker/plugins", "run/systemd/system", "lib/systemd/system", "usr/sbin"):
        (root / path).mkdir(parents=True)
    for path in ("lib/systemd/system/docker.service", "usr/sbin/nft"):
        (root / path).touch()
    fw.socket = root / "run/docker/plugins/fw.sock"
    host.guest({"fw.egress": "none"})
    fw.start()
    host.fwctl("ban", "203.0.113.99")
    host.fwctl("ban", "203.0.113.98", "--for", "1h")
    program = f"""
import sys
from plugin.fwctl.host import boot_unit
from plugin.fwctl.cli.main import main
boot_unit.check = lambda *_: None
sys.exit(main(["boot", "install", "--root", {str(root)!r}]))
"""
    with fw.site.host.popen(
        [sys.executable, "-c", program], cwd=ROOT, env=fw.environ, stdout=subprocess.PIPE, text=True
    ) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "The file is not kept current: docker-fw does not see /etc/docker-fw" in out
    assert f'egress_restricted {{ "{RESTRICTED}" }}' in host.text
    assert f"ipv4 . tcp . {SHUT}" in host.text
    assert "banned4 { 203.0.113.99 }" in host.text
    assert re.search(r"^#until \d{10} banned4 203.0.113.98$", host.text, re.MULTILINE)
    fw.site.run("nft", "--check", "-f", "-", input=host.text.replace(TABLE, "other"))


def test_the_unit_leaves_a_table_of_ours_alone_and_closes_beside_another_programs(host: Host) -> None:
    """While docker-fw runs the unit changes nothing.

    Where another program's table has docker-fw's name it closes by a table of another name, which docker-fw leaves as
    it is when it refuses to start there.
    """
    fw = host.fw
    box = fw.site.docker_box(BR_DOCKER, 100)
    fw.start()
    before = fw.site.run("nft", "-s", "list", "table", "inet", TABLE).stdout
    assert host.unit() == 0
    assert fw.site.run("nft", "-s", "list", "table", "inet", TABLE).stdout == before
    fw.stop()
    fw.site.run("nft", "flush", "ruleset")
    fw.site.run("nft", "-f", "-", input=THEIRS.format(TABLE))
    theirs = listed(fw, TABLE)
    assert arriving(fw.site, box)
    for _ in range(2):
        assert host.unit() == 0
        assert listed(fw, CLOSED)
        assert arriving(fw.site, box) == set()
    fw.start()
    assert arriving(fw.site, box) == set()
    assert listed(fw, TABLE) == theirs


def test_a_ban_that_nft_does_not_take_keeps_nothing_open(host: Host) -> None:
    """If a line about a ban is damaged, the table is loaded without the timed bans."""
    box = host.fw.site.docker_box(BR_DOCKER, 100)
    with (host.root / boot_unit.FILE).open("a") as file:
        file.write("#until 99999999999 nowhere x\n")
    assert arriving(host.fw.site, box)
    assert host.unit() == 0
    assert arriving(host.fw.site, box) == set()

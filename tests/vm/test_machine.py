"""Test the machines themselves: real boots, snapshots, files, the clock, and that nothing of them stays."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import LabError, Wan, sweep
from tests.lab.claims import start_time
from tests.vm import Machine
from tests.waiting import until


@pytest.fixture(scope="module")
def vm() -> Iterator[Machine]:
    """Yield a machine from its snapshot."""
    with Machine() as it:
        yield it


def test_a_machine_has_its_own_kernel_systemd_and_docker(vm: Machine) -> None:
    """The kernel is Debian's, PID 1 is systemd, and Docker is the package's, with control groups of version 2."""
    assert vm.run(["uname", "-r"]).stdout.strip() == vm.state.disk.versions()["kernel"]
    assert vm.read("/proc/1/comm").strip() == "systemd"
    assert vm.api("GET", "/info")["CgroupVersion"] == "2"
    assert vm.state.disk.versions()["docker"].startswith(vm.api("GET", "/version")["Version"].partition("+")[0])


def test_an_outsider_reaches_a_published_port_and_no_other(vm: Machine) -> None:
    """Probes of the wan reach a machine as they reach a host of the lab, over IPv4 and IPv6."""
    vm.docker("run", "-d", "--name", "web", "-p", "8080:80", "-p", "5353:53/udp", "busybox", "sleep", "inf")
    with vm.serve("web", tcp=[80], udp=[53]):
        answer = vm.wan.probe.one(("tcp", vm.v4, 8080), timeout=2)
        assert (answer.verdict, answer.detail, answer.peer) == ("open", "web", Wan.V4)
        targets = [("tcp", vm.v6, 8080), ("udp", vm.v4, 5353), ("tcp", vm.v4, 8081), ("ping", vm.v6)]
        assert list(vm.wan.probe(targets, timeout=2).values()) == ["open", "open", "refused", "open"]
    vm.docker("rm", "-f", "web")


def test_files_and_directories_go_in_and_out_unchanged(vm: Machine, tmp_path: Path) -> None:
    """`put` and `get` keep contents, modes and links, also the second time and for files of other sizes."""
    for size in (1_000_000, 10):
        tree = tmp_path / f"tree{size}"
        tree.mkdir()
        (tree / "file").write_bytes(os.urandom(size))
        (tree / "file").chmod(0o640)
        (tree / "link").symlink_to("file")
        back = vm.get(vm.put(tree))
        assert (back / "file").read_bytes() == (tree / "file").read_bytes()
        assert (back / "file").stat().st_mode & 0o777 == 0o640
        assert os.readlink(back / "link") == "file"


def test_a_failing_program_is_an_error_with_its_output(vm: Machine) -> None:
    """The error names the command, the status and the output; one that hangs is ended after the time-out."""
    with pytest.raises(LabError, match=r"(?s)status 3.*seen"):
        vm.run(["sh", "-c", "echo seen; exit 3"])
    with pytest.raises(LabError, match="not done after"):
        vm.run(["sleep", "99"], timeout=0.5)
    until(lambda: vm.run(["pgrep", "-x", "sleep"], check=False).returncode == 1, "the program has ended")


def test_a_restored_machine_has_the_right_time(vm: Machine) -> None:
    """Its clock shows this machine's time, however old its snapshot is, and can be set to any other."""
    assert abs(vm.guest.clock() - time.time()) < 1
    vm.set_clock(time.time() + 86400)
    assert vm.guest.clock() - time.time() > 86000
    vm.set_clock()
    assert abs(vm.guest.clock() - time.time()) < 1


def test_machines_of_one_wan_reach_each_other_and_have_disks_of_their_own() -> None:
    """The second machine has number 3, also from a snapshot; no file of one is on the other."""
    with Wan() as wan, Machine(wan=wan) as one, Machine(wan=wan) as two:
        assert (one.v4, two.v4, two.v6) == ("198.51.100.1", "198.51.100.3", "2001:db8:ffff::3")
        reach = "import socket,sys; socket.create_connection((sys.argv[1], 9), 20)"
        for address in (one.v4, one.v6):
            refused = two.run(["python3", "-ISc", reach, address], check=False)
            assert "ConnectionRefusedError" in refused.stderr
        assert set(wan.probe([("ping", a) for a in (one.v4, one.v6, two.v4, two.v6)], timeout=3).values()) == {"open"}
        one.write("/root/mine", "1")
        assert two.run(["test", "-e", "/root/mine"], check=False).returncode == 1


def test_a_reboot_a_power_cut_and_a_shutdown_are_real() -> None:
    """Each is followed by another boot; written files stay, and /run is empty."""
    with Machine() as vm:
        boots = [vm.read("/proc/sys/kernel/random/boot_id")]
        vm.write("/root/kept", "yes")
        vm.write("/run/lost", "yes")
        vm.reboot()
        boots.append(vm.read("/proc/sys/kernel/random/boot_id"))
        assert vm.read("/root/kept") == "yes"
        assert vm.run(["test", "-e", "/run/lost"], check=False).returncode == 1
        vm.write("/root/unwritten", "perhaps")
        vm.power_cut()
        assert not vm.running
        vm.boot()
        boots.append(vm.read("/proc/sys/kernel/random/boot_id"))
        assert vm.read("/root/kept") == "yes"
        vm.shutdown()
        assert not vm.running
        assert len({*boots}) == 3
        with pytest.raises(LabError, match="switched off"):
            vm.run(["true"])


_KILLED = """
import sys, time
from tests.vm import Machine
with Machine() as vm:
    vm.docker("info")
    print(vm._qemu.pid, vm.directory, vm.wan.path, flush=True)
    time.sleep(300)
"""


def test_a_killed_run_leaves_nothing_and_the_next_one_works() -> None:
    """After SIGKILL of its owner QEMU is gone at once, and files, tap and namespace after the next lab's sweep."""
    owner = subprocess.Popen([sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout
        words = owner.stdout.readline().split()
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait(30)
    pid, directory, netns = int(words[0]), Path(words[1]), Path(words[2])
    until(lambda: start_time(pid) is None, "QEMU has ended")
    assert directory.exists()  # so that what follows shows something
    sweep()
    assert not directory.exists()
    assert not netns.exists()
    with Machine() as vm:
        assert vm.run(["true"]).returncode == 0


def test_a_half_made_image_is_removed_by_the_next_that_makes_one(tmp_path: Path) -> None:
    """What a killed process was making in the cache is not used, and does not stay."""
    script = (
        "import time; from tests.lab.store import cached\n"
        "cached('kind', 'name', 'a thing', lambda path: (path.write_text('half'), print('half', flush=True),"
        " time.sleep(99)))"
    )
    env = {**os.environ, "FW_LAB_CACHE": str(tmp_path)}
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env)
    assert owner.stdout
    owner.stdout.readline()
    owner.kill()
    owner.wait(30)
    (half,) = (tmp_path / "kind").glob(".making-*")
    os.utime(half, (0, 0))
    again = "from tests.lab.store import cached; cached('kind', 'name', 'a thing', lambda p: p.write_text('whole'))"
    subprocess.run([sys.executable, "-c", again], check=True, env=env, capture_output=True, timeout=60)
    assert [path.name for path in (tmp_path / "kind").iterdir()] == ["name"]
    assert (tmp_path / "kind/name").read_text() == "whole"


def test_a_killed_maker_of_a_disk_leaves_no_mount_and_no_process(tmp_path: Path) -> None:
    """mmdebstrap mounts /proc in the root that it makes: if it were left, the half-made root could not be removed."""
    root = tmp_path / "root"
    script = "import sys; from pathlib import Path; from tests.lab.roots import debootstrap\n"
    script += "debootstrap('bookworm', ('ca-certificates',), Path(sys.argv[1]))"
    owner = subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.DEVNULL)
    try:
        status = root / "var/lib/dpkg/status"
        until(lambda: status.exists() and "install ok installed" in status.read_text(), "packages are installed", 120)
    finally:
        owner.kill()
        owner.wait(30)
    until(lambda: str(root) not in commands_and_mounts(), "nothing uses the root any more")
    shutil.rmtree(root)


def commands_and_mounts() -> str:
    """Return the command lines of all processes, and the mounts of this machine."""
    found = [Path("/proc/mounts").read_text()]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((process / "cmdline").read_text(errors="replace"))
    return "\n".join(found)

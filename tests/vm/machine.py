"""A virtual machine: a real Debian with its own kernel, systemd and Docker, on the lab's `Wan`. See README.md."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.lab import claims
from tests.lab.daemon import DockerError
from tests.lab.images import Rootfs
from tests.lab.store import LabError, call
from tests.lab.wan import BEHIND_HOST, Wan
from tests.vm.hardware import hardware
from tests.vm.qmp import Guest, Monitor
from tests.vm.states import State, ready
from tests.vm.systems import DEFAULT

#: Bytes of the disk by which files come and go.
_EXCHANGE = 3 << 30
#: Seconds for a whole boot, under emulation and beside other work.
BOOT_TIMEOUT = 600


class Machine:
    """A virtual machine on a `Wan`; the first is 198.51.100.1 and 2001:db8:ffff::1 there, as a `Host` is.

        with Wan() as wan, Machine("bookworm", wan) as vm:
            vm.docker("run", "-d", "--name", "web", "-p", "8080:80", "busybox", "httpd", "-f")
            assert wan.probe.tcp(vm.v4, 8080) == "open"
            vm.reboot()

    Entering the `with` starts it: from the memory of its state in a few seconds, or with `cold` by a boot from the
    state's disk. `state` is a `states.State`; without one it is `states.ready` of the system. If the process that made
    the machine dies, the machine dies with it. Make it in the thread that lives longest.
    """

    def __init__(
        self,
        system: str = DEFAULT,
        wan: Wan | None = None,
        *,
        extra: tuple[str, ...] = (),
        state: State | None = None,
        cold: bool = False,
    ) -> None:
        """`extra`: more Debian packages on its disk. Without a `wan` it makes one, and closes it too."""
        self.state = state or ready(system, extra)
        self._own_wan = wan is None
        self.wan = wan or Wan()
        self.number = self.wan.attach()
        self._claim = claims.Claim("v")
        self.name, self.directory = self._claim.name, self._claim.directory
        self._overlay, self._exchange = self.directory / "disk.qcow2", self.directory / "exchange.raw"
        self._memory = None if cold else self.state.memory
        self._qemu: subprocess.Popen[bytes] | None = None
        self._monitor: Monitor | None = None
        self._guest: Guest | None = None
        call(
            [
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-b",
                str(self.state.image),
                "-F",
                self.state.format,
                str(self._overlay),
            ]
        )
        with open(self._exchange, "wb") as exchange:
            exchange.truncate(_EXCHANGE)

    def __enter__(self) -> Machine:
        try:
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── what it is ──

    @property
    def host(self) -> Machine:
        """Return itself: an `Engine` of the lab has its host there."""
        return self

    @property
    def v4(self) -> str:
        """Return its address on the wan."""
        return self.wan.host_v4(self.number)

    @property
    def v6(self) -> str:
        """Return its IPv6 address on the wan."""
        return self.wan.host_v6(self.number)

    @property
    def running(self) -> bool:
        """Return True if it is switched on."""
        return self._qemu is not None and self._qemu.poll() is None

    @property
    def monitor(self) -> Monitor:
        """Return QEMU's monitor, for what this class has no method for."""
        if self._monitor is None:
            raise LabError(f"{self.name} is switched off: boot() it first")
        return self._monitor

    @property
    def guest(self) -> Guest:
        """Return the guest agent."""
        if self._guest is None:
            raise LabError(f"{self.name} is switched off: boot() it first")
        return self._guest

    def console(self, lines: int = 40) -> str:
        """Return the last lines of the serial console, of all boots."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join((self.directory / "console.log").read_text(errors="replace").splitlines()[-lines:])
        return ""

    # ── power ──

    def boot(self, *, wait: bool = True, timeout: float = BOOT_TIMEOUT) -> None:
        """Switch it on; the first time, with its state's memory if it has one.

        If `wait`, returns when programs can run and Docker's API answers, else as soon as programs can run.
        """
        if self.running:
            raise LabError(f"{self.name} is running already")
        memory, self._memory = self._memory, None
        self._start(memory)
        if memory:
            self._continue(timeout)
        else:
            self._plug()
            self._answering(timeout)
        if wait:
            self.ready(timeout)

    def ready(self, timeout: float = BOOT_TIMEOUT, unit: str = "docker.service") -> None:
        """Wait until a unit is active: Docker is when its API answers. LabError with its journal if it fails."""
        loop = (
            "while true; do case $(systemctl show -P ActiveState $1 2>/dev/null || "
            "systemctl show --value -p ActiveState $1) in active) exit 0;; failed) exit 1;; esac; sleep 0.1; done"
        )
        done = self.run(["sh", "-c", loop, "wait", unit], check=False, timeout=timeout)
        if done.returncode:
            raise LabError(f"{unit} of {self.name} has failed:\n{self.journal(unit)}")

    def reboot(self, *, wait: bool = True, timeout: float = BOOT_TIMEOUT) -> None:
        """Reboot it as its administrator does (`systemctl reboot`); see `boot` for `wait`."""
        self.monitor.forget()
        self._order("reboot")
        self.monitor.event("RESET", timeout=timeout)
        self._answering(timeout)
        if wait:
            self.ready(timeout)

    def shutdown(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Switch it off as its administrator does (`systemctl poweroff`)."""
        self._order("poweroff")
        assert self._qemu is not None
        try:
            self._qemu.wait(timeout)
        except subprocess.TimeoutExpired as late:
            raise LabError(f"{self.name} is not off after {timeout:g} s:\n{self.console()}") from late
        self._forget()

    def power_cut(self) -> None:
        """Take its power away: what its kernel had not written is lost. `boot` starts it again from its disk."""
        if self._qemu is not None:
            claims.kill(self._qemu.pid)
            self._qemu.wait(30)
        self._forget()

    def pause(self) -> None:
        """Stop its processors, as if the whole machine were suspended by its host."""
        self.monitor("stop")

    def resume(self) -> None:
        """Let them run again. Its clock is late then, as a real one is; see `set_clock`."""
        self.monitor("cont")

    def close(self) -> None:
        """Switch it off at once and remove everything, including the wan if this machine made it."""
        self.power_cut()
        self.wan.run(["ip", "link", "delete", f"host{self.number}"], check=False)
        self._claim.release()
        if self._own_wan:
            self.wan.close()

    def save(self, target: Path) -> None:
        """Write its disk's changes and its memory into a new directory, for a `State`; it is off afterwards."""
        target.mkdir()
        self.run(["sh", "-c", "sync; echo 3 >/proc/sys/vm/drop_caches"])
        self.monitor("stop")
        self.monitor("migrate", uri=f"exec:cat >{target / 'memory'}")
        while (status := self.monitor("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled"):
                raise LabError(f"the memory of {self.name} cannot be saved: {self.monitor('query-migrate')}")
            time.sleep(0.1)
        self.monitor("quit")
        assert self._qemu is not None
        self._qemu.wait(60)
        self._forget()
        shutil.move(self._overlay, target / "disk.qcow2")

    # ── programs and files ──

    def run(
        self, argv: Sequence[str], *, check: bool = True, input: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a program and wait; LabError with its output if it fails and `check` is true, or after `timeout`."""
        pid = self.guest.start(argv, (input or "").encode())
        return self._done(argv, pid, check, timeout)

    def popen(self, argv: Sequence[str], *, input: str | None = None) -> Program:
        """Start a program."""
        return Program(self, argv, self.guest.start(argv, (input or "").encode()))

    def _done(self, argv: Sequence[str], pid: int, check: bool, timeout: float) -> subprocess.CompletedProcess[str]:
        done = self.guest.finished(pid, timeout)
        if done is None:
            self.guest.start(["kill", "-9", str(pid)])
            raise LabError(f"{' '.join(argv)}: not done after {timeout:g} s")
        status, out, err = done
        texts = out.decode(errors="replace"), err.decode(errors="replace")
        if check and status:
            raise LabError(f"{' '.join(argv)}: status {status}\n{''.join(texts)}")
        return subprocess.CompletedProcess(list(argv), status, *texts)

    def put(self, source: Path, directory: str = "/lab") -> str:
        """Copy a file or directory of this machine into a directory there; return its path there."""
        with open(self._exchange, "r+b") as exchange:
            argv = ["tar", "-C", str(source.parent), "--numeric-owner", "-cf", "-", source.name]
            subprocess.run(argv, stdout=exchange, check=True, timeout=300)
        script = 'blockdev --flushbufs /dev/vdb; mkdir -p "$1"; tar -C "$1" -xf /dev/vdb'
        self.run(["sh", "-ec", script, "put", directory], timeout=600)
        return f"{directory}/{source.name}"

    def get(self, path: str) -> Path:
        """Copy a file or directory from there; return its path on this machine, which exists until `close`."""
        script = 'tar -C "$(dirname "$1")" -cf /dev/vdb "$(basename "$1")"; sync /dev/vdb'
        self.run(["sh", "-ec", script, "get", path], timeout=600)
        target = self.directory / "got"
        shutil.rmtree(target / Path(path).name, ignore_errors=True)
        target.mkdir(exist_ok=True)
        call(["tar", "-C", str(target), "-xf", str(self._exchange)])
        return target / Path(path).name

    def write(self, path: str, text: str) -> None:
        """Write a file there, making its directory."""
        self.run(["sh", "-ec", 'mkdir -p "$(dirname "$1")"; cat >"$1"', "write", path], input=text)

    def read(self, path: str) -> str:
        """Return the text of a file there."""
        return self.run(["cat", path]).stdout

    def journal(self, unit: str, lines: int = 60) -> str:
        """Return the last lines of a unit's journal, of this boot."""
        return self.run(["journalctl", "--no-pager", "-b", "-u", unit, "-n", str(lines)], check=False).stdout

    # ── time ──

    def set_clock(self, to: float | None = None) -> None:
        """Set its clock to a time of day in seconds, or to this machine's."""
        # The agent sets the clock at once, then calls hwclock, which not every system has.
        with contextlib.suppress(LabError):
            self.guest("guest-set-time", time=int((time.time() if to is None else to) * 1e9))
        off = self.guest.clock() - (time.time() if to is None else to)
        if abs(off) > 5:
            raise LabError(f"the clock of {self.name} is {off:.1f} s off after it was set")

    def active_since(self, unit: str = "docker.service") -> float:
        """Return the `time.monotonic()` of *this* machine when the unit became active there.

        It is right to some tens of milliseconds.
        """
        show = ["systemctl", "show", "--value", "-p", "ActiveEnterTimestampMonotonic", unit]
        script = "import time,sys; print(time.time() - (time.monotonic() - int(sys.argv[1]) / 1e6))"
        shown = self.run(show).stdout.strip()
        wall = float(self.run(["python3", "-ISc", script, shown]).stdout)
        sent = time.monotonic()
        theirs = self.guest.clock()
        return wall - theirs + (sent + time.monotonic()) / 2

    # ── Docker, as an `Engine` of the lab has it ──

    def docker(self, *args: str, input: str | None = None, timeout: float = 300) -> str:
        """Run the docker CLI; return its stdout without the last newline. DockerError if it fails."""
        done = self.try_docker(*args, input=input, timeout=timeout)
        if done.returncode:
            raise DockerError(f"docker {' '.join(args)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.rstrip("\n")

    def try_docker(
        self, *args: str, input: str | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run the docker CLI; the caller checks returncode, stdout and stderr."""
        return self.run(["docker", *args], check=False, input=input, timeout=timeout)

    def http(self, socket: str, method: str, path: str, body: object = None, *, timeout: float = 60) -> Any:
        """Send an HTTP request to a Unix socket there; return the decoded JSON, or None.

        DockerError if the status is 400 or above; OSError if no process answers.
        """
        text = "" if body is None else json.dumps(body)
        argv = ["python3", "-IS", "/usr/local/lib/lab/http.py", socket, method, path]
        done = self.run(argv, check=False, input=text, timeout=timeout)
        head, _, raw = done.stdout.partition("\r\n\r\n")
        status = head.split(" ", 2)[1:2]
        if done.returncode or not status:
            raise OSError(f"{method} {path}: {done.stderr.strip().rpartition(chr(10))[2]}")
        if int(status[0]) >= 400:
            raise DockerError(f"{method} {path}: {status[0]} {raw.strip()}")
        return json.loads(raw) if raw.strip()[:1] in ("{", "[") else None

    def api(self, method: str, path: str, body: object = None, *, timeout: float = 60) -> Any:
        """Call Docker's API, such as ``api("GET", "/containers/json?all=1")``; see `http`."""
        return self.http("/run/docker.sock", method, path, body, timeout=timeout)

    def load(self, image: Path | Rootfs) -> None:
        """Load an image: a tar that `docker save` wrote, or a root file system (`docker import`)."""
        tar = image.tar if isinstance(image, Rootfs) else image
        with open(self._exchange, "r+b") as exchange, open(tar, "rb") as source:
            shutil.copyfileobj(source, exchange, 1 << 20)
        command = ["docker", "load", "--quiet"]
        if isinstance(image, Rootfs):
            changes = [word for line in image.changes for word in ("--change", line)]
            command = ["docker", "import", *changes, "-", image.name]
        script = 'blockdev --flushbufs /dev/vdb; size=$1; shift; head -c "$size" /dev/vdb | "$@"'
        self.run(["sh", "-ec", script, "load", str(tar.stat().st_size), *command], timeout=900)

    def inspect(self, container: str) -> dict[str, Any]:
        """Return the output of `docker inspect` for a container."""
        return dict(self.api("GET", f"/containers/{container}/json"))

    def address(self, container: str, network: str = "bridge") -> tuple[str, str]:
        """Return a container's addresses on a network: (IPv4, IPv6), "" for one that it does not have."""
        there = self.inspect(container)["NetworkSettings"]["Networks"][network]
        return there["IPAddress"], there["GlobalIPv6Address"]

    @contextlib.contextmanager
    def serve(self, container: str, *, tcp: Iterable[int] = (), udp: Iterable[int] = ()) -> Iterator[None]:
        """Run echo servers inside the container's network, on all its addresses of both families, for a while."""
        pid = self.inspect(container)["State"]["Pid"]
        ports = [*(f"tcp:{port}" for port in tcp), *(f"udp:{port}" for port in udp)]
        mark = f"/run/lab-{container}-{time.monotonic_ns()}"
        script = 'mark=$1; shift; exec "$@" >"$mark"'
        enter = ["nsenter", f"--net=/proc/{pid}/ns/net", "python3", "-IS", "/usr/local/lib/lab/serve.py", container]
        server = self.popen(["sh", "-ec", script, "serve", mark, *enter, *ports])
        try:
            wait = f"until [ -s {mark} ] || ! [ -e /proc/{server.pid} ]; do sleep 0.05; done; cat {mark}"
            if "ready" not in self.run(["sh", "-c", wait]).stdout:
                raise LabError(f"no servers in {container}: {server.wait(10).stderr}")
            yield
        finally:
            server.end()

    # ── inside ──

    def _start(self, memory: Path | None) -> None:
        ours = self.directory
        for name in ("qmp", "agent"):
            (ours / name).unlink(missing_ok=True)
        port = f"host{self.number}"
        self.wan.run(["ip", "link", "delete", port], check=False)
        # Its owner's death ends it, whatever the reason; the wan's namespace has the tap, and outlives no claim.
        argv = ["setpriv", "--pdeathsig", "KILL", *self.wan.prefix, *hardware(self.state.disk, self.number)]
        argv += ["-netdev", f"tap,id=net,ifname={port},script=no,downscript=no"]
        argv += ["-drive", f"file={self._overlay},if=none,id=disk,format=qcow2,cache=writeback,discard=unmap"]
        argv += ["-drive", f"file={self._exchange},if=none,id=exchange,format=raw,cache=writeback,file.locking=off"]
        argv += ["-chardev", f"socket,id=agent,path={ours / 'agent'},server=on,wait=off"]
        argv += ["-chardev", f"file,id=console,path={ours / 'console.log'},append=on"]
        argv += ["-qmp", f"unix:{ours / 'qmp'},server=on,wait=off"]
        if memory:
            argv += ["-incoming", f"exec:cat {memory}"]
        with open(ours / "qemu.log", "ab") as log:
            self._qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0)
        self._claim.add_pid(self._qemu.pid)
        self._monitor = self._connect(Monitor, ours / "qmp")
        self._guest = self._connect(Guest, ours / "agent")

    def _connect(self, kind: Any, path: Path) -> Any:
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                return kind(path)
            if not self.running or time.monotonic() > end:
                raise LabError(f"QEMU does not start:\n{(self.directory / 'qemu.log').read_text()[-3000:]}")
            time.sleep(0.02)

    def _continue(self, timeout: float) -> None:
        """Go on where the saved memory ends, with this machine's number and the right time."""
        end = time.monotonic() + timeout
        while self.monitor("query-status")["status"] == "inmigrate":
            if time.monotonic() > end:
                raise LabError(f"{self.name} has not read its memory after {timeout:g} s")
            time.sleep(0.02)
        self.monitor("cont")
        self._answering(timeout)
        self.set_clock()
        if self.number != 1:  # the state was the first machine of its wan
            script = (
                "ip link set eth0 down; sh /usr/local/lib/lab/address.sh $1; networkctl reload; ip link set eth0 up"
            )
            self.run(["sh", "-c", script, "address", str(self.number)])
            until = "until ip -6 addr show dev eth0 | grep -q ' 2001:db8:ffff::'$1/; do sleep 0.1; done"
            self.run(["sh", "-c", until, "address", str(self.number)])
        self._plug()

    def _plug(self) -> None:
        """Connect its link to the other machines."""
        self.wan.ip(f"link set host{self.number} master lan up")
        if self.number == 1:
            self.wan.route(1, *BEHIND_HOST)

    def _answering(self, timeout: float) -> None:
        try:
            self.guest.wait(timeout)
        except LabError as error:
            raise LabError(f"{self.name}: {error}\n{self.console()}") from error

    def _order(self, what: str) -> None:
        """Let systemd do something that may end the agent before it answers."""
        with contextlib.suppress(LabError):
            self.guest("guest-exec", path="systemctl", arg=["--no-block", what], timeout=10)

    def _forget(self) -> None:
        for connection in (self._monitor, self._guest):
            if connection:
                connection.close()
        self._qemu = self._monitor = self._guest = None
        self._claim.record.pids.clear()
        self._claim.save()


class Program:
    """A program running in a machine."""

    def __init__(self, machine: Machine, argv: Sequence[str], pid: int) -> None:
        self._machine, self._argv, self.pid = machine, argv, pid

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._machine.run(["kill", f"-{number}", str(self.pid)], check=False)

    def wait(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Wait for its end; LabError if it takes longer than `timeout` seconds (and it is ended)."""
        return self._machine._done(self._argv, self.pid, False, timeout)

    def end(self) -> None:
        """End it at once, if the machine is running."""
        if self._machine.running:
            with contextlib.suppress(LabError):
                self.signal(signal.SIGKILL)

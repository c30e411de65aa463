"""Record what happens around an opening: packets, nftables' trace, changes of rules and flows, logs.

All of it is kept in rings of bounded size, and written to a directory when a port answered that must not.
"""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from tests.lab.netns import Netns
from tests.product import Fw
from tests.waiting import until

from .outsider import Answer, Port

#: Seconds that are kept before the first and after the last opening.
BEFORE, AFTER = 5.0, 2.0
#: Megabytes of a file of packets, and how many files; lines of each program's output.
RING_SIZE, RING_FILES, LINES = "4", "6", 40_000
#: Packets traced in a second: always, and from the first opening to the end of the blow. A trace has dozens of lines.
SAMPLE, ALL = 5, 200
#: Openings of one run that are recorded: the first ones say enough, and the disk is not ours alone.
MOST = 20
_TABLE = "inet torture"


class Listener:
    """A program that prints the kernel's reports; the last lines of its output are kept, with times.

    When this object is made `nft` listens, so it reports what is done next. A program that ends before `stop` is
    started again, and a line says so: `nft monitor` ends when it meets rules that it cannot read. `on_line` is called
    with each line.
    """

    def __init__(self, netns: Netns, name: str, *argv: str, on_line: Callable[[str], None] | None = None) -> None:
        self.name = name
        self._on_line = on_line or (lambda _line: None)
        self.lines: deque[tuple[float, str]] = deque(maxlen=LINES)
        self._netns, self._argv = netns, argv
        self._over = threading.Event()
        self._process = self._started()
        self._reader = threading.Thread(target=self._read, name=name, daemon=True)
        self._reader.start()
        if argv[0] == "nft":  # the sockets of conntrack have numbers of their own
            until(self._listens, f"{' '.join(argv)} listens")

    def _started(self) -> subprocess.Popen[str]:
        return self._netns.popen(
            ["stdbuf", "-oL", *self._argv],
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _listens(self) -> bool:
        """Return True if it has joined a group of the kernel's reports: the fourth word of its line in this file."""
        sockets = Path(f"/proc/{self._process.pid}/net/netlink").read_text().splitlines()[1:]
        return any(words[2] == str(self._process.pid) and int(words[3], 16) for words in map(str.split, sockets))

    def _read(self) -> None:
        while not self._over.is_set():
            assert self._process.stdout
            for line in self._process.stdout:
                self.lines.append((time.monotonic(), line))
                self._on_line(line)
            if not self._over.wait(0.1):
                self.lines.append((time.monotonic(), f"# ended with {self._process.wait(10)}, is started again\n"))
                self._process = self._started()

    def restart(self) -> None:
        """Start the program again."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def write(self, directory: Path, since: float, until: float) -> None:
        lines = list(self.lines)
        with (directory / f"{self.name}.txt").open("w") as out:
            out.writelines(f"{at - since - BEFORE:+9.4f} {line}" for at, line in lines if since <= at <= until)
            ends = sum(line.startswith("# ended") for _, line in lines)
            first = f"{lines[0][0] - since - BEFORE:+.4f} to {lines[-1][0] - since - BEFORE:+.4f}" if lines else "none"
            out.write(f"# {len(lines)} lines are kept ({first}), and the program ended {ends} times\n")

    def stop(self) -> None:
        self._over.set()
        while self._reader.is_alive():  # it may have started the program again just now
            end(self._process)
            self._reader.join(1)


class Capture:
    """tcpdump on all links of a namespace, into a ring of files."""

    def __init__(self, netns: Netns, name: str, directory: Path, ports: Iterable[Port]) -> None:
        self.name, self._directory = name, directory
        directory.mkdir(parents=True, exist_ok=True)
        wanted = "icmp or icmp6 or " + " or ".join(
            f"port {number}" for number in sorted({port.number for port in ports})
        )
        ring = ["-C", RING_SIZE, "-W", RING_FILES, "-w", str(directory / name)]
        # root: otherwise it may not write a second file. Unbuffered: the last packets matter most.
        argv = ["tcpdump", "-i", "any", "-n", "-s", "160", "-U", "-B", "4096", "-Z", "root", *ring, wanted]
        self._process = netns.popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda: self._process.poll() is not None or self._files(), "tcpdump captures")

    def _files(self) -> list[Path]:
        return sorted(self._directory.glob(f"{self.name}?*"), key=lambda path: path.stat().st_mtime)

    def write(self, directory: Path, since: float, until: float) -> None:
        """Write the packets of that span, in order; the times are of the wall clock."""
        head, records = b"", []
        for path in self._files():
            with path.open("rb") as file:
                head = file.read(24) or head
                records += [record for at, record in packets(file, head) if since <= at <= until]
        (directory / f"{self.name}.pcap").write_bytes(head + b"".join(records))

    def stop(self) -> None:
        end(self._process)


def packets(file: IO[bytes], head: bytes) -> Iterator[tuple[float, bytes]]:
    """Yield the records of a pcap file behind its head, with their times; the last one may be cut."""
    order = "<" if head[:4] == b"\xd4\xc3\xb2\xa1" else ">"
    while len(start := file.read(16)) == 16:
        seconds, micros, size, _ = struct.unpack(f"{order}IIII", start)
        body = file.read(size)
        if len(body) == size:
            yield seconds + micros / 1e6, start + body


def end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


class Tracer:
    """A table of its own that makes the kernel trace shots, a few in a second, or nearly all after an opening.

    The table belongs to the program that made it, so that `nft flush ruleset` leaves it there.
    """

    def __init__(self, netns: Netns, ports: Iterable[Port]) -> None:
        self._ports = sorted({(p.protocol, "ip6" if ":" in p.address else "ip", p.address, p.number) for p in ports})
        self._process = netns.popen(
            ["nft", "-i"], text=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._say(f"add table {_TABLE} {{ flags owner; }}")
        # Before connection tracking, and before all other tables.
        self._say(f"add chain {_TABLE} shots {{ type filter hook prerouting priority -450; }}")
        self.rate(SAMPLE)

    def rate(self, each_second: int) -> None:
        self._say(f"flush chain {_TABLE} shots")
        limit = f"limit rate {each_second}/second burst {each_second} packets"
        for (protocol, family), ports in itertools.groupby(self._ports, lambda port: port[:2]):
            wanted = ", ".join(f"{address} . {number}" for *_, address, number in ports)
            match = f"{family} daddr . {protocol} dport {{ {wanted} }}"
            self._say(f"add rule {_TABLE} shots {match} {limit} meta nftrace set 1")

    def _say(self, command: str) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        end(self._process)


def trace(netns: Netns) -> tuple[Listener, Listener]:
    """Return the listeners for the way of traced packets, and for changes of rules.

    `nft monitor trace` knows only the rules that existed when it started, so it starts again with each new table. The
    other one is limited to the ruleset: otherwise traces, thousands in a second, would take the place of changes.
    """

    def created(line: str) -> None:
        if line.startswith("add table"):
            way.restart()

    way = Listener(netns, "trace", "nft", "monitor", "trace")
    return way, Listener(netns, "rules", "nft", "-a", "monitor", "ruleset", on_line=created)


class Recorder:
    """All rings. `end` writes them if the blow opened something; in a `with` the programs run."""

    def __init__(self, fw: Fw, directory: Path, ports: Iterable[Port]) -> None:
        self.fw, self.directory, self.ports = fw, directory, list(ports)
        self.kept: list[Path] = []
        self._ring, self._first = directory / "ring", directory / "first"
        self._wan: list[Capture] = []
        self._host: list[Capture | Listener | Tracer] = []
        self._rules: str = ""
        #: Writes the recording of a blow's first opening, and the answer that it has recorded.
        self._writer: threading.Thread | None = None
        self._recorded: Answer | None = None
        self._logged = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Recorder:
        self._wan = [Capture(self.fw.wan, "outsider", self._ring, self.ports)]
        self.host_booted()
        return self

    def __exit__(self, *_: object) -> None:
        self.host_halts()
        for each in self._wan:
            each.stop()
        shutil.rmtree(self._ring, ignore_errors=True)

    def host_booted(self) -> None:
        """Start what records in the host; its network is a new one after each boot."""
        netns = self.fw.host.netns
        self._host = [
            Capture(netns, "host", self._ring, self.ports),
            *trace(netns),
            Listener(netns, "flows", "conntrack", "-E", "-o", "id"),
            Tracer(netns, self.ports),
        ]
        self._logged = self._log_size()

    def host_halts(self) -> None:
        for each in self._host:
            each.stop()

    def alarm(self, answer: Answer) -> None:
        """Record what surrounds the first answer of a blow that must not be; in a thread, as the outsider goes on."""
        with self._lock:
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, args=(answer,), name="recorder")
                self._writer.start()

    def end(self, blow: str, opened: tuple[Answer, ...]) -> None:
        """Keep what is known about these openings, if there are any, and be ready for the next blow."""
        if self._writer:
            self._writer.join(AFTER + 60)
        if opened and len(self.kept) < MOST:
            self._keep(self.directory / f"{len(self.kept) + 1:02}-{blow}", opened)
        self._rate(SAMPLE)
        shutil.rmtree(self._first, ignore_errors=True)
        with self._lock:
            self._rules, self._recorded, self._writer, self._logged = "", None, None, self._log_size()

    def _rate(self, each_second: int) -> None:
        for each in self._host:
            if isinstance(each, Tracer):
                each.rate(each_second)

    def _write(self, answer: Answer) -> None:
        """Write the rules as they are now, and the rings as they are some seconds after this answer.

        The rings hold ten seconds, and a blow may last longer.
        """
        programs = (*self._wan, *self._host)
        self._rate(ALL)
        done = self.fw.host.netns.run(["nft", "-a", "list", "ruleset"], check=False)
        self._rules = f"# {time.monotonic() - answer.sent:.3f} s after the shot that was answered\n"
        self._rules += done.stdout + done.stderr
        time.sleep(max(0.0, answer.came + AFTER - time.monotonic()))
        self._write_rings(answer, programs)

    def _write_rings(self, answer: Answer, programs: Iterable[Capture | Listener | Tracer]) -> None:
        since, end, wall = answer.sent - BEFORE, answer.came + AFTER, time.time() - time.monotonic()
        self._first.mkdir(parents=True, exist_ok=True)
        self._recorded = answer
        for one in programs:
            if isinstance(one, Capture):
                one.write(self._first, since + wall, end + wall)
            elif isinstance(one, Listener):
                one.write(self._first, since, end)

    def _keep(self, directory: Path, opened: tuple[Answer, ...]) -> None:
        """Keep what was written in a directory, with the answers and dockerd's log."""
        if self._recorded is not opened[0]:  # an answer with an excuse was the first one
            self._write_rings(opened[0], (*self._wan, *self._host))
        self.kept.append(directory)
        shutil.rmtree(directory, ignore_errors=True)
        self._first.rename(directory)
        since, wall = opened[0].sent, time.time() - time.monotonic()
        with (directory / "answers.txt").open("w") as out:
            for each in opened[:1000]:
                at = time.strftime("%H:%M:%S", time.gmtime(each.sent + wall))
                out.write(f"{each.sent - since:+9.4f} to {each.left - since:+9.4f} {at} UTC {each.port} {each.how}, ")
                out.write(f"{(each.came - each.left) * 1000:.1f} ms later\n")
        (directory / "ruleset.txt").write_text(self._rules)
        with self.fw.engine.log.open("rb") as log:
            # dockerd writes the plugin's lines into its own log, and all lines have times.
            log.seek(max(self._logged, self._log_size() - 4_000_000))
            (directory / "dockerd.log").write_bytes(log.read())

    def _log_size(self) -> int:
        return self.fw.engine.log.stat().st_size

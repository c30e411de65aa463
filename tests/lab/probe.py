"""Start probes, echo servers and hammers in any network namespace; see `Prober`.

wan.probe.tcp("2001:db8:1::2", 80)                  # "open", "refused", "silent" or "unsent"
wan.probe([("tcp", a, 80), ("udp", a, 53), ("ping", a)])   # all at once: {target: verdict}
with wan.probe.hammer(("tcp", a, 8080)) as hammer: ...
assert not hammer.result.opened
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import claims
from .store import LabError

Proto = Literal["tcp", "udp", "ping", "sctp"]
Verdict = Literal["open", "refused", "silent", "unsent"]
#: (proto, address, port), or ("ping", address)
Target = tuple[str, str, int] | tuple[str, str]

#: seconds without an answer after which a probe is silent
TIMEOUT = 0.4
#: seconds that a TCP server which accepted has to introduce itself (the lab's do so at once)
LINGER = 0.1


@dataclass(frozen=True)
class Answer:
    """The answer to a probe."""

    verdict: Verdict
    #: the lab server's name, or the first words of another; the error's name if refused or unsent
    detail: str
    #: how long it took, in milliseconds
    ms: float
    #: the client's address and port as a lab server saw them ("" and 0: not a lab server)
    peer: str = ""
    peer_port: int = 0


@dataclass(frozen=True)
class Shot:
    """One of a hammer's probes; `at` is a `time.monotonic()` of this machine."""

    target: Target
    at: float
    verdict: Verdict


@dataclass
class Volley:
    """All that a hammer sent, in order."""

    shots: list[Shot] = field(default_factory=list)

    @property
    def opened(self) -> list[Shot]:
        """Return the probes that were answered."""
        return [shot for shot in self.shots if shot.verdict == "open"]

    @property
    def failed(self) -> list[Shot]:
        """Return the probes that were not answered."""
        return [shot for shot in self.shots if shot.verdict != "open"]

    @property
    def longest_gap(self) -> float:
        """Return the longest time, in seconds, between two answered probes (0 with less than two)."""
        times = [shot.at for shot in self.opened]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


class Agent:
    """The one agent process of this lab (started at first use), for all namespaces."""

    _lock = threading.Lock()
    _it: Agent | None = None

    def __init__(self) -> None:
        top = Path(__file__).parent
        for _ in (__package__ or "").split("."):
            top = top.parent
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", f"{__package__}.agent"],
            text=True,
            bufsize=1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(top)},
            start_new_session=True,  # Ctrl-C is for the lab's owner to handle
        )
        atexit.register(self._close)
        claims.spared.add(self._process.pid)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}
        threading.Thread(target=self._listen, daemon=True, name="lab-agent").start()

    @classmethod
    def get(cls) -> Agent:
        """Return the agent; a new one if the last one died."""
        with cls._lock:
            if cls._it is None or cls._it._process.poll() is not None:
                cls._it = Agent()
            return cls._it

    def ask(self, do: str, wait: float = 60, **arguments: Any) -> Any:
        """Make a request; LabError if it fails or takes longer than `wait` seconds."""
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = future
            assert self._process.stdin
            try:
                self._process.stdin.write(json.dumps({"request": number, "do": do, **arguments}) + "\n")
                self._process.stdin.flush()
            except OSError as error:
                raise LabError("the lab's agent died; see its words on stderr") from error
        try:
            return future.result(wait)
        except TimeoutError as late:
            raise LabError(f"the lab's agent has not answered after {wait:g} s") from late

    def _close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            reply = json.loads(line)
            future = self._waiting.pop(reply["request"])
            if "error" in reply:
                future.set_exception(LabError(reply["error"]))
            else:
                future.set_result(reply["result"])
        for future in self._waiting.values():
            future.set_exception(LabError("the lab's agent died"))


_idents = itertools.count(1)


class Prober:
    """Probes that start in one network namespace."""

    def __init__(self, netns: str) -> None:
        self.netns = netns

    def ask(
        self,
        targets: Iterable[Target],
        *,
        timeout: float = TIMEOUT,
        linger: float = LINGER,
        source: str | None = None,
        source_port: int = 0,
    ) -> dict[Target, Answer]:
        """Probe all targets at once; return each one's answer.

        After `timeout` seconds without an answer a target is silent; `source` is an address of this namespace to send
        from. A namespace that does not exist is a LabError.
        """
        wanted = list(dict.fromkeys(targets))
        found = Agent.get().ask(
            "probe",
            netns=self.netns,
            probes=[[*target, 0][:3] for target in wanted],
            timeout=timeout,
            linger=linger,
            source=source,
            source_port=source_port,
            wait=timeout + linger + 30,
        )
        return {target: Answer(**answer) for target, answer in zip(wanted, found, strict=True)}

    def __call__(self, targets: Iterable[Target], **options: Any) -> dict[Target, Verdict]:
        """Return the verdicts alone; options as of `ask`."""
        return {target: answer.verdict for target, answer in self.ask(targets, **options).items()}

    def one(self, target: Target, **options: Any) -> Answer:
        """Return one probe's whole answer; options as of `ask`."""
        return self.ask([target], **options)[target]

    def tcp(self, address: str, port: int, **options: Any) -> Verdict:
        """Connect to a TCP server; return the verdict. A server that disconnects at once is "refused"."""
        return self.one(("tcp", address, port), **options).verdict

    def udp(self, address: str, port: int, **options: Any) -> Verdict:
        """Send a UDP datagram; return the verdict."""
        return self.one(("udp", address, port), **options).verdict

    def sctp(self, address: str, port: int, **options: Any) -> Verdict:
        """Send an SCTP INIT; return the verdict."""
        return self.one(("sctp", address, port), **options).verdict

    def ping(self, address: str, **options: Any) -> Verdict:
        """Send an echo request; return the verdict."""
        return self.one(("ping", address), **options).verdict

    def hammer(
        self, *targets: Target, every: float = 0.005, timeout: float = TIMEOUT, source: str | None = None
    ) -> Hammer:
        """Start probing in the background, one probe each `every` seconds, the targets in turn."""
        return Hammer(self.netns, targets, every, timeout, source)

    def serve(
        self,
        *,
        tcp: Iterable[int] = (),
        udp: Iterable[int] = (),
        sctp: Iterable[int] = (),
        name: str = "lab",
        watch: int = 0,
    ) -> Servers:
        """Start echo servers here, both families. They end with `close`, or with the process `watch`."""
        ports = {"tcp": list(tcp), "udp": list(udp), "sctp": list(sctp)}
        return Servers(netns=self.netns, name=name, watch=watch, **ports)


class Hammer:
    """Background probing, by `Prober.hammer`. Use it in a `with`, or call `stop`."""

    def __init__(
        self, netns: str, targets: tuple[Target, ...], every: float, timeout: float, source: str | None
    ) -> None:
        self._targets, self._ident, self.result = targets, next(_idents), Volley()
        self._stopped = False
        Agent.get().ask(
            "hammer",
            ident=self._ident,
            netns=netns,
            every=every,
            timeout=timeout,
            source=source,
            targets=[[*target, 0][:3] for target in targets],
        )

    def stop(self) -> Volley:
        """Stop and return the result; the last probes may take their time-out to end."""
        if not self._stopped:
            self._stopped = True
            shots = Agent.get().ask("stop", ident=self._ident)
            self.result.shots = [Shot(self._targets[index], at, verdict) for index, at, verdict in shots]
        return self.result

    def __enter__(self) -> Hammer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Servers:
    """Echo servers in a namespace, by `Prober.serve` or `Engine.serve`."""

    def __init__(self, **what: Any) -> None:
        """`what` as of `agent.servers.Servers`."""
        self._ident, self._closed = next(_idents), False
        Agent.get().ask("serve", ident=self._ident, **what)

    def seen(self) -> list[dict[str, Any]]:
        """Return all that arrived: dicts of proto, port, peer (address), at (monotonic time)."""
        return list(Agent.get().ask("seen", ident=self._ident))

    def close(self) -> None:
        """End them; harmless twice."""
        if not self._closed:
            self._closed = True
            Agent.get().ask("stop", ident=self._ident)

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

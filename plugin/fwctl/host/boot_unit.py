"""Before Docker: a file for `nft` and a systemd unit that close every bridge until docker-fw has started.

For the sidecar, which starts among the other containers; the managed plugin starts before them and needs none of it.
The table is docker-fw's own with all that closes and without any exception, so that docker-fw puts its table in this
one's place in one transaction, and nothing is open in between. It leaves the host's other bridges alone by name:
docker-fw itself goes by their indices, which differ from boot to boot, and which a bridge has not got before it is
there. A sidecar that sees the directory keeps the file current (`plugin.fwctl.host.boot_table`).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from plugin.docker.bridges import SETTLE, Bridges
from plugin.docker.client import DockerApi
from plugin.jsonio import INTERFACE_NAME
from plugin.kernel import link_monitor
from plugin.model import DockerUnavailable, FwError, Prefix
from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.document import document, element_text, named
from plugin.nftables.sets import CLOSED, TABLE, Element

#: What is written, below the host's root.
DIRECTORY = "etc/docker-fw"
FILE = f"{DIRECTORY}/boot.nft"
SCRIPT = f"{DIRECTORY}/boot.sh"
NAME = "docker-fw-boot.service"
UNIT = f"etc/systemd/system/{NAME}"
WANTS = f"etc/systemd/system/docker.service.wants/{NAME}"
#: Bridges of Docker's that may come though they are not there yet.
DOCKERS = ("docker0", "docker_gwbridge")
_DOCKER_UNITS = tuple(f"{where}/systemd/system/docker.service" for where in ("etc", "run", "usr/lib", "lib"))
_NFT = ("/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft")
_HEAD = f"""\
# docker-fw: the table that is active from before Docker starts until docker-fw does, which replaces it by its own.
# Every bridge is closed, except for ICMP and for what its own side initiates. Closed too: what a confined container
# initiates, published ports that no label opens, banned addresses. Made by `fwctl boot install`, and kept current by a
# docker-fw that sees this directory. /{SCRIPT} adds bans that end by themselves: #until UNIX-TIME SET ELEMENT

# Refused where the table stands already: docker-fw's own is never replaced by this one, nor added to.
create table inet {TABLE}
"""
_UNIT = f"""\
# Made by docker-fw (`fwctl boot install`); `fwctl boot remove` takes it away.

[Unit]
Description=docker-fw: every bridge is closed before Docker starts a container
# nftables.service begins with `flush ruleset`, as a rule.
After=nftables.service
Before=docker.service
# When Docker or nftables.service is started again, so is this: the table may have been flushed meanwhile.
PartOf=docker.service nftables.service
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
# There is no ExecStop: to stop this opens nothing.
ExecStart=/bin/sh /{SCRIPT}

[Install]
WantedBy=docker.service
"""


#: What the unit runs. A ban for a time lasts for what is left of it.
_SCRIPT = f"""\
# Made by docker-fw (`fwctl boot install`); {NAME} runs it.
nft=@nft@ file=/{FILE} table={TABLE}

# The table of a docker-fw that runs is left as it is.
ours() {{ $nft -t list chain inet "$1" deny >/dev/null 2>&1; }}
ours {TABLE} || ours {CLOSED} && exit

# Another program's table has docker-fw's name: docker-fw will not start, and closes by a table of this name too.
$nft -t list table inet {TABLE} >/dev/null 2>&1 && table={CLOSED}

bans() {{
\tnow=$(date +%s)
\tgrep '^#until ' $file | while read -r _ until set element; do
\t\t[ "$until" -gt "$now" ] || continue
\t\techo "add element inet {TABLE} $set {{ $element timeout $((until - now))s }}"
\tdone
}}
named() {{ sed -e "s/inet {TABLE} /inet $table /" -e "s/inet {TABLE}\\$/inet $table/"; }}
{{ cat $file; bans; }} | named | $nft -f - || named <$file | $nft -f -
"""


def nft_text(
    mark: int,
    dockers: Collection[str],
    unmanaged: Collection[str],
    closed: Iterable[Element] = (),
    bans: Mapping[Prefix, float] = MappingProxyType({}),
) -> str:
    """The file for nft: every bridge closed but `foreign`, within each bridge everything open as ever.

    `closed`: what closes besides. `bans`: until when (Unix time; 0: permanently). The script adds those that end, for a
    time-out in the file would count anew from each boot.
    """
    lasting, ending = ban_elements(bans, 0)  # seconds from 1970 on
    elements = (*_elements(dockers, unmanaged), *(e for e in closed if e.set != "foreign"), *lasting)
    untils = "".join(f"#until {until} {e.set} {element_text(e)}\n" for e, until in sorted(ending.items(), key=str))
    names = ", ".join(f'"{name}"' for name in sorted(unmanaged))
    others = f" fib saddr oifname != {{ {names} }}" if unmanaged else ""
    return f"""{_HEAD}{document(mark, {*elements}, cgroups=False, binds=False, holds=False, unmanaged=unmanaged)}
# Networks that Docker got after this was made: where the way to the destination is by the link that the packet came
# from, it stays within one bridge; and nobody else begins a flow in a container's name.
insert rule inet {TABLE} inbound fib daddr . iif oif exists accept
insert rule inet {TABLE} reverse_path fib saddr oifname "br-*"{others} fib saddr . iif oif missing goto deny
{untils}"""


def _elements(dockers: Collection[str], unmanaged: Collection[str]) -> Iterator[Element]:
    for bridge in {*DOCKERS, *dockers}:
        yield Element("dockers", (bridge,))
        yield Element("bridges", (bridge,))
    for bridge in {*DOCKERS, *dockers, *unmanaged}:
        yield Element("same_bridge", (bridge, bridge))


def unit_text() -> str:
    return _UNIT


def script_text(nft: str) -> str:
    """What the unit runs; `nft` is the program on the host."""
    return _SCRIPT.replace("@nft@", nft)


def bridges(
    api: DockerApi, uplinks: Callable[[], set[str]], wait: Callable[[float], None] = time.sleep
) -> tuple[frozenset[str], frozenset[str]]:
    """The host's bridges by name, as they are now: Docker's, and those that are neither Docker's nor ours.

    Takes seconds: Docker makes a bridge before it lists the network. Raises FwError.
    """
    known = Bridges(uplinks)
    try:
        known.see(link_monitor.links().values())
        wait(SETTLE)
        dockers, complete = api.bridges()
        there = {link.name for link in link_monitor.links().values()}
    except (DockerUnavailable, OSError) as error:
        raise FwError(
            f"{error}; which bridges are not Docker's only Docker can tell: start it, and say where its socket is "
            "(-v /:/host, or FW_DOCKER_SOCKET=PATH)"
        ) from error
    if missing := dockers - there:
        # In a network namespace of its own a container sees none of the host's bridges, and none would be left alone.
        raise FwError(
            f"Docker's bridge {min(missing)} is not to be seen from here; run this in the host's network: "
            "docker run --network host …"
        )
    known.told(dockers, known.now(), complete=complete)
    return _named(known.dockers() | dockers), _named(known.unmanaged())


def _named(bridges: Collection[str]) -> frozenset[str]:
    """A name that nft would have to quote stands nowhere in the file: such a bridge is closed, and no more."""
    return frozenset(filter(INTERFACE_NAME.fullmatch, bridges))


def check(root: Path, nft: str, text: str) -> None:
    """Lets the host's own nft and kernel judge the file, and changes nothing: at boot nobody would see an error.

    Raises FwError.
    """
    # Under another name: what stands may be the own table of a docker-fw that runs, which nobody else may touch.
    text = named(text, f"{TABLE}-check")
    command = ["chroot", str(root), nft, "--check", "-f", "-"]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FwError(f"could not run the host's {nft}: {error}") from error
    if done.returncode:
        why = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        may_not = "not permitted" in why[0]
        todo = "run this with --cap-add NET_ADMIN" if may_not else "it needs nftables 1.0.6 or newer"
        raise FwError(f"the host's {nft} does not take the table ({why[0]}); {todo}")


def find_nft(root: Path) -> str:
    """The host's nft. Raises FwError that says what is missing on this host, and what to do."""
    _is_root(root)
    if not (root / "run/systemd/system").is_dir():
        raise FwError(
            "this host was not started by systemd; install the managed plugin (make install), which needs no unit"
        )
    if not any(os.path.lexists(root / unit) for unit in _DOCKER_UNITS):
        raise FwError(
            "this host has no docker.service to come before (is Docker a snap?); install the managed plugin "
            "(make install), which needs no unit"
        )
    for nft in _NFT:
        if os.path.lexists(root / nft.lstrip("/")):
            return nft
    raise FwError("this host has no nft, which loads the table at boot: apt-get install nftables")


def install(root: Path, nft: str, text: str) -> list[str]:
    """Puts them there, each whole or not at all; the link, which makes them count, comes last.

    Returns the paths that are not as they were. Raises FwError.
    """
    try:
        files = ((FILE, text), (SCRIPT, script_text(nft)), (UNIT, unit_text()))
        done = [path for path, what in files if write(root / path, what)]
        return done + ([WANTS] if _link(root / WANTS, f"/{UNIT}") else [])
    except OSError as error:
        raise FwError(f"could not write {error.filename}: {error.strerror}") from error


def remove(root: Path) -> list[str]:
    """Takes them away again, but for the directory, which a sidecar mounts; returns what was there. Raises FwError."""
    _is_root(root)
    gone = []
    try:
        for path in (WANTS, UNIT, SCRIPT, FILE, f"{FILE}.kept", f"{FILE}.new"):
            if os.path.lexists(root / path):
                os.unlink(root / path)
                gone.append(path)
        wants = root / os.path.dirname(WANTS)
        if WANTS in gone and not os.listdir(wants):
            os.rmdir(wants)
    except OSError as error:
        raise FwError(f"could not remove {error.filename}: {error.strerror}") from error
    return gone


def installed(changed: Collection[str], unmanaged: Collection[str], why_not: str) -> str:
    """What `fwctl boot install` says: what was done, and what to do next. `why_not`: the file is not kept current."""
    lines = [f"{'wrote' if path in changed else 'stood already'}: /{path}" for path in (FILE, SCRIPT, UNIT, WANTS)]
    lines += [
        "From the next boot on every bridge is closed, but for ICMP, before Docker starts and until docker-fw runs.",
        f"Left alone, for they are not Docker's: {', '.join(sorted(unmanaged)) or 'no bridge'}.",
        "Closed too: published ports that no label opens, what confined containers initiate, banned addresses.",
        f"The file is as of now: {why_not}. Until then run this again after each ban, each published port or container "
        "with fw.egress, each new bridge of the host's own."
        if why_not
        else "docker-fw keeps the file current. Run this again when docker-fw has another version.",
        "Next: systemctl daemon-reload && systemctl start docker-fw-boot   (changes nothing while docker-fw runs)",
    ]
    return "\n".join(lines)


def removed(gone: Collection[str]) -> str:
    """What `fwctl boot remove` says."""
    if not gone:
        return "there was nothing to remove"
    lines = [f"removed: /{path}" for path in gone]
    lines += [
        "Next: systemctl daemon-reload. What stands in the kernel stays: it is a running docker-fw's, and if none",
        "runs any more, `fwctl cleanup` takes it away.",
    ]
    return "\n".join(lines)


def _is_root(root: Path) -> None:
    if not (root / "etc").is_dir():
        raise FwError(f"there is no host's file system at {root}; give it one (-v /:{root}) or say where it is: --root")


def write(path: Path, text: str, beside: str = "new") -> bool:
    """False if it is there already. `beside`: an ending for the file in which it is written first."""
    if path.is_file() and not path.is_symlink() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{beside}")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    _sync(path.parent)
    return True


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _link(path: Path, target: str) -> bool:
    if path.is_symlink() and os.readlink(path) == target:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(path)
    return True

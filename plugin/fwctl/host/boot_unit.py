"""The systemd unit that loads the boot table before Docker starts; its files are written below the host's root.

It is for the sidecar, which starts among the other containers. The managed plugin starts before them and needs no unit.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection
from pathlib import Path

from plugin.model import FwError
from plugin.nftables.document import named
from plugin.nftables.sets import CLOSED, TABLE

#: The files, below the host's root.
DIRECTORY = "etc/docker-fw"
FILE = f"{DIRECTORY}/boot.nft"
SCRIPT = f"{DIRECTORY}/boot.sh"
NAME = "docker-fw-boot.service"
UNIT = f"etc/systemd/system/{NAME}"
WANTS = f"etc/systemd/system/docker.service.wants/{NAME}"
_DOCKER_UNITS = tuple(f"{where}/systemd/system/docker.service" for where in ("etc", "run", "usr/lib", "lib"))
_NFT = ("/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft")
_UNIT = f"""\
# Made by docker-fw (`fwctl boot install`); `fwctl boot remove` removes it.

[Unit]
Description=docker-fw: every bridge is closed before Docker starts a container
# nftables.service usually starts with `flush ruleset`.
After=nftables.service
Before=docker.service
# Restarted with Docker and nftables.service: the table may have been flushed meanwhile.
PartOf=docker.service nftables.service
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
# There is no ExecStop: stopping this opens nothing.
ExecStart=/bin/sh /{SCRIPT}

[Install]
WantedBy=docker.service
"""


#: The unit's program. A ban that expires lasts for the rest of its time.
_SCRIPT = f"""\
# Made by docker-fw (`fwctl boot install`); {NAME} runs it.
nft=@nft@ file=/{FILE} table={TABLE}

# The table of a running docker-fw is left as it is.
ours() {{ $nft -t list chain inet "$1" deny >/dev/null 2>&1; }}
ours {TABLE} || ours {CLOSED} && exit

# Another program's table has docker-fw's name: docker-fw will not start, and closes with a table of this other name.
$nft -t list table inet {TABLE} >/dev/null 2>&1 && table={CLOSED}

bans() {{
\tnow=$(date +%s)
\tgrep '^#until ' $file | while read -r _ until set element; do
\t\t[ "$element" ] && [ "$until" -gt "$now" ] || continue
\t\techo "add element inet {TABLE} $set {{ $element timeout $((until - now))s }}"
\tdone
}}
named() {{ sed -e "s/inet {TABLE} /inet $table /" -e "s/inet {TABLE}\\$/inet $table/"; }}
{{ cat $file; bans; }} | named | $nft -f - || named <$file | $nft -f -
"""


def unit_text() -> str:
    """Return the unit."""
    return _UNIT


def script_text(nft: str) -> str:
    """Return the script that the unit runs; `nft` is the program on the host."""
    return _SCRIPT.replace("@nft@", nft)


def check(root: Path, nft: str, text: str) -> None:
    """Check the file with the host's own nft and kernel, without loading it: an error at boot would stay unseen.

    Raises FwError.
    """
    # Under another name: the table of a running docker-fw may be owned, and then only docker-fw may change it.
    text = named(text, f"{TABLE}-check")
    command = ["chroot", str(root), nft, "--check", "-f", "-"]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FwError(f"could not run the host's {nft}: {error}") from error
    if done.returncode:
        why = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        forbidden = "not permitted" in why[0]
        advice = "run this with --cap-add NET_ADMIN" if forbidden else "it needs nftables 1.0.6 or newer"
        raise FwError(f"the host's {nft} rejects the table ({why[0]}); {advice}")


def find_nft(root: Path) -> str:
    """Return the path of the host's nft. Raises FwError that names what the host lacks, and what to do."""
    _is_root(root)
    if not (root / "run/systemd/system").is_dir():
        raise FwError("this host does not run systemd; install the managed plugin (make install), which needs no unit")
    if not any(os.path.lexists(root / unit) for unit in _DOCKER_UNITS):
        raise FwError(
            "this host has no docker.service that the unit could precede (is Docker a snap?); install the managed "
            "plugin (make install), which needs no unit"
        )
    for nft in _NFT:
        if os.path.lexists(root / nft.lstrip("/")):
            return nft
    raise FwError("this host has no nft, which loads the table at boot: apt-get install nftables")


def install(root: Path, nft: str, text: str) -> list[str]:
    """Write the files, each atomically; the link, which enables the unit, is the last.

    Returns the paths that changed. Raises FwError.
    """
    try:
        files = ((FILE, text), (SCRIPT, script_text(nft)), (UNIT, unit_text()))
        done = [path for path, what in files if write(root / path, what)]
        return done + ([WANTS] if _link(root / WANTS, f"/{UNIT}") else [])
    except OSError as error:
        raise FwError(f"could not write {error.filename}: {error.strerror}") from error


def remove(root: Path) -> list[str]:
    """Remove the files, but not the directory, which a sidecar mounts; return those that existed. Raises FwError."""
    _is_root(root)
    found = []
    try:
        for path in (WANTS, UNIT, SCRIPT, FILE, f"{FILE}.kept", f"{FILE}.new"):
            if os.path.lexists(root / path):
                os.unlink(root / path)
                found.append(path)
        wants = root / os.path.dirname(WANTS)
        if WANTS in found and not os.listdir(wants):
            os.rmdir(wants)
    except OSError as error:
        raise FwError(f"could not remove {error.filename}: {error.strerror}") from error
    return found


def installed(changed: Collection[str], unmanaged: Collection[str], why_not: str) -> str:
    """Return the report of `fwctl boot install`. `why_not`: why no docker-fw keeps the file current, or ""."""
    current = "docker-fw keeps the file current. Run this again after each upgrade of docker-fw."
    if why_not:
        current = (
            f"The file is not kept current: {why_not}. Until then, run this again after each ban, each new published "
            "port or container with fw.egress, and each new bridge of the host's own."
        )
    lines = [f"{'wrote' if path in changed else 'unchanged'}: /{path}" for path in (FILE, SCRIPT, UNIT, WANTS)]
    lines += [
        "From the next boot on, every bridge is closed, except for ICMP, until docker-fw has started.",
        f"Exempt, because they are not Docker's: {', '.join(sorted(unmanaged)) or 'no bridge'}.",
        "Also closed: published ports that no label opens, what containers with fw.egress open, banned addresses.",
        current,
        "Next: systemctl daemon-reload && systemctl start docker-fw-boot   (changes nothing while docker-fw runs)",
    ]
    return "\n".join(lines)


def removed(paths: Collection[str]) -> str:
    """Return the report of `fwctl boot remove`."""
    if not paths:
        return "there was nothing to remove"
    lines = [f"removed: /{path}" for path in paths]
    lines += [
        "Next: systemctl daemon-reload. The table in the kernel stays: a running docker-fw uses it. If docker-fw does",
        "not run any more, remove the table with `fwctl cleanup`.",
    ]
    return "\n".join(lines)


def _is_root(root: Path) -> None:
    if not (root / "etc").is_dir():
        raise FwError(
            f"{root} is not the host's file system: it has no etc; mount it (-v /:{root}), or give its path: --root"
        )


def write(path: Path, text: str, suffix: str = "new", mode: int = 0o644) -> bool:
    """Write a file atomically, by a temporary file with this suffix; return False if it has this text already.

    Raises OSError. After an error the temporary file is removed: on a full disk it would take the last space.
    """
    data = text.encode()
    same = path.is_file() and not path.is_symlink() and path.stat().st_size == len(data)
    if same and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{suffix}")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
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

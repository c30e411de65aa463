"""The first program of a start: it closes with the boot table, and binds the socket, before anything large is loaded.

dockerd connects to a plugin's socket half a second after it has started the plugin, again every three seconds, and
disables the plugin after the fourth failure (moby plugin/manager_linux.go, pluginPostStart). Then it starts the
containers, and the next boot has no docker-fw at all. Loading gunicorn and the early table takes longer than that on a
slow machine; this module takes a tenth of it. So it must import little: neither settings nor any package of docker-fw.

The boot table is a file beside the state file, kept current while docker-fw runs (`fwctl.host.boot_keeper`). It closes
less than the early table, which gunicorn's master computes from the state file, so dockerd still waits for that one.
Only when dockerd would give up soon, the socket accepts connections before it; gunicorn answers them later.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import stat
import sys
import time
from typing import NoReturn

from plugin.paths import BOOT_FILE, LONGEST_BOOT_FILE, SOCKET, STATE

#: The variables that tell gunicorn's configuration the socket's file descriptor, and that this start made the table.
SOCKET_FD = "DOCKER_FW_SOCKET_FD"
BOOT_TABLE = "DOCKER_FW_BOOT_TABLE"
#: Seconds from the start until the socket accepts connections, if there is a table. dockerd's last two attempts are
#: 6.5 and 9.5 s after it has started the plugin, and the time until this module runs is lost already.
ACCEPT_AFTER = 5.0
#: Seconds that the start waits for the boot table. It is loaded within milliseconds, or within a second if it is long.
LONGEST = 4.0
#: As gunicorn's.
_BACKLOG = 2048
#: linux/prctl.h
_PR_SET_PDEATHSIG = 1
#: nftables.sets.TABLE and FORMER, which take too long to import.
_TABLE, _FORMER = "docker-fw", "fw"
#: Fails if there is a table with the name that docker-fw's had in former versions: it may be one that closes.
_NO_FORMER = f"create table inet {_FORMER}\ndelete table inet {_FORMER}\n"
#: A ban that expires, as a comment of the boot table; the boot unit's script reads the same (`fwctl.host.boot_unit`).
_UNTIL = "#until"
_FAILED, _CREATED, _EXISTED = b"f", b"c", b"e"


def main() -> NoReturn:
    """Close, bind the socket, and become gunicorn. Every error is printed, and the start continues."""
    path = os.environ.get("FW_SOCKET", "").strip() or SOCKET
    if _answers(path):
        sys.exit(f"docker-fw: another docker-fw runs: it answers on {path}")
    sock = _bound(path)
    state = os.environ.get("FW_STATE", "").strip() or STATE
    file = os.path.join(os.path.dirname(state), BOOT_FILE)
    if _close(file, sock) == _CREATED:
        os.environ[BOOT_TABLE] = "created"
    if sock:
        os.set_inheritable(sock.fileno(), True)
        os.environ[SOCKET_FD] = str(sock.fileno())
    gunicorn = os.path.join(os.path.dirname(sys.executable), "gunicorn")
    os.execv(gunicorn, [gunicorn, "-c", "python:plugin.gunicorn_conf"])  # noqa: S606


def _answers(path: str) -> bool:
    """Return True if a process listens on this socket: it must keep it, or Docker would not reach it any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(path)
        except BlockingIOError:  # too many connections wait there
            return True
        except OSError:
            return False
        return True


def _bound(path: str) -> socket.socket | None:
    """Return a socket that is bound and does not accept connections yet; None after an error, which gunicorn reports.

    A socket that a killed docker-fw left is replaced.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    former = os.umask(0o177)  # only root may open the socket
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        sock.bind(path)
    except OSError:
        sock.close()
        return None
    finally:
        os.umask(former)
    return sock


def _close(file: str, sock: socket.socket | None) -> bytes:
    """Load the boot table, in a process that lets the socket accept connections if gunicorn does not in time.

    Return what became of the table, as far as it is known after `LONGEST`.
    """
    accept_at = time.monotonic() + ACCEPT_AFTER
    reading, writing = os.pipe()
    parent = os.getpid()
    if os.fork():
        os.close(writing)
        ready, _, _ = select.select([reading], [], [], LONGEST)
        result = os.read(reading, 1) if ready else b""
        os.close(reading)
        return result or _FAILED
    try:
        os.close(reading)
        _end_with_parent()
        result = load(file)
        with contextlib.suppress(OSError):  # the parent does not wait any more
            os.write(writing, result)
        os.close(writing)
        if sock and result != _FAILED:
            _accept(sock, accept_at, parent, file)
    except Exception as error:  # the start must continue
        _say(f"the boot table: {error}")
    finally:
        os._exit(0)


def load(file: str) -> bytes:
    """Load the boot table unless a table of docker-fw closes; return whether it was created, existed or failed.

    A missing file is no error: docker-fw has never run here. Bans that expire are loaded for the rest of their time,
    and left out if nft refuses them, for example because one is part of another. Where another program's table has
    docker-fw's name, the table gets the name that the early table has there too.
    """
    try:
        data = _read(file)
    except FileNotFoundError:
        return _FAILED
    if len(data) > LONGEST_BOOT_FILE:
        _say(f"{file} is longer than {LONGEST_BOOT_FILE} bytes: it is ignored, and written again soon")
        return _FAILED
    from nftables import Nftables  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415

    nft, text = Nftables(), data.decode()
    whole = text + bans(text, time.time())
    code, _, _ = nft.cmd(_NO_FORMER + whole)
    if not code:
        return _CREATED
    # It fails if a table of that name, or of the former one, exists. nft's message does not say whose table it is, nor
    # whether it has its rules.
    from plugin.nftables import identity  # noqa: PLC0415

    if identity.any_closes():
        return _EXISTED
    name = identity.free_name()
    for each in (whole, text):
        code, _, error = nft.cmd(each.replace(f"inet {_TABLE}", f"inet {name}"))
        if not code:
            return _CREATED
    _say(f"{file} could not be loaded: {' '.join(error.split())[:500]}")
    return _FAILED


def _read(file: str) -> bytes:
    """Return the file, or a byte more than the limit. Raises OSError, also if it is a FIFO, which would block."""
    with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise OSError(f"{file} is not a file")
        return opened.read(LONGEST_BOOT_FILE + 1)


def bans(text: str, now: float) -> str:
    """Return commands that add the bans of the file's comments: `#until UNIX-TIME SET ELEMENT`."""
    found = []
    for line in text.splitlines():
        match line.split(" ", 3):
            case [word, until, name, element] if word == _UNTIL and until.isdecimal():
                if (rest := int(until) - int(now)) > 0:
                    found.append(f"add element inet {_TABLE} {name} {{ {element} timeout {rest}s }}\n")
    return "".join(found)


def _end_with_parent() -> None:
    """End this process with its parent: it has the socket too, and dockerd would wait for an answer in vain."""
    import ctypes  # noqa: PLC0415

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _accept(sock: socket.socket, at: float, parent: int, file: str) -> None:
    """Let the socket accept connections at this time, unless gunicorn did so before, or nothing closes."""
    import plugin.nftables.identity  # noqa: F401, PLC0415 (takes a second on a slow machine, and there is time now)

    while os.getppid() == parent:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return
        if time.monotonic() >= at:
            if _closes(file):
                _say("this machine is slow: Docker is answered later, and finds everything closed until then")
                sock.listen(_BACKLOG)
            return
        time.sleep(0.05)


def _closes(file: str) -> bool:
    """Return True if a table closes, maybe loaded again: another program may have flushed it (nftables.service)."""
    from plugin.nftables import identity  # noqa: PLC0415

    return identity.any_closes() or load(file) != _FAILED


def _say(text: str) -> None:
    print(f"docker-fw: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

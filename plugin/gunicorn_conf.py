"""gunicorn's configuration: one worker with threads on the plugin's socket. `gunicorn -c python:plugin.gunicorn_conf`.

The master puts a closed table in place and binds the socket before the plugin itself is loaded, because dockerd waits
only for the socket, and not for long. When the worker dies, the master starts another on the same socket.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from gunicorn.arbiter import Arbiter

from plugin.daemon.start import BOOT_TABLE, SOCKET_FD
from plugin.kernel import capabilities
from plugin.model import FwError, NewerStateError
from plugin.settings import Settings, read
from plugin.text import readable


def _settings() -> Settings:
    try:
        return read(os.environ)
    except FwError as error:
        sys.exit(f"docker-fw: wrong settings: {readable(str(error))}")


_read = _settings()
_running: list[Any] = []

wsgi_app = "plugin.gunicorn_conf:load()"
# A socket that `daemon.start` has bound; in tests, gunicorn binds it.
bind = f"fd://{os.environ[SOCKET_FD]}" if SOCKET_FD in os.environ else f"unix:{_read.socket}"
umask = 0o177  # only root may open the socket
workers = 1
worker_class = "gthread"
threads = 16
# Docker reuses its connections; one that we close in between costs it a retry after a second.
keepalive = 3600
timeout = 60
graceful_timeout = 8  # Docker kills a plugin after 10 s
worker_tmp_dir = "/dev/shm"  # noqa: S108
control_socket_disable = True
preload_app = False
# One stream: dockerd writes a plugin's stdout down as information and its stderr as errors.
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"()": "plugin.daemon.log_format.OneLine", "fmt": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stdout": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stdout"}},
    # The setting is for docker-fw's own lines: at debug level libraries log every byte.
    "root": {"level": "ERROR" if _read.log_level == "error" else "WARNING", "handlers": ["stdout"]},
    "loggers": {
        "plugin": {"level": _read.log_level.upper()},
        "gunicorn.error": {"level": "WARNING", "handlers": [], "propagate": True},
        "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": True},
    },
}
proc_name = "docker-fw"


def on_starting(server: Any) -> None:
    """Close everything before the socket is bound (hook of gunicorn, in the master)."""
    from plugin.daemon.early_table import close_first  # noqa: PLC0415

    try:
        capabilities.keep()
        close_first(_read, replace=BOOT_TABLE in os.environ)
    except FwError as error:
        _remove_socket()
        sys.exit(f"docker-fw: {error}")


def _remove_socket() -> None:
    """Remove the socket that `daemon.start` has bound: no process will serve it."""
    if SOCKET_FD in os.environ:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_read.socket)


def load() -> Any:
    """Make the plugin in the worker. It has taken over the existing table before the first request is accepted."""
    from plugin.daemon import early_table  # noqa: PLC0415
    from plugin.daemon.plugin import Plugin  # noqa: PLC0415
    from plugin.daemon.refuse_all import RefusingPlugin  # noqa: PLC0415
    from plugin.nftables.identity import ForeignTableError  # noqa: PLC0415

    early_table.give_way()
    plugin: Plugin | RefusingPlugin
    try:
        plugin = Plugin(_read)
    except (NewerStateError, ForeignTableError) as error:
        print(f"docker-fw: {readable(str(error))}", file=sys.stderr, flush=True)
        plugin = RefusingPlugin(_read, str(error))
    except FwError as error:
        print(f"docker-fw: {readable(str(error))}", file=sys.stderr, flush=True)
        # By this status gunicorn's master knows that trying again is of no use, and ends too.
        sys.exit(Arbiter.WORKER_BOOT_ERROR)
    _running.append(plugin)
    return plugin.app()


def post_worker_init(worker: Any) -> None:
    """Start the loops (hook of gunicorn, in the worker)."""
    for plugin in _running:
        plugin.start(lambda: worker.alive)


def worker_exit(server: Any, worker: Any) -> None:
    """End the loops (hook of gunicorn, in the worker)."""
    for plugin in _running:
        plugin.stop()


def on_exit(server: Any) -> None:
    """Let a late early table become active (hook of gunicorn, in the master)."""
    from plugin.daemon.early_table import finish  # noqa: PLC0415

    finish()

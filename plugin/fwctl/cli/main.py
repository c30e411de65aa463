"""`fwctl`: start docker-fw, see what it does and why, change it for a while, take it away. The image's entrypoint."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from plugin import __version__
from plugin.fwctl.cli import change, host, log, query
from plugin.text import readable


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 is well, 1 an error or a no, 2 a wrong use."""
    parser = argparse.ArgumentParser(
        prog="fwctl",
        description="docker-fw: every container behind a default-deny nftables policy. TCP 22, 80, 443 and useful "
        'ICMP are open; the label fw.allow="8080" opens one more port.',
    )
    parser.add_argument("--version", action="version", version=f"docker-fw {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    query.add(commands)
    log.add_parser(commands)
    change.add(commands)
    host.add(commands)
    options = parser.parse_args(arguments)
    # A name of a container, a label: whatever comes, it is shown.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    _log_to_stderr()
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read this has enough; python would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return readable(super().format(record))


def _log_to_stderr() -> None:
    """Warnings of the modules that a command uses; Python by itself would print what others wrote unescaped."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("fwctl: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())

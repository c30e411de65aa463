"""`fwctl`: run docker-fw, see what it does and why, change it for a while, remove it. The image's entrypoint."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from plugin import __version__
from plugin.fwctl.cli import change, host, log, query
from plugin.fwctl.cli.command import OK, print_error
from plugin.model import FwError
from plugin.text import readable


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit status: 0 is success, 1 an error or a "no", 2 a wrong command line."""
    options = _parser().parse_args(arguments)
    # A container's name or a label may hold characters that the terminal's encoding lacks.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    _log_to_stderr()
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except FwError as error:
        print_error(error)
        return int(options.error_status)
    except BrokenPipeError:
        # The reader has closed the pipe (`fwctl export | head`); Python would complain about it when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fwctl",
        description="docker-fw is a firewall for Docker hosts. It blocks inbound traffic to containers, except TCP 22, "
        '80, 443 and useful ICMP. The label fw.allow="8080" opens another port.',
    )
    parser.add_argument("--version", action="version", version=f"docker-fw {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (query, log, change, host):
        module.add(commands)
    return parser


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return readable(super().format(record))


def _log_to_stderr() -> None:
    """Print warnings of the modules that a command uses, with everything that others wrote escaped."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("fwctl: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())

"""`fwctl`: start docker-fw, see what it does and why, change it for a while, take it away. The image's entrypoint."""

from __future__ import annotations

import argparse
import os
import sys

from plugin import __version__
from plugin.daemon import log_format
from plugin.fwctl.cli import change, host, log, query


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
    log_format.to_stderr()
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


if __name__ == "__main__":
    sys.exit(main())

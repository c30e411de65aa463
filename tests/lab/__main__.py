"""Use the lab by hand: ``python3 -m tests.lab shell`` runs a Docker engine and a shell inside it."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from . import DEFAULT, ENGINES, Engine, LabError, Wan, busybox, engine_root, sweep
from .store import say

HINTS = """\
A shell on a host of its own: Docker {version}, root {name}, image "busybox".
  here     docker …, nft list ruleset, ip …      {v4}  {v6}
  outside  nsenter --net={wan} COMMAND   {wan4}  {wan6}, and {far4}  {far6}
  another  nsenter -t {pid} -a                  (a second shell in here, from the machine)
  files    {share} on the machine is /lab here; dockerd.log is there
Everything is removed when you leave.
"""


def shell(version: str, args: Sequence[str], command: Sequence[str]) -> int:
    """Run a shell (or a command) on a host with a running engine; return its exit status."""
    with Engine(version, args) as engine:
        host = engine.host
        if not command:
            say(
                HINTS.format(
                    version=version,
                    name=host.name,
                    v4=host.v4,
                    v6=host.v6,
                    wan=host.wan.path,
                    wan4=Wan.V4,
                    wan6=Wan.V6,
                    far4=Wan.FAR_V4,
                    far6=Wan.FAR_V6,
                    pid=host.init_pid,
                    share=host.share,
                )
            )
        env = {"TERM": os.environ.get("TERM", "dumb"), "PS1": f"docker-{version} \\w# "}
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the shell handles Ctrl-C itself
        try:
            return subprocess.call(
                host.command(command or ["bash", "--norc"], env, cwd="/root"),
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> int:
    """Parse the command line and run the command."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab", description=__doc__)
    todo = parser.add_subparsers(dest="todo", required=True, metavar="COMMAND")
    it = todo.add_parser(
        "shell",
        help="a shell on a host with a running engine",
        description="Start an engine on a host of its own and open a shell there.",
    )
    it.add_argument("--engine", default=DEFAULT, choices=[*ENGINES], help="which one (default: %(default)s)")
    it.add_argument(
        "--dockerd",
        action="append",
        default=[],
        metavar="ARG",
        help="an argument for dockerd, such as --dockerd=--ip6tables; may be repeated",
    )
    it.add_argument("command", nargs="*", help="run this instead of a shell (put -- before it)")
    it = todo.add_parser(
        "roots",
        help="make what is not cached yet: the engines' roots, busybox",
        description="Make the engines' root file systems, about 45 s each, once.",
    )
    it.add_argument("engine", nargs="*", metavar="ENGINE", help=f"some of {', '.join(ENGINES)} (default: all)")
    todo.add_parser(
        "sweep",
        help="remove what killed labs left",
        description="Remove namespaces, processes and files of labs whose owner is dead.",
    )
    args = parser.parse_args()
    try:
        if args.todo == "shell":
            return shell(args.engine, args.dockerd, args.command)
        if args.todo == "roots":
            busybox()
            for version in args.engine or ENGINES:
                print(engine_root(version))
        else:
            print("\n".join(sweep()) or "nothing was left")
    except LabError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

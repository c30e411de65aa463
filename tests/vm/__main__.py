"""Make the machines' images, or run a command on one: ``python3 -m tests.vm images``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.lab import LabError
from tests.lab.store import say
from tests.vm.disk import disk
from tests.vm.machine import Machine
from tests.vm.states import ready
from tests.vm.systems import DEFAULT, SYSTEMS


def images(systems: Sequence[str]) -> None:
    """Make the states that are not in the cache, with a line for each."""
    from tests.vm.product import installed, running  # they build docker-fw's image

    for number, system in enumerate(systems, 1):
        say(f"{number} of {len(systems)}: {system}")
        print(ready(system).directory)
        print(installed(system).directory, flush=True)
    if DEFAULT in systems:
        print(running().directory)


def run(system: str, with_fw: bool, command: Sequence[str]) -> int:
    """Run a command on a machine of its own; print its output and return its status."""
    from tests.vm.product import installed

    with Machine(state=installed(system) if with_fw else ready(system)) as vm:
        done = vm.run(command, check=False, timeout=600)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode


def main() -> int:
    """Parse the command line and run the command."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.vm", description=__doc__)
    todo = parser.add_subparsers(dest="todo", required=True, metavar="COMMAND")
    it = todo.add_parser("images", help="make what is not cached yet: disks and states, some minutes for each system")
    it.add_argument("system", nargs="*", metavar="SYSTEM", help=f"some of {', '.join(SYSTEMS)} (default: all)")
    todo.add_parser("versions", help="the versions of kernel, Docker and nftables of each system")
    it = todo.add_parser("run", help="run a command on a machine that was just restored")
    it.add_argument("--system", default=DEFAULT, choices=[*SYSTEMS], help="which one (default: %(default)s)")
    it.add_argument("--installed", action="store_true", help="with docker-fw as its managed plugin")
    it.add_argument("command", nargs="+", help="the command (put -- before it)")
    args = parser.parse_args()
    try:
        if args.todo == "run":
            return run(args.system, args.installed, args.command)
        if args.todo == "images":
            wrong = [name for name in args.system if name not in SYSTEMS]
            if wrong:
                parser.error(f"no system {', '.join(wrong)}; there are {', '.join(SYSTEMS)}")
            images(args.system or [*SYSTEMS])
        else:
            for system in SYSTEMS:
                print(system, *(f"{name} {version}" for name, version in disk(system).versions().items()))
    except LabError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

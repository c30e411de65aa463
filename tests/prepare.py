"""Make what tests of engines need and the lab's cache does not have yet: root file systems, engines with docker-fw.

On a fresh machine that takes minutes of one processor. The scheduler of `tests/conftest.py` starts this, and has tests
run meanwhile that need none of it. Prints a line on stdout as soon as those of engines can begin.
"""

from __future__ import annotations

import contextlib
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor

from tests.lab.images import busybox, debian_base
from tests.lab.roots import DEFAULT, engine_root
from tests.lab.store import LabError, say
from tests.product import FIREWALLS, NEWEST, VERSIONS, with_plugin


def prepare() -> None:
    """Make all of it, two things at a time; LabError if one cannot be made."""
    busybox()
    with ThreadPoolExecutor(2) as pool:
        # The image is built by the default engine upon the base image, so these two come first.
        needed: list[Future[object]] = [pool.submit(engine_root, DEFAULT)]
        pool.submit(debian_base)
        # The longest groups of tests need these two. Those of other engines can wait for theirs, if they are early.
        needed += [pool.submit(engine_root, NEWEST), pool.submit(with_plugin, NEWEST)]
        others = [version for version in VERSIONS if version != NEWEST]
        rest: list[Future[object]] = [pool.submit(with_plugin, version) for version in others]
        rest += [pool.submit(engine_root, NEWEST, FIREWALLS)]
        for each in needed:
            each.result(3600)
        print("ready", flush=True)
        for each in rest:
            each.result(3600)


def main() -> int:
    with contextlib.suppress(OSError):  # only root may; the tests of engines need it anyway
        os.nice(-5)  # many tests wait for this, and nothing waits for those that run meanwhile
    try:
        prepare()
    except LabError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

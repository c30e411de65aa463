"""The image of the tortured containers: busybox, and perl from this machine, for busybox has no server for UDP."""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path

from tests.lab.images import Rootfs, busybox
from tests.lab.store import call

IMAGE = "tortured:latest"
#: TCP by busybox's httpd on each port, UDP by perl without any module: what came is sent back.
_ECHO = (
    "fork; socket(S, 10, 2, 17) or die $!;"
    ' bind(S, pack("S n L a16 L", 10, $$ == $first ? 8080 : 9090, 0, "\\0" x 16, 0)) or die $!;'
    " while (1) { $from = recv(S, $data, 512, 0); send(S, $data, 0, $from) if defined $from }"
)
SERVERS = ("sh", "-c", f"httpd -p 9090; httpd -p 8080; exec perl -e '$first = $$; {_ECHO}'")


def tortured(directory: Path) -> Rootfs:
    """Return the image; its file is made in `directory`."""
    perl = Path(shutil.which("perl") or "/usr/bin/perl")
    libraries = re.findall(r"(/\S+) \(0x", call(["ldd", str(perl)]))
    tar = directory / "tortured.tar"
    shutil.copy(busybox().tar, tar)
    with tarfile.open(tar, "a") as image:
        for library in libraries:
            image.add(Path(library).resolve(), library)
        image.add(perl.resolve(), "bin/perl")
    return Rootfs(tar, IMAGE)

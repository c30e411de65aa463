"""The hardware of the machines: QEMU's command line, apart from files, links and sockets."""

from __future__ import annotations

import functools
import shutil

from tests.lab.store import LabError, call
from tests.vm.disk import Disk

QEMU = "qemu-system-x86_64"
#: Megabytes of memory, and processors, of each machine.
MEMORY, PROCESSORS = 1024, 2
#: `net.ifnames=0`: the link is eth0. The rest saves emulated time, and changes nothing that tests look at.
_COMMAND_LINE = (
    "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet loglevel=4 no5lvl mitigations=off apparmor=0 "
    "random.trust_cpu=on nowatchdog rcupdate.rcu_cpu_stall_suppress=1 systemd.show_status=false lab.number={number}"
)


def hardware(disk: Disk, number: int) -> list[str]:
    """Return QEMU's command line for machine `number`, without the files and links of this machine.

    Pure emulation: a machine is the same with and without the processor's help, which is not everywhere.
    """
    return [
        *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc"),
        *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", str(PROCESSORS), "-m", str(MEMORY)),
        *("-rtc", "base=utc,clock=host", "-device", "virtio-rng-pci"),
        *("-kernel", str(disk.kernel), "-initrd", str(disk.initrd), "-append", _COMMAND_LINE.format(number=number)),
        *("-device", "virtio-blk-pci,drive=disk", "-device", "virtio-blk-pci,drive=exchange"),
        *("-device", f"virtio-net-pci,netdev=net,mac=52:54:00:00:00:{number:02x},romfile="),
        *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *("-serial", "chardev:console"),
    ]


@functools.cache
def version() -> str:
    """Return QEMU's version; memory that one version saved is only for this version. LabError without QEMU."""
    if shutil.which(QEMU) is None:
        raise LabError(f"{QEMU} is missing: apt install qemu-system-x86 qemu-utils e2fsprogs")
    return call([QEMU, "--version"]).splitlines()[0]

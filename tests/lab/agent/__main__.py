"""Run the agent: one process that probes from, and serves in, any network namespace.

Requests and replies are JSON lines on stdin and stdout; it ends when stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from typing import Any

from .hammer import Hammer
from .namespaces import inside, leave_for_home
from .probes import Answer, probe
from .servers import Servers


class Agent:
    """The agent's requests: each public method is one."""

    def __init__(self) -> None:
        self.things: dict[int, Servers | Hammer] = {}

    async def probe(self, netns: str, probes: list[list[Any]], **more: Any) -> list[Answer]:
        """Probe all targets at once."""
        return list(await asyncio.gather(*(probe(netns, *each, **more) for each in probes)))

    async def serve(self, ident: int, **more: Any) -> None:
        """Start servers under the number `ident`."""
        self.things[ident] = Servers(**more)

    async def advertise(self, netns: str, link: str, lifetime: int) -> None:
        """Send a router advertisement out of a link."""
        with inside(netns), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
            index = socket.if_nametoindex(link)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            # type 134, code 0, checksum (the kernel's work), hop limit 64, no flags, lifetime, no timers
            sock.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, lifetime, 0, 0), ("ff02::1", 0, 0, index))

    async def seen(self, ident: int) -> list[Answer]:
        """Return the data that arrived at the servers."""
        servers = self.things[ident]
        assert isinstance(servers, Servers)
        return servers.seen

    async def hammer(self, ident: int, **more: Any) -> None:
        """Start a hammer under the number `ident`."""
        self.things[ident] = Hammer(**more)

    async def stop(self, ident: int) -> list[list[Any]]:
        """Stop the hammer or servers with that number."""
        thing = self.things.pop(ident)
        if isinstance(thing, Hammer):
            return await thing.stop()
        thing.close()
        return []


async def handle(agent: Agent, line: bytes) -> None:
    """Carry out one request."""
    request = json.loads(line)
    number = request.pop("request")
    try:
        reply: Answer = {"result": await getattr(agent, request.pop("do"))(**request)}
    except Exception as error:
        reply = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps({"request": number, **reply}) + "\n")
    sys.stdout.flush()


async def main() -> None:
    """Serve requests until stdin ends."""
    agent, tasks = Agent(), set()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        task = asyncio.create_task(handle(agent, line))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    os._exit(0)


if __name__ == "__main__":
    leave_for_home()
    asyncio.run(main())

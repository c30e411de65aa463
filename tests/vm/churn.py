"""Change all that docker-fw saves, until it is ended: `churn.py DOCKER_SOCKET FW_SOCKET DRIVER CONTAINER COUNT`.

A machine runs it, with Debian's python3-minimal, which has no json. COUNT is a file: how many changes are done, and the
HTTP status of the last.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from typing import Any


def ask(path: str, method: str, url: str, body: Any = None) -> str:
    """Send a request; return the answer as text. Errors of the server are answers too."""
    # Texts have no quotes here.
    sent = b"" if body is None else repr(body).replace("'", '"').replace("True", "true").encode()
    head = (
        f"{method} {url} HTTP/1.0\r\nHost: lab\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    )
    answer = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(head.encode() + sent)
        while received := connection.recv(65536):
            answer += received
    return answer.decode()


def changes(number: int, docker: str, fw: str, driver: str, container: str) -> Iterator[str]:
    """Create a network with a container, override, ban, and remove all again; yield after each change."""
    subnets = [{"Subnet": f"10.89.{number % 250}.0/24"}, {"Subnet": f"2001:db8:89:{number % 250}::/64"}]
    net = {"Name": f"churn{number}", "Driver": driver, "EnableIPv6": True, "IPAM": {"Config": subnets}}
    yield ask(docker, "POST", "/networks/create", net)
    run = {"Image": "busybox", "Cmd": ["sleep", "inf"], "Labels": {"fw.allow": f"{1000 + number}"}}
    yield ask(
        docker, "POST", f"/containers/create?name=churn{number}", {**run, "HostConfig": {"NetworkMode": net["Name"]}}
    )
    yield ask(docker, "POST", f"/containers/churn{number}/start")
    for port in range(7000, 7010):
        yield ask(fw, "POST", "/allow", {"container": container, "rules": [f"{port}"]})
        yield ask(fw, "POST", "/ban", {"bans": [{"address": f"203.0.113.{port % 200}", "seconds": 900}]})
    yield ask(fw, "POST", "/revert", {"container": container})
    yield ask(docker, "DELETE", f"/containers/churn{number}?force=1")
    yield ask(docker, "DELETE", f"/networks/churn{number}")


def main() -> None:
    """Make one change after the other until the machine stops."""
    docker, fw, driver, container, count = sys.argv[1:6]
    done = 0
    for number in range(1, 1_000_000):
        for answer in changes(number, docker, fw, driver, container):
            done += 1
            with open(count, "w") as out:
                out.write(f"{done} {answer.partition(' ')[2][:3]}\n")


if __name__ == "__main__":
    main()

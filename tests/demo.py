"""Run `make demo`: an isolated engine, the image built, the plugin installed, a compose stack up, probes from outside.

It prints which address answers on which port, each line right or wrong, and exits with 0 only if all are right.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import dataclass

from tests.lab import ENGINES, Engine
from tests.lab.images import Rootfs, rootfs_image
from tests.product import PLUGIN, ROOT, Fw, with_plugin
from tests.waiting import until

#: The ports to try on each address of each service, and whether they should answer.
SERVICES = {
    "web": {"tcp": {80: True, 443: None, 2019: False}},
    "app": {"tcp": {8080: False, 80: None, 5432: False}},
    "proxy": {"tcp": {80: True, 443: True, 2019: False}},
    "metrics": {"tcp": {9100: True, 9101: False}},
}
WORDS = {"open": "answers", "refused": "refused", "silent": "silence", "unsent": "unreachable"}


@dataclass(frozen=True)
class Line:
    who: str
    where: str
    verdict: str
    right: bool


def stand_in() -> Rootfs:
    """Build a stand-in for caddy:2 from Debian's package: the lab reaches no registry."""
    return rootfs_image("caddy:2", ("caddy", "ca-certificates"), changes=("WORKDIR /srv", 'CMD ["caddy", "version"]'))


def say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


def compose(fw: Fw, stack: str, *words: str) -> None:
    fw.engine.docker("compose", "-f", f"/lab/{stack}", *words, timeout=120)


def up(fw: Fw, stack: str) -> None:
    """Start a stack of compose-examples, as a user does, with its images there."""
    fw.engine.load(stand_in())
    shutil.copy(ROOT / "compose-examples" / stack, fw.host.share)
    compose(fw, stack, "up", "-d")


def down(fw: Fw, stack: str) -> None:
    compose(fw, stack, "down", "-t", "0")


#: compose-examples/unchanged.yml: each service's published port, and whether an outsider is answered there.
UNCHANGED = {"web": (18080, True), "db": (15432, False), "metrics": (19100, True)}


def unchanged(fw: Fw) -> list[Line]:
    """Try a stack without docker-fw labels on a Docker network: from outside, and from the host itself."""
    for service, (port, right) in UNCHANGED.items():
        until(lambda p=port: fw.host.probe.tcp("127.0.0.1", p) == "open", f"{service} listens")
        if right:
            until(lambda p=port: fw.wan.probe.tcp(fw.host.v4, p) == "open", f"{service} is open")
    wanted = {
        (f"unchanged {service}, -p {port}", ("tcp", host, port)): right
        for host in (fw.host.v6, fw.host.v4)
        for service, (port, right) in UNCHANGED.items()
    }
    seen = fw.wan.probe([target for _, target in wanted], timeout=1.0)
    lines = [
        Line(who, f"{target[1]} {target[2]}/tcp", seen[target], (seen[target] == "open") == right)
        for (who, target), right in wanted.items()
    ]
    own = fw.host.probe.tcp(fw.host.v4, UNCHANGED["db"][0])
    return [*lines, Line("unchanged db, from the host itself", f"{fw.host.v4} 15432/tcp", own, own == "open")]


def ready(fw: Fw) -> None:
    """Wait until the servers of compose-examples/shop.yml listen."""
    for service, port in (("web", 80), ("app", 8080), ("proxy", 80), ("proxy", 443), ("metrics", 9100)):
        address = fw.engine.address(f"shop-{service}-1", "shop_front")[1]
        until(lambda a=address, p=port: fw.host.probe.tcp(a, p) == "open", f"{service} listens on {port}")


def probes(fw: Fw) -> list[Line]:
    """Return all attempts of an outsider, from another host."""
    wan, wanted = fw.wan, {}
    for service, tried in SERVICES.items():
        for address in reversed(fw.engine.address(f"shop-{service}-1", "shop_front")):
            wanted[service, ("ping", address)] = True
            for port, right in tried["tcp"].items():
                if right is not None:
                    wanted[service, ("tcp", address, port)] = right
    for host in (fw.host.v6, fw.host.v4):
        wanted |= {("host, -p 80", ("tcp", host, 80)): True, ("host, -p 443", ("tcp", host, 443)): True}
        wanted |= {("host, app's port", ("tcp", host, 8080)): False}
    seen = wan.probe([target for _, target in wanted], timeout=1.0)
    lines = []
    for (who, target), right in wanted.items():
        verdict = seen[target]
        where = f"{target[1]} ping" if target[0] == "ping" else f"{target[1]} {target[2]}/{target[0]}"
        lines.append(Line(who, where, verdict, (verdict == "open") == right and (right or verdict != "unsent")))
    for host in (fw.host.v6, fw.host.v4):
        url = f"http://[{host}]/" if ":" in host else f"http://{host}/"
        code = f"import urllib.request as u; print(u.urlopen('{url}', timeout=5).read().decode())"
        spec = wan.run([sys.executable, "-c", code], check=False).stdout.strip()
        lines.append(Line("the app through the proxy", f"GET {url}", spec or "no answer", spec == "the insecure app"))
    return lines


def show(lines: list[Line]) -> None:
    width = max(len(line.where) for line in lines)
    for line in lines:
        mark = "right" if line.right else "WRONG"
        print(f"{mark}  {line.who:<34} {line.where:<{width}}  {WORDS.get(line.verdict, line.verdict)}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--engine", default="28.5.2", choices=ENGINES, help="which Docker (default: %(default)s)")
    options = parser.parse_args()
    start = time.monotonic()
    say(f"starting Docker {options.engine} in namespaces of its own (nothing of this machine's network is touched)")
    say("building the image from the Dockerfile and installing the managed plugin (minutes the first time)")
    with Engine(options.engine, data=with_plugin(options.engine)) as engine:
        fw = Fw.install(engine)
        say(f"{PLUGIN} is enabled; bringing up compose-examples/unchanged.yml, on a Docker network")
        up(fw, "unchanged.yml")
        say("and compose-examples/shop.yml, on a docker-fw network; probing from another host")
        up(fw, "shop.yml")
        ready(fw)
        lines = [*unchanged(fw), *probes(fw)]
        show(lines)
        print()
        print(fw.fwctl("status"), end="")
        for stack in ("shop.yml", "unchanged.yml"):
            down(fw, stack)
    wrong = [line for line in lines if not line.right]
    print(f"\n{len(lines) - len(wrong)} of {len(lines)} right, in {time.monotonic() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

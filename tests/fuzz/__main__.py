"""Run `make fuzz`: atheris (libFuzzer) on each parser for some seconds. It prints each failure with the bytes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import TARGETS
from tests.recorded import CREATE_ENDPOINT, CREATE_NETWORK

#: The initial corpus, for all parsers.
SEEDS = [
    b"8080, 53/udp, 9000-9100, 5432 from 2001:db8:5::/48 service:api",
    b"22 5/minute burst 10",
    b"allow=80\ndeny=22",
    b"1h30m",
    b"203.0.113.0/24",
    json.dumps(CREATE_NETWORK).encode(),
    json.dumps(CREATE_ENDPOINT).encode(),
    b'{"Id": "a", "Names": ["/web"], "Labels": {"fw.allow": "80"}, "NetworkSettings": {"Networks": {"net": '
    b'{"EndpointID": "e", "NetworkID": "n", "IPAddress": "10.0.0.2"}}}}',
    b'{"Driver": "bridge", "Id": "a", "Name": "n", "IPAM": {"Config": [{"Subnet": "10.0.0.0/24"}]}}',
    b'{"version": 2, "boot": "b", "switched": [2], "networks": {}, "endpoints": {}, "bans": {"10.0.0.1/32": 0}}',
    bytes.fromhex("4500002800010000400600000a0000020a00000304d20050000000000000000050020000"),
    b"services:\n  web:\n    image: x\n    ports: ['80:80']\n    labels: {fw.allow: '8080'}\n",
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each parser (default: 60)")
    parser.add_argument("parsers", nargs="*", metavar="PARSER", help=f"all, or some of {', '.join(TARGETS)}")
    options = parser.parse_args()
    failed = []
    for name in options.parsers or TARGETS:
        with tempfile.TemporaryDirectory(prefix="docker-fw-fuzz-") as corpus:
            for number, seed in enumerate(SEEDS):
                (Path(corpus) / str(number)).write_bytes(seed)
            bounds = [f"-max_total_time={options.seconds}", "-timeout=5", "-max_len=8192"]
            arguments = ["-print_final_stats=1", f"-artifact_prefix={corpus}/"]
            command = [sys.executable, "-m", "tests.fuzz.one", name, *bounds, *arguments, corpus]
            limit = 2 * options.seconds + 120
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=limit)
        runs = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        print(f"{name}: {runs[0] if runs else '?'} inputs, {'well' if done.returncode == 0 else 'FAILED'}", flush=True)
        if done.returncode:
            print(done.stdout[-4000:] + done.stderr[-4000:], flush=True)
            failed.append(name)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())

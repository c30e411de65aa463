"""Run `docker build` without a registry, on this machine's network and without changing it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .capsule import Capsule
from .daemon import Daemon
from .images import debian_base
from .roots import engine_root
from .store import LabError, cache, cached, digest, keep_newest, locked, say

#: dockerd then makes no link, sets no sysctl and writes no rule, so it can live in the root namespace
_HARMLESS = (
    "--bridge=none",
    "--iptables=false",
    "--ip6tables=false",
    "--ip-forward=false",
    "--ip-masq=false",
    "--userland-proxy=false",
)
_KEPT = 4  # built images of one name that stay in the cache


def build_image(context: Path, tag: str, dockerfile: str = "Dockerfile") -> Path:
    """Build the image of a Dockerfile; returns a tar for `Daemon.load`, from the cache if nothing changed.

    The Dockerfile and the files that its COPY and ADD lines name count as changes; no others are
    given to Docker. The base image must be one that `debian_base` can replace.
    The first build takes minutes; later ones use Docker's layer cache. LabError with the build's
    output if it fails.
    """
    sources = sorted(_sources(context, dockerfile))
    made = cached(
        "built",
        image_path(context, tag, dockerfile).name,
        f"the image {tag} (minutes the first time)",
        lambda path: _build(context, sources, dockerfile, tag, path),
    )
    keep_newest(made, f"{_stem(tag)}-????????????.tar", _KEPT)
    return made


def image_path(context: Path, tag: str, dockerfile: str = "Dockerfile") -> Path:
    """Return the path that `build_image` returns, without building the image."""
    sources = sorted(_sources(context, dockerfile))
    contents = [(str(path.relative_to(context)), path.stat().st_mode, path.read_bytes()) for path in sources]
    base = debian_base(_base(context / dockerfile))
    return cache() / "built" / f"{_stem(tag)}-{digest(tag, dockerfile, contents, base.tar.name)}.tar"


def _stem(tag: str) -> str:
    return tag.replace("/", "-").replace(":", "-")


def _build(context: Path, sources: list[Path], dockerfile: str, tag: str, target: Path) -> None:
    data = cache() / "builder"
    data.mkdir(exist_ok=True)
    base = debian_base(_base(context / dockerfile))
    with locked("builder"), Capsule(engine_root(), kind="b", binds={"/var/lib/docker": data}) as capsule:
        for name in ("/etc/resolv.conf", "/etc/hosts"):
            capsule.write(name, Path(name).read_text())
        capsule.boot()
        daemon = Daemon(capsule, _HARMLESS, with_busybox=False)
        daemon.start()
        mark = f"lab-base:{base.tar.stem.rpartition('-')[2]}"
        if daemon.try_docker("image", "inspect", mark).returncode:
            say(f"  importing {base.name}…")
            daemon.load(base)
            daemon.docker("tag", base.name, mark)
        daemon.docker("tag", mark, base.name)
        with tempfile.TemporaryDirectory(dir=capsule.share) as copy:
            for path in sources:
                there = Path(copy) / path.relative_to(context)
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, there)
            inside = f"/lab/{Path(copy).name}"
            proxies = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
            say("  docker build…")
            arguments = [f"--build-arg={key}" for key in proxies]
            argv = [
                "docker",
                "build",
                "--network=host",
                "--force-rm",
                *arguments,
                f"--file={inside}/{dockerfile}",
                f"--tag={tag}",
                inside,
            ]
            done = capsule.run(argv, check=False, timeout=1800, env={"DOCKER_BUILDKIT": "0", **proxies})
        if done.returncode:
            raise LabError(f"docker build of {tag} failed:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
        daemon.docker("save", "--output", "/lab/saved.tar", tag, timeout=600)
        shutil.move(capsule.share / "saved.tar", target)
        daemon.docker("image", "prune", "--force")
        daemon.stop()


def _lines(dockerfile: Path) -> Iterator[list[str]]:
    """Return the Dockerfile's instructions, as words."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, rest = line.strip().partition(" ")
        if name.upper() in ("COPY", "ADD", "FROM"):
            flags = [word for word in rest.split() if word.startswith("--")]
            plain = rest.strip()
            for flag in flags:
                plain = plain.replace(flag, "", 1).strip()
            words = json.loads(plain) if plain.startswith("[") else shlex.split(plain)
            yield [name.upper(), *flags, *words]


def _base(dockerfile: Path) -> str:
    """Return the image that the (last) FROM line names."""
    stages: set[str] = set()
    found = ""
    for words in _lines(dockerfile):
        if words[0] == "FROM":
            names = [word for word in words[1:] if not word.startswith("--")]
            found = found if names[0] in stages else names[0]
            stages.update(names[2:3])
    if not found.startswith("debian:"):
        raise LabError(f"{dockerfile}: the lab has no stand-in for the base image {found or '(none)'}")
    return found


def _sources(context: Path, dockerfile: str) -> set[Path]:
    """Return the Dockerfile, and all files that it copies from the context."""
    found = {context / dockerfile}
    if (context / ".dockerignore").exists():
        found.add(context / ".dockerignore")
    for words in _lines(context / dockerfile):
        if words[0] == "FROM" or any(word.startswith("--from") for word in words):
            continue
        for pattern in [word for word in words[1:] if not word.startswith("--")][:-1]:
            matches = [context] if pattern in (".", "./", "/") else list(context.glob(pattern.strip("/")))
            if not matches:
                raise LabError(f"{context / dockerfile}: {pattern} matches nothing")
            for match in matches:
                files = (path for path in [match, *match.rglob("*")] if path.is_file())
                found.update(path for path in files if not _ignored(path.relative_to(context)))
    return found


def _ignored(path: Path) -> bool:
    return path.suffix == ".pyc" or not {".git", "__pycache__"}.isdisjoint(path.parts)

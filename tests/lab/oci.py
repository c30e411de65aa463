"""Make images of several variants (platforms), as an OCI archive that `docker load` takes; no registry, no buildx."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .images import busybox

_CONFIG, _LAYER, _MANIFEST, _INDEX = (
    f"application/vnd.oci.image.{what}"
    for what in ("config.v1+json", "layer.v1.tar+gzip", "manifest.v1+json", "index.v1+json")
)


@dataclass(frozen=True)
class Variant:
    """One image of an index: its platform, such as ``linux/386``, and the labels of its config.

    Each has the same busybox of this machine, whatever its platform is.
    """

    platform: str
    labels: Mapping[str, str] = field(default_factory=dict)


def oci_archive(target: Path, name: str, variants: Sequence[Variant]) -> Path:
    """Write an archive at `target` of an image called `name`: an index of the variants, or the one alone."""
    blobs: dict[str, bytes] = {}
    layer = busybox().tar.read_bytes()
    packed = _put(blobs, _LAYER, gzip.compress(layer, 1, mtime=0))
    manifests = [_manifest(blobs, each, packed, layer) for each in variants]
    top = manifests[0] if len(manifests) == 1 else _put(blobs, _INDEX, _json(_INDEX, manifests=manifests))
    names = {"io.containerd.image.name": f"docker.io/library/{name}", "org.opencontainers.image.ref.name": "latest"}
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": _json(_INDEX, manifests=[{**top, "annotations": names}]),
        **{f"blobs/sha256/{digest}": blob for digest, blob in blobs.items()},
    }
    with tarfile.open(target, "w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return target


def _manifest(blobs: dict[str, bytes], variant: Variant, packed: dict[str, Any], layer: bytes) -> dict[str, Any]:
    system, architecture, *more = variant.platform.split("/")
    platform = {"os": system, "architecture": architecture, **({"variant": more[0]} if more else {})}
    config = {
        **platform,
        "config": {"Cmd": ["sh"], "Labels": dict(variant.labels)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    described = _put(blobs, _CONFIG, json.dumps(config).encode())
    text = _json(_MANIFEST, config=described, layers=[packed])
    return {**_put(blobs, _MANIFEST, text), "platform": platform}


def _json(kind: str, **more: object) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": kind, **more}).encode()


def _put(blobs: dict[str, bytes], kind: str, blob: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(blob).hexdigest()
    blobs[digest] = blob
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(blob)}

"""The labels of a container's image: those of the variant that the container was created from.

An image must not open its own ports, and Docker merges its labels into the container's. In the containerd image store
(the default since Docker 29) one image ID names an index of variants, one for each platform, each with its own labels.
An inspection shows the variant that Docker prefers. So an answer counts only if it names the same manifest as the
container does. Otherwise UnknownLabels is raised, and every label of the container may be the image's.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import docker
from docker.errors import APIError, NotFound
from requests.exceptions import RequestException

from plugin.docker import container_labels, request
from plugin.docker.container_labels import ContainerLabels

#: The first API version of a Docker that may use the containerd image store.
_API_STORE = (1, 43)
#: The first API version that reports a container's manifest and images' descriptors.
_API_MANIFEST = (1, 48)
#: The first API version that can inspect the variant for a platform.
_API_PLATFORM = request.NEWEST
#: Maximum number of variants whose labels are cached; labels of more characters than `_LARGE` are not cached.
_CACHED, _LARGE = 1000, 1 << 16
#: Maximum characters of a platform as the API's parameter; Docker's are below 100.
_MAX_PLATFORM = 1024
#: Seconds for which an image that Docker did not show in time is not requested again, at first and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 3600.0
_TRUST = "or set FW_IMAGE_LABELS=trust if you trust every image on this host"


class UnknownLabels(Exception):
    """The image's share of the labels is unknown. The text has the reason, and what to do."""


class LateError(Exception):
    """Docker did not show an image, or not in time. An image can cause that, so it does not mean that Docker hangs."""


class Images:
    """Requests images' labels from Docker, once for each variant, because a variant never changes. Thread-safe.

    `trust`: labels that come from an image count like any others.
    """

    def __init__(self, *, trust: bool) -> None:
        self._trust = trust
        self._known: dict[Variant, Mapping[str, str]] = {}
        #: By late variant, the time until which it is not requested again, and the length of that pause.
        self._late: dict[Variant, tuple[float, float]] = {}
        #: For the two below: whether Docker uses containerd's store, None if unknown, and how often that was forgotten.
        self._lock = threading.Lock()
        self._containerd: bool | None = None
        self._forgotten = 0

    def forget_store(self) -> None:
        """Forget which image store Docker uses: another daemon may answer from now on."""
        with self._lock:
            self._containerd = None
            self._forgotten += 1

    def read(self, client: docker.APIClient, listed: Mapping[str, Any], *, hook: bool = False) -> ContainerLabels:
        """Return the labels of a container as `GET /containers/json` lists it. Raises APIError if Docker fails (5xx).

        `hook`: with a short time-out, which proves nothing about the image. Raises LateError instead, also if Docker
        fails.
        """
        if self._trust or not container_labels.needs_image(listed):
            return container_labels.read(listed, None)
        try:
            return container_labels.read(listed, self._labels(client, listed))
        except LateError as error:
            if hook:
                raise
            self._pause(variant(listed))
            return container_labels.read(listed, None, unknown=str(error))
        except APIError as error:
            if hook:
                raise LateError(f"Docker does not report the image ({error.explanation})") from error
            raise
        except UnknownLabels as error:
            return container_labels.read(listed, None, unknown=str(error))

    def _pause(self, late: Variant) -> None:
        now, (until, pause) = time.monotonic(), self._late.get(late, (0.0, _FIRST_PAUSE / 2))
        if now >= until:
            if len(self._late) >= _CACHED:
                self._late.clear()
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._late[late] = (now + pause, pause)

    def _labels(self, client: docker.APIClient, listed: Mapping[str, Any]) -> Mapping[str, str]:
        wanted = variant(listed)
        if wanted not in self._known:
            if time.monotonic() < self._late.get(wanted, (0.0, 0.0))[0]:
                raise LateError("Docker did not report the image in time; docker-fw asks again later")
            try:
                labels = self._inspect(client, wanted)
            except NotFound as error:
                raise UnknownLabels(
                    f"the image does not exist any more ({error.explanation}); pull the image again"
                ) from error
            except APIError as error:
                if not error.is_client_error():
                    raise
                # A refusal is about this image, which may cause it: it must not end the look-up of other containers.
                raise UnknownLabels(f"Docker does not report the image ({error.explanation})") from error
            except (RequestException, request.TooLongError) as error:
                if not request.late(error):
                    raise
                raise LateError("Docker did not report the image in time; docker-fw asks again later") from error
            self._late.pop(wanted, None)
            if sum(len(key) + len(str(value)) for key, value in labels.items()) > _LARGE:
                return labels
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[wanted] = labels
        return self._known[wanted]

    def _inspect(self, client: docker.APIClient, wanted: Variant) -> Mapping[str, str]:
        version = tuple(map(int, str(client.api_version).split(".")))
        if _API_STORE <= version < _API_MANIFEST and self._in_containerd(client):
            raise UnknownLabels(
                "this Docker keeps its images in containerd's store and does not report which variant of its image a "
                f"container was created from; upgrade Docker to 28.1 or newer, {_TRUST}"
            )
        query = {"platform": wanted.platform} if wanted.platform and version >= _API_PLATFORM else {}
        return image_labels(wanted, request.one(client, "/images/{0}/json", wanted.image, **query))

    def _in_containerd(self, client: docker.APIClient) -> bool:
        with self._lock:
            known, forgotten = self._containerd, self._forgotten
        if known is not None:
            return known
        try:
            found = in_containerd(client.info())
        except APIError as error:
            if not error.is_client_error():
                raise
            why = f"Docker does not report where it stores its images ({error.explanation})"
            raise UnknownLabels(f"{why}; let docker-fw ask GET /info, {_TRUST}") from error
        with self._lock:
            if forgotten == self._forgotten:  # otherwise this may be the former daemon's answer
                self._containerd = found
        return found


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant of an image.

    `manifest`: the digest of the manifest that the container was created from; "" in the store of graph drivers, where
    an image ID is the digest of one config, and so of one set of labels. `platform`: as the API's parameter.
    """

    image: str
    manifest: str = ""
    platform: str = ""


def variant(listed: Mapping[str, Any]) -> Variant:
    """Return the variant of a container as `GET /containers/json` lists it. Raises UnknownLabels."""
    described = listed.get("ImageManifestDescriptor")
    if described is None:
        return Variant(listed["ImageID"])
    digest, platform = described.get("digest"), described.get("platform")
    parameter = json.dumps(platform, sort_keys=True) if isinstance(platform, dict) else ""
    if not isinstance(digest, str) or not digest or not parameter or len(parameter) > _MAX_PLATFORM:
        raise UnknownLabels(
            "Docker does not report which variant of its image the container was created from; "
            f"create it again, {_TRUST}"
        )
    return Variant(listed["ImageID"], digest, parameter)


def image_labels(wanted: Variant, inspected: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the labels of an image as `GET /images/ID/json` shows it.

    Raises UnknownLabels if it is not that variant.
    """
    described = inspected.get("Descriptor")
    if described is None and (wanted.manifest or inspected.get("Id") != wanted.image):
        raise UnknownLabels(f"Docker reports a different image than the container's; pull the image again, {_TRUST}")
    if described is not None:
        if not wanted.manifest:
            raise UnknownLabels(
                "Docker does not report which variant of its image the container was created from; "
                f"create it again, {_TRUST}"
            )
        if described.get("digest") != wanted.manifest:
            raise UnknownLabels(
                "Docker reports a different variant of the image than the container's "
                f"(Docker 28.1 and newer show each platform's): create it again, {_TRUST}"
            )
        if not inspected.get("Os") or not inspected.get("Architecture"):
            raise UnknownLabels(f"Docker has only a part of that variant of the image; pull the image again, {_TRUST}")
    labels = (inspected.get("Config") or {}).get("Labels") or {}
    return {key: value for key, value in labels.items() if container_labels.is_relevant(key)}


def in_containerd(info: Mapping[str, Any]) -> bool:
    """True if `GET /info` reports that images are in containerd's store.

    Raises UnknownLabels if it reports no store.
    """
    driver, status = info.get("Driver"), info.get("DriverStatus")
    if not isinstance(driver, str) or not driver or not isinstance(status, list | None):
        raise UnknownLabels(f"Docker does not report where it stores its images, {_TRUST}")
    return any(isinstance(pair, list) and pair[:1] == ["driver-type"] for pair in status or ())

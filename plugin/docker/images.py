"""The labels that a container's image brings: those of the variant that the container was created from.

An image must not open its own ports, and Docker merges its labels into the container's. In the containerd image store
(the default since Docker 29) one image ID stands for an index of variants, one for each platform, with labels of their
own; an inspection shows the variant that Docker prefers. So an answer counts only if it names the same manifest as the
container does. Anything else is `Unknown`, and then every label of the container may be the image's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import docker
from docker.errors import APIError, NotFound
from requests.exceptions import RequestException

from plugin.docker import container_labels, request
from plugin.docker.container_labels import ContainerLabels

#: The first API version that tells a container's manifest, and images' descriptors; and the first that inspects the
#: variant of a platform. Before `STORE` Docker had no containerd image store.
STORE, TELLS, SELECTS = (1, 43), (1, 48), request.NEWEST
#: Variants whose labels are kept, and characters of labels that are not.
_KEPT, _LARGE = 1000, 1 << 16
#: Characters of a platform as the API's parameter; Docker's are below 100.
_LONGEST = 1024
#: Seconds that nobody waits again for an image that Docker did not show in time, at first and at most.
_SOON, _LATER = 60.0, 3600.0
_TRUST = "or set FW_IMAGE_LABELS=trust if you trust every image on this host"


class Unknown(Exception):
    """It cannot be told which labels the image brought. The text says why, and what to do."""


class LateError(Exception):
    """Docker did not show an image (in time). Its author may want that, and Docker is not silent."""


class Images:
    """Asks Docker for images' labels, once for each variant: it never changes. Thread-safe.

    `trust`: labels that an image brought count like any.
    """

    def __init__(self, *, trust: bool) -> None:
        self._trust = trust
        self._known: dict[Variant, Mapping[str, str]] = {}
        #: Until when nobody waits for these, and for how long then.
        self._late: dict[Variant, tuple[float, float]] = {}
        self._containerd: bool | None = None

    def anew(self) -> None:
        """Another daemon may answer from now on, with another image store."""
        self._containerd = None

    def read(self, client: docker.APIClient, listed: Mapping[str, Any], *, hook: bool = False) -> ContainerLabels:
        """A container as `GET /containers/json` lists it. Raises APIError where Docker fails, not where it refuses.

        `hook`: with a short time-out, which says nothing of the image. Raises LateError then, and where Docker fails.
        """
        if self._trust or not container_labels.asks_for_image(listed):
            return container_labels.read(listed, None)
        try:
            return container_labels.read(listed, self._labels(client, listed))
        except LateError as error:
            if hook:
                raise
            self._note_late(variant(listed))
            return container_labels.read(listed, None, unknown=str(error))
        except APIError as error:
            if hook:
                raise LateError(f"Docker does not tell of the image ({error.explanation})") from error
            raise
        except Unknown as error:
            return container_labels.read(listed, None, unknown=str(error))

    def _note_late(self, of: Variant) -> None:
        now, (until, pause) = time.monotonic(), self._late.get(of, (0.0, _SOON / 2))
        if now >= until:
            if len(self._late) >= _KEPT:
                self._late.clear()
            pause = min(2 * pause, _LATER)
            self._late[of] = (now + pause, pause)

    def _labels(self, client: docker.APIClient, listed: Mapping[str, Any]) -> Mapping[str, str]:
        of = variant(listed)
        if of not in self._known:
            if time.monotonic() < self._late.get(of, (0.0, 0.0))[0]:
                raise LateError("Docker did not show the image in time; it is asked again later")
            try:
                labels = self._ask(client, of)
            except NotFound as error:
                raise Unknown(f"the image is gone ({error.explanation}); pull the image again") from error
            except APIError as error:
                if not error.is_client_error():
                    raise
                # A refusal is about this image, whose author may want it: nobody else's look-up ends with it.
                raise Unknown(f"Docker does not tell of the image ({error.explanation})") from error
            except (RequestException, request.TooLongError) as error:
                if not request.late(error):
                    raise
                raise LateError("Docker did not show the image in time; it is asked again later") from error
            self._late.pop(of, None)
            if sum(len(key) + len(str(value)) for key, value in labels.items()) > _LARGE:
                return labels
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[of] = labels
        return self._known[of]

    def _ask(self, client: docker.APIClient, of: Variant) -> Mapping[str, str]:
        version = tuple(map(int, str(client.api_version).split(".")))
        if STORE <= version < TELLS and self._in_containerd(client):
            raise Unknown(
                "this Docker keeps its images in containerd's store and does not tell which variant of its image a "
                f"container was created from; upgrade Docker to 28.1 or newer, {_TRUST}"
            )
        query = {"platform": of.platform} if of.platform and version >= SELECTS else {}
        return image_labels(of, request.one(client, "/images/{0}/json", of.image, **query))

    def _in_containerd(self, client: docker.APIClient) -> bool:
        if self._containerd is None:
            try:
                self._containerd = in_containerd(client.info())
            except APIError as error:
                if not error.is_client_error():
                    raise
                why = f"Docker does not tell in which store it keeps its images ({error.explanation})"
                raise Unknown(f"{why}; let docker-fw ask GET /info, {_TRUST}") from error
        return self._containerd


@dataclass(frozen=True, slots=True)
class Variant:
    """`manifest`: the digest of the manifest that the container was created from; "" in the store of graph drivers,
    where an image ID is the digest of one config, and so of one set of labels. `platform`: as the API takes it.
    """

    image: str
    manifest: str = ""
    platform: str = ""


def variant(listed: Mapping[str, Any]) -> Variant:
    """Of a container as `GET /containers/json` lists it. Raises Unknown."""
    described = listed.get("ImageManifestDescriptor")
    if described is None:
        return Variant(listed["ImageID"])
    digest, platform = described.get("digest"), described.get("platform")
    asked = json.dumps(platform, sort_keys=True) if isinstance(platform, dict) else ""
    if not isinstance(digest, str) or not digest or not asked or len(asked) > _LONGEST:
        raise Unknown(f"Docker does not tell which variant of its image it was created from; create it again, {_TRUST}")
    return Variant(listed["ImageID"], digest, asked)


def image_labels(of: Variant, told: Mapping[str, Any]) -> Mapping[str, str]:
    """The labels, from what `GET /images/ID/json` tells. Raises Unknown if it tells of anything but that variant."""
    described = told.get("Descriptor")
    if described is None and (of.manifest or told.get("Id") != of.image):
        raise Unknown(f"Docker shows another image than the container's; pull the image again, {_TRUST}")
    if described is not None:
        if not of.manifest:
            raise Unknown(
                f"Docker does not tell which variant of its image it was created from; create it again, {_TRUST}"
            )
        if described.get("digest") != of.manifest:
            raise Unknown(
                "Docker shows another variant of the image than the container's "
                f"(Docker 28.1 and newer show each platform's): create it again, {_TRUST}"
            )
        if not told.get("Os") or not told.get("Architecture"):
            raise Unknown(f"Docker does not have that variant of the image whole; pull the image again, {_TRUST}")
    labels = (told.get("Config") or {}).get("Labels") or {}
    return {key: value for key, value in labels.items() if container_labels.matters(key)}


def in_containerd(info: Mapping[str, Any]) -> bool:
    """What `GET /info` tells of the image store. Raises Unknown if it does not."""
    driver, status = info.get("Driver"), info.get("DriverStatus")
    if not isinstance(driver, str) or not driver or not isinstance(status, list | None):
        raise Unknown(f"Docker does not tell in which store it keeps its images, {_TRUST}")
    return any(isinstance(pair, list) and pair[:1] == ["driver-type"] for pair in status or ())

"""The error boundary to Docker: the errors of its API, and the two ways to handle them.

A call that fails becomes DockerUnavailable (`answers`). One malformed object among many is logged and left out, so it
stays closed, and the others are read (`understood`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from docker.errors import DockerException
from requests.exceptions import RequestException

from plugin.docker.parse import MALFORMED
from plugin.model import DockerUnavailable

#: The errors of a failed call: Docker refuses or breaks, the connection breaks, or no answer arrives in time.
FAILED = (DockerException, RequestException, OSError)
T = TypeVar("T")
log = logging.getLogger(__name__)


@contextmanager
def answers(what: str = "Docker's API did not answer") -> Iterator[None]:
    """Turn each failure of a call, and an answer that is malformed, into DockerUnavailable."""
    try:
        yield
    except (*FAILED, *MALFORMED) as error:
        raise DockerUnavailable(f"{what}: {error}") from error


def answered_wrongly(error: DockerUnavailable) -> bool:
    """True if Docker did answer, but with malformed data: it is not unavailable."""
    cause = error.__cause__
    return isinstance(cause, MALFORMED) and not isinstance(cause, RequestException)


def understood(
    read: Callable[[Any], T],
    raw: Any,
    *errors: type[Exception],
    what: str = "Docker lists an object that docker-fw cannot read; it stays closed",
) -> T | None:
    """Return one parsed object of many.

    The result is None, and `what` is logged, if the object is malformed or one of `errors` is raised.
    """
    caught: tuple[type[Exception], ...] = (*errors, *MALFORMED)
    try:
        return read(raw)
    except caught as error:
        log.error("%s: %s", what, error)
        return None

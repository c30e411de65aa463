"""What is read in compose files: values that know where they stand, and what is to be said about them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from plugin.model import FwError

#: Which keys of a map are read ("*": any), and which keys of their values; None: everything.
Shape = Mapping[str, "Shape | None"]


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A line of a file, as editors and CI understand it. Line 0: the file as a whole."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a compose file: text (numbers and booleans as compose writes them), None, a list or a map.

    `place`: where its key stands, or itself in a list. `written`: what stands in the file, if compose makes something
    else of it (022 → 18). `tag`: compose's own "reset" (it takes the key away) and "override" (it is not merged).
    """

    data: str | list[Value] | dict[str, Value] | None
    place: Place
    tag: str = ""
    written: str = ""

    @property
    def text(self) -> str:
        """The text that it is; "" for whatever is none."""
        return self.data if isinstance(self.data, str) else ""

    @property
    def items(self) -> list[Value]:
        """The list that it is; nothing for whatever is none."""
        return self.data if isinstance(self.data, list) else []

    @property
    def map(self) -> Mapping[str, Value]:
        """The map that it is; nothing for whatever is none."""
        return self.data if isinstance(self.data, dict) else {}

    @property
    def truth(self) -> bool:
        """As compose casts text to a boolean."""
        return self.text.lower() in ("true", "1", "yes", "y", "on")


class Unreadable(FwError):
    """A file that nothing can be said about, or that compose itself refuses to read."""

    def __init__(self, place: Place, text: str) -> None:
        super().__init__(text)
        self.note = Note(place, text)


@dataclass(frozen=True, slots=True, order=True)
class Note:
    """Something to be said about a line. `service`: whom it is about, if about one."""

    place: Place
    text: str
    service: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.service}: {self.text}" if self.service else f"{self.place}: {self.text}"


@dataclass(slots=True)
class Notes:
    """All that is found, each thing once: an anchor that ten services use is read ten times."""

    mistakes: dict[Note, None] = field(default_factory=dict)
    warnings: dict[Note, None] = field(default_factory=dict)

    def mistake(self, place: Place, text: str, service: str = "") -> None:
        """Add a mistake; each is kept once."""
        self.mistakes[Note(place, text, service)] = None

    def warn(self, place: Place, text: str, service: str = "") -> None:
        """Add a warning; each is kept once."""
        self.warnings[Note(place, text, service)] = None

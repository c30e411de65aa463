"""Values of compose files with their lines, and the notes about them. Pure."""

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

    `place`: the line of its key, or its own in a list. `written`: the text in the file, if compose changes it
    (022 → 18). `tag`: compose's own "reset" (it removes the key) and "override" (it is not merged).
    """

    data: str | list[Value] | dict[str, Value] | None
    place: Place
    tag: str = ""
    written: str = ""

    @property
    def text(self) -> str:
        """The text; "" if the value is not text."""
        return self.data if isinstance(self.data, str) else ""

    @property
    def items(self) -> list[Value]:
        """The list; empty if the value is not a list."""
        return self.data if isinstance(self.data, list) else []

    @property
    def map(self) -> Mapping[str, Value]:
        """The map; empty if the value is not a map."""
        return self.data if isinstance(self.data, dict) else {}

    @property
    def truth(self) -> bool:
        """The text as a boolean, as compose casts it."""
        return self.text.lower() in ("true", "1", "yes", "y", "on")


class Unreadable(FwError):
    """A file that cannot be read, or that compose refuses to read."""

    def __init__(self, place: Place, text: str) -> None:
        super().__init__(text)
        self.note = Note(place, text)


@dataclass(frozen=True, slots=True, order=True)
class Note:
    """A remark about a line. `service`: the one it is about, if about one."""

    place: Place
    text: str
    service: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.service}: {self.text}" if self.service else f"{self.place}: {self.text}"


@dataclass(slots=True)
class Notes:
    """Mistakes and warnings, each once: an anchor that ten services use is read ten times."""

    mistakes: dict[Note, None] = field(default_factory=dict)
    warnings: dict[Note, None] = field(default_factory=dict)

    def mistake(self, place: Place, text: str, service: str = "") -> None:
        """Add a mistake."""
        self.mistakes[Note(place, text, service)] = None

    def warn(self, place: Place, text: str, service: str = "") -> None:
        """Add a warning."""
        self.warnings[Note(place, text, service)] = None

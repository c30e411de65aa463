"""`${VAR}` in compose files, and the `.env` file beside them. Pure.

Compose's own rules (compose-go, template and dotenv): $VAR, ${VAR}, ${VAR:-default}, ${VAR-default}, ${VAR:?message},
${VAR?message}, ${VAR:+instead}, ${VAR+instead}, and $$ for a dollar.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping
from typing import NamedTuple

#: The longest text: a variable that is used again and again must not fill the memory.
MAX_LENGTH = 1 << 20
#: The deepest nesting of defaults.
MAX_DEPTH = 16

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_BRACED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-?+])(.*))?", re.ASCII | re.DOTALL)
_ENTRY = re.compile(
    r"""[ \t]*(?:export[ \t]+)?(?P<key>[A-Za-z0-9_.\-]+)[ \t]*
        (?:(?P<sign>[=:])[ \t]*(?:'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)"|(?P<plain>[^\n]*)))?[^\n]*""",
    re.ASCII | re.DOTALL | re.VERBOSE,
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


class Expanded(NamedTuple):
    """The text with variables replaced; the names of unset variables; the mistake, or ""."""

    text: str
    unset: tuple[str, ...] = ()
    mistake: str = ""


def expand(text: str, variables: Mapping[str, str], depth: int = 0) -> Expanded:
    """Replace every variable. An unset one is empty, as in compose."""
    parts: list[str] = []
    unset: list[str] = []
    at, length = 0, 0
    while (dollar := text.find("$", at)) >= 0:
        parts.append(text[at:dollar])
        name = _NAME.match(text, dollar + 1)
        if text.startswith("$", dollar + 1):
            found, at = Expanded("$"), dollar + 2
        elif name:
            found, at = _value(name[0], variables), name.end()
        else:
            end = _closing(text, dollar + 1)
            braced = _BRACED.fullmatch(text, dollar + 2, end) if end else None
            if braced is None:
                return Expanded("", mistake=_wrong(text[dollar:]))
            found, at = _braced(braced, variables, depth), end + 1
        if found.mistake:
            return found
        parts.append(found.text)
        unset += found.unset
        length += len(found.text)
        if length > MAX_LENGTH:
            return Expanded("", mistake=f"is longer than {MAX_LENGTH} characters once its variables are replaced")
    return Expanded("".join((*parts, text[at:])), tuple(dict.fromkeys(unset)))


def _value(name: str, variables: Mapping[str, str]) -> Expanded:
    return Expanded(variables[name]) if name in variables else Expanded("", (name,))


def _braced(match: re.Match[str], variables: Mapping[str, str], depth: int) -> Expanded:
    name, sign, word = match[1], match[2] or "", match[3] or ""
    there = bool(variables.get(name)) if sign.startswith(":") else name in variables
    if not sign or (there and not sign.endswith("+")):
        return _value(name, variables)
    if sign.endswith("+") and not there:
        return Expanded("")
    if depth >= MAX_DEPTH:
        return Expanded("", mistake=f"has more than {MAX_DEPTH} defaults within one another")
    other = expand(word, variables, depth + 1)
    if sign.endswith("?") and not other.mistake:
        state = "empty" if name in variables else "not set"
        why = f": {other.text}" if other.text else ""
        return Expanded("", mistake=f"needs the variable {name}, which is {state}{why}")
    return other


def _closing(text: str, brace: int) -> int:
    """Return where the brace that opens at `brace` closes; 0 if none opens there, or it never closes."""
    if not text.startswith("{", brace):
        return 0
    depth = 1
    for match in re.compile(r"\$\{|\}").finditer(text, brace + 1):
        depth += 1 if match[0] == "${" else -1
        if not depth:
            return match.start()
    return 0


def _wrong(text: str) -> str:
    shown = text if len(text) <= 40 else text[:40] + "…"
    return f'"{shown}" is not a variable, like ${{NAME}} or ${{NAME:-default}}; write $$ for a dollar'


def dotenv(text: str, variables: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """Read a file of NAME=VALUE lines; return the value and line of each. Values may use `variables` and names above.

    'Single quotes' keep everything, "double quotes" know \\n and variables, # starts a comment. A name alone takes its
    value from `variables`. Other lines are ignored.
    """
    found: dict[str, tuple[str, int]] = {}
    above: dict[str, str] = {}
    known = ChainMap(dict(variables), above)
    at, line = 0, 1
    while at < len(text):
        match = _ENTRY.match(text, at)
        if match is None:
            end = text.find("\n", at)
            end = len(text) if end < 0 else end
        else:
            end = match.end()
            value = _entry(match, known)
            if value is not None:
                above[match["key"]] = value
                found[match["key"]] = (value, line)
        line += text.count("\n", at, end + 1)
        at = end + 1
    return found


def _entry(match: re.Match[str], variables: Mapping[str, str]) -> str | None:
    if not match["sign"]:
        return variables.get(match["key"])
    if match["single"] is not None:
        return match["single"]
    if match["double"] is not None:
        text = re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), match["double"], flags=re.DOTALL)
    else:
        text = re.sub(r"(^|\s)#.*", "", match["plain"]).strip()
    expanded = expand(text, variables)
    # A password may contain a dollar that is not a variable.
    return text if expanded.mistake else expanded.text

"""What people read is in plain English: the words of the field, and sentences that name their subject."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
#: Documents, what users see of the package, and the examples that people copy.
TEXTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *(ROOT / name for name in ("Dockerfile", "Makefile", "config.json")),
    ROOT / "tests/lab/README.md",
    *sorted(
        path for folder in ("compose-examples", "examples") for path in ROOT.glob(f"{folder}/**/*") if path.is_file()
    ),
]
#: Words to avoid, as regular expressions, and what to write instead.
AVOIDED = {
    "beg[aiu]n|begins": "open (a connection), initiate, start",
    "told|said|a word of|'s word that": "reported, configured, a message",
    "stands?|stood|standing": "is active, remains, is established",
    "besides": "in addition to",
    "for ever|forever": "permanently",
    "mends?|mended": "fixed, restored",
    "goes|comes": "is sent, arrives, is removed, is added",
    "somebody|nobody|anybody|everybody|whoever|whomever": "a container, a client, a process, none",
    "Docker's own (networks?|bridges?)|of Docker's own": "Docker networks",
    "docker-fw's own networks?|of docker-fw's own": "docker-fw networks",
    "guards?|guarded|guarding|unguarded": "protected",
    "confined?|confines|confining": "restricted, egress-restricted",
    "blind": "unidentified",
    "apart": "separate, isolated, distinguish",
    "foreign": "of another program, unmanaged",
    "deaf|lies|lying|dialect": "a literal description",
}
#: Modules that still have such words. Remove a module from here when its texts are rewritten; add none.
UNFINISHED = {
    "plugin/daemon/loops.py",
    "plugin/daemon/plugin.py",
    "plugin/docker/container_labels.py",
    "plugin/docker/follower.py",
    "plugin/docker/tracker.py",
    "plugin/driver/driver.py",
    "plugin/fwctl/api/export.py",
    "plugin/fwctl/api/queries.py",
    "plugin/fwctl/check/hints.py",
    "plugin/kernel/capabilities.py",
    "plugin/labels/duration.py",
    "plugin/labels/grammar.py",
    "plugin/labels/parser.py",
    "plugin/nftables/rules_bridge.py",
    "plugin/nftables/rules_forward.py",
    "plugin/nftables/rules_host.py",
    "plugin/policy/bans.py",
    "plugin/settings.py",
    "plugin/state/store.py",
}
#: Phrases in which such a word is right.
ALLOWED = ("stands? for", "stand-?alone")
#: A relative clause as the subject. A question may start with these words.
OPENING = re.compile(r"(?:^|[.!?:;] |\*\*)(What|Who|Whoever|Whatever|It is that)\b(?![^.]*\?)")


def prose(path: Path) -> str:
    """Return a document without code: fenced blocks, and everything between backticks. Quoted messages are code."""
    text = path.read_text()
    if path.suffix == ".md":
        text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"`[^`]*`", "``", text)
    return text


def code_texts(path: Path) -> Iterator[str]:
    """Yield a module's docstrings, comments and messages, without names: words in backticks or alone in quotes."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not node.value.isidentifier():
            yield re.sub(r"`[^`]*`|\"\w+\"", "``", node.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield re.sub(r"`[^`]*`|\"\w+\"", "``", token.string)


def faults(text: str) -> Iterator[str]:
    """Yield each word to avoid, and each sentence without a named subject, with its line and what to write."""
    for phrase in ALLOWED:
        text = re.sub(rf"\b{phrase}\b", "", text, flags=re.IGNORECASE)
    for line in text.splitlines():
        for words, instead in AVOIDED.items():
            for found in re.finditer(rf"(?<![\w.-])(?:{words})(?![\w-])", line, re.IGNORECASE):
                yield f"{found[0]!r}, better {instead}: {line.strip()}"
        for start in OPENING.finditer(re.sub(r"^[\s|#>*\"'-]+", "", line)):
            yield f"{start[1]!r} starts a sentence, better name its subject: {line.strip()}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_are_in_plain_english(path: Path) -> None:
    """No document or example has a word of the list. The meanings of settings are the registry's text."""
    text = prose(path)
    for setting in SETTINGS.values():
        text = text.replace(setting.meaning, "")
    assert not list(faults(text))


def test_the_code_is_in_plain_english() -> None:
    """No docstring, comment or message of the plugin has a word of the list."""
    found = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in sorted((ROOT / "plugin").rglob("*.py"))
        if str(path.relative_to(ROOT)) not in UNFINISHED
        for text in code_texts(path)
        for fault in faults(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("A container may begin nothing.", 1),
        ("Docker told docker-fw. Nobody said so.", 3),
        ("What is unknown is closed.", 1),
        ("- **What closes** comes first.", 2),
        ("| `x` | Who sends? It stands for a port. |", 0),
        ("The plugin initiates no connection, and what it accepts is listed.", 0),
    ],
)
def test_words_to_avoid_are_found(text: str, count: int) -> None:
    """The check above can fail."""
    assert len(list(faults(text))) == count

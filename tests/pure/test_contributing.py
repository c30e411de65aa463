"""Maintainers' documents name existing things: files, modules, sets, chains, commands; ARCHITECTURE stays short."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin.nftables.document import skeleton
from plugin.nftables.features import Features
from plugin.nftables.sets import SETS

ROOT = next(parent for parent in Path(__file__).parents if (parent / "pyproject.toml").exists())
PLUGIN = ROOT / "plugin"
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
INTERNALS = sorted((ROOT / "docs/internals").glob("*.md"))
DOCUMENTS = [each for each in (ARCHITECTURE, CONTRIBUTING, *INTERNALS) if each.exists()]
#: The first parts of a dotted name, and of a path from the root.
TOP = {path.stem for path in PLUGIN.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} - {"__init__"}
HERE = {path.name for path in ROOT.iterdir()}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
#: Programs of the host that a fenced command may name.
PROGRAMS = {"git", "docker", "sh"}


def prose(path: Path) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """Return the texts between backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def missing_path(span: str) -> str:
    """Return why a span is no path of this repository; "" if it is one, or does not look like one."""
    if re.fullmatch(r"[\w.*-]+(/[\w.*-]+)*/?", span) is None or span.startswith("/"):
        return ""
    is_path = span.endswith((".py", ".md", ".json", ".toml", ".yml", ".lock")) or span.partition("/")[0] in HERE
    if not is_path or span in HERE:
        return ""
    return "" if any(ROOT.glob(span.rstrip("/"))) else f"there is no {span}"


def missing_name(span: str) -> str:
    """Return why a span like `policy.peers.PeerIndex.put` names nothing; "" if it names something, or is no such
    name."""
    if re.fullmatch(r"\w+(\.\w+)+", span) is None or span.partition(".")[0] not in TOP or (ROOT / span).exists():
        return ""
    words = span.split(".")
    for count in range(len(words), 0, -1):
        try:
            found: object = importlib.import_module(".".join(["plugin", *words[:count]]))
        except ModuleNotFoundError:
            continue
        for name in words[count:]:
            if not hasattr(found, name) and name not in getattr(found, "__annotations__", {}):
                return f"there is no {span}: {found!r} has no {name}"
            found = getattr(found, name, None)
        return ""
    return f"there is no {span}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_paths_and_names_exist(path: Path) -> None:
    """Every file, module, class and function that a document names exists."""
    named = spans(prose(path))
    words = [word for span in named for word in span.split()]
    assert not [why for word in words for why in (missing_path(word), missing_name(word)) if why]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_existing_headings(path: Path) -> None:
    """Links lead to existing files and to headings within them."""
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text()):
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        assert target.is_file(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_sets_and_chains_are_those_of_the_table(path: Path) -> None:
    """A name that a document calls a set or a chain (set `gating`, chain `inbound`) is one."""
    tables = skeleton(1) + skeleton(1, Features(late_fib=False))
    chains = set(re.findall(r"^\tchain (\w+) {", tables, re.MULTILINE))
    for kind, known in (("set", set(SETS)), ("chain", chains)):
        groups = re.findall(rf"\b{kind}s?\s+((?:`\w+`(?:, | and |,\n *| and\n *|\n *)?)+)", prose(path))
        assert not {name for group in groups for name in spans(group)} - known


def test_architecture_draws_the_actual_table() -> None:
    """The drawing of the packet path has every base chain with its hook and priority, and jumps to existing chains."""
    drawing = ARCHITECTURE.read_text().split("```")[1]
    text = skeleton(1)
    for chain, kind, hook, priority in re.findall(r"chain (\w+) {\n\t\ttype (\w+) hook (\w+) priority ([^;]+);", text):
        words = {"nat": f"nat, {priority}", "filter": priority if chain == hook else f"{hook}, {priority}"}
        assert f"{chain} [{words[kind]}]" in drawing, f"{chain}: {words[kind]}"
    jumps = re.findall(r"jumps: (.*)", drawing)
    assert jumps
    named = {name for line in jumps for name in re.split(r" → |, ", line.strip())}
    assert named <= set(re.findall(r"chain (\w+) {", text)), "a chain that does not exist"


def test_architecture_draws_the_actual_packages() -> None:
    """The drawing of the data path has every package except `labels`, which the packages that read labels call."""
    words = re.findall(r"[\w.]+", ARCHITECTURE.read_text().split("```")[3])
    drawn = {word for word in words if (PLUGIN / word.replace(".", "/") / "__init__.py").exists()}
    assert {path.name for path in packages()} - drawn == {"labels"}
    assert "fwctl.api" in drawn


def packages() -> list[Path]:
    """Return the packages that `ls plugin/` shows."""
    return sorted(path.parent for path in PLUGIN.glob("*/__init__.py"))


def test_architecture_has_every_package_and_their_modules() -> None:
    """Each package of plugin/ has its paragraph, and each single word in backticks there is a module of the package."""
    section = ARCHITECTURE.read_text().split("\n## Packages\n", 1)[1].split("\n## ", 1)[0]
    paragraphs = dict(
        re.findall(r"^- \*\*`plugin/(\w*)/?`\*\* (.*?)(?=^- |\Z|\n\n)", section, re.DOTALL | re.MULTILINE)
    )
    assert set(paragraphs) == {"", *(path.name for path in packages())}
    for package, text in paragraphs.items():
        folder = PLUGIN / package
        modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
        named = {span for span in spans(text) if span.isidentifier()}
        assert named, f"plugin/{package} names no module"
        assert named <= modules, f"plugin/{package} has no {named - modules}"
        if not package:
            flat = {path.stem for path in PLUGIN.glob("*.py")} - {"__init__"}
            assert flat <= named, f"{flat - named} beside the packages"


def test_the_order_of_locks_names_them_all() -> None:
    """The list in docs/internals/lease.md contains exactly the modules that create a lock."""
    section = (ROOT / "docs/internals/lease.md").read_text().split("\n## Locks\n", 1)[1].split("\n## ", 1)[0]
    files = (path for path in PLUGIN.rglob("*.py") if re.search(r"threading\.R?Lock\(\)", path.read_text()))
    assert {".".join(path.relative_to(PLUGIN).with_suffix("").parts) for path in files} == set(spans(section))


def test_architecture_is_short() -> None:
    """A new reader can read it quickly: two drawings, the packages, the invariants. Details are in docs/internals."""
    assert len(ARCHITECTURE.read_text().splitlines()) < 150


def test_architecture_leads_to_all_details() -> None:
    """Every file of docs/internals is linked from ARCHITECTURE."""
    assert set(re.findall(r"\]\(docs/internals/([\w-]+\.md)", ARCHITECTURE.read_text())) == {p.name for p in INTERNALS}


@pytest.mark.parametrize(
    "path", [PLUGIN, *sorted(p.parent for p in PLUGIN.rglob("*/__init__.py"))], ids=lambda p: p.name
)
def test_packages_have_short_docstrings(path: Path) -> None:
    """A package's docstring says in a few lines what it does and what it may access."""
    name = ".".join(("plugin", *path.relative_to(PLUGIN).parts))
    text = inspect.getdoc(importlib.import_module(name)) or ""
    assert 3 <= len(text.splitlines()) <= 8, name
    assert text.splitlines()[0].endswith("."), name
    assert re.search(r"\b(touch|read|write|ask|speak|bind)", text), f"{name}: what may it touch?"
    assert not [why for span in spans(text) for why in (missing_path(span), missing_name(span)) if why]


def commands() -> Iterator[list[str]]:
    """Yield the commands of CONTRIBUTING's shell blocks, one by one."""
    for block in re.findall(r"^```sh\n(.*?)^```$", CONTRIBUTING.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def wrong_command(words: list[str]) -> str:
    """Return why a command cannot work; "" if it can. None is run: most need minutes, root or a Docker."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *rest = words
    if program == "make":
        targets = [word for word in rest if "=" not in word]
        return "" if targets and set(targets) <= TARGETS else f"make has no {set(targets) - TARGETS}"
    if program == ".venv/bin/python" and rest[:1] == ["-m"]:
        module, *rest = rest[1:]
        if importlib.util.find_spec(module) is None:
            return f"there is no module {module}"
        if module == "pytest":
            return wrong_tests([word for word in rest if word.startswith("tests/")])
        return ""
    return "" if program in PROGRAMS else f"nothing is known of {program}"


def wrong_tests(named: list[str]) -> str:
    """Return why these (`tests/pure/test_x.py::test_y`) are no tests."""
    for each in named:
        file, _, test = each.partition("::")
        if not (ROOT / file).exists():
            return f"there is no {file}"
        if test and f"def {test}(" not in (ROOT / file).read_text():
            return f"{file} has no {test}"
    return ""


def test_commands_of_contributing_can_work() -> None:
    """The make targets, modules and tests that CONTRIBUTING tells the reader to run exist."""
    found = list(commands())
    assert found
    assert not [why for words in found if (why := wrong_command(words))]
    named = set(re.findall(r"`make ([a-z-]+)`", CONTRIBUTING.read_text()))
    assert named <= TARGETS


def test_contributing_has_twelve_recipes_with_files() -> None:
    """Each recipe has steps, and names the files that it touches in the code, in the tests and for users."""
    section = CONTRIBUTING.read_text().split("\n## Recipes\n", 1)[1].split("\n## ", 1)[0]
    recipes = re.split(r"^### ", section, flags=re.MULTILINE)[1:]
    assert len(recipes) == 12
    for recipe in recipes:
        heading, text = recipe.split("\n", 1)
        files = [span for span in spans(text) if span.startswith(("plugin/", "tests/"))]
        assert any(each.startswith("plugin/") for each in files), f"{heading}: no code"
        assert any(each.startswith("tests/") for each in files), f"{heading}: no test"
        assert "1. " in text, f"{heading}: no steps"


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (missing_path, "plugin/nowhere.py"),
        (missing_path, "tests/pure/test_nowhere_*.py"),
        (missing_path, "NOWHERE.md"),
        (missing_name, "policy.nowhere"),
        (missing_name, "policy.peers.Nowhere"),
        (missing_name, "model.Rule.nowhere"),
        (wrong_tests, ["tests/nowhere.py"]),
        (wrong_tests, ["tests/pure/test_layers.py::test_nowhere"]),
        (wrong_command, ["make", "nowhere"]),
        (wrong_command, ["make"]),
        (wrong_command, [".venv/bin/python", "-m", "nowhere"]),
        (wrong_command, ["FW_X=1", "nowhere", "--now"]),
    ],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_missing_names_are_detected(check: object, text: object) -> None:
    """The checks of this file detect a name, a path or a command that does not exist."""
    assert callable(check)
    assert check(text)

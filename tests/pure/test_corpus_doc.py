"""docs/corpus.md agrees with the registry of other projects' bugs, and each test that it names exists."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.corpus import CASES, FILE, Case, written

TESTS = Path(FILE).parent.parent / "tests"


def test_the_document_is_current() -> None:
    """The table of the document is the registry's. `python -m tests.corpus` writes it."""
    text = FILE.read_text()
    assert text == written(text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.origin)
def test_every_bug_has_tests_that_exist(case: Case) -> None:
    """Each test that a bug's row names is a function of that module, with a promise as its docstring."""
    assert case.tests
    for test in case.tests:
        path, _, name = test.partition(":")
        tree = ast.parse((TESTS / path).read_text())
        found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        assert found, f"{test} does not exist"
        assert ast.get_docstring(found[0])


def test_every_test_of_the_module_is_named() -> None:
    """Each test of tests/kernel/test_incus.py is a row's: none is there without its origin."""
    tree = ast.parse((TESTS / "kernel/test_incus.py").read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    assert names == {t.partition(":")[2] for case in CASES for t in case.tests if t.startswith("kernel/test_incus.py:")}

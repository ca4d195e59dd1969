"""Every Python block of the README and of docs/ runs as printed, one namespace a file, top to bottom, and the examples
of the docstrings do."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

import fastopt

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, namespace, left_out = path.read_text(encoding="utf-8"), {"__name__": "docs"}, 0
    for match in BLOCK.finditer(text):
        if "matplotlib" in match[1] and not HAS_MATPLOTLIB:
            left_out += 1
            continue
        above = "\n" * text.count("\n", 0, match.start(1))  # tracebacks show the line of the page
        exec(compile(above + match[1], str(path), "exec"), namespace)
    if left_out:
        pytest.skip(f"matplotlib is not installed: {left_out} block left out, the others ran")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    targets = [link for link in LINK.findall(text) if "://" not in link]
    assert [link for link in targets if not (path.parent / link).exists()] == []


def test_blocks_are_found():
    assert len(BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))) >= 8


MODULES = [name for _, name, _ in pkgutil.iter_modules(fastopt.__path__) if not name.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"fastopt.{name}"))
    assert result.failed == 0


def test_examples_are_found():
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(f"fastopt.{name}") for name in MODULES]
    assert sum(len(test.examples) > 0 for module in modules for test in finder.find(module)) >= 38


def test_every_promise_names_its_test():
    """Lines 1 to 36 of the page on reliability, and tests that are there."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \|.*?\|.*?\|(.*?)\|", text.replace("\\|", "/"), re.MULTILINE))
    assert sorted(map(int, rows)) == list(range(1, 37))
    for tests in rows.values():
        named = re.findall(r"`(?:python )?(?:(test_\w+\.py)::(test_\w+)|(tests/\S+?))`", tests)
        assert named
        for file, test, program in named:
            assert (ROOT / program).is_file() if program else f"def {test}(" in (ROOT / "tests" / file).read_text()

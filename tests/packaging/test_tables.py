"""README and docs say what the result files say: what is generated is generated again."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="no distribution holds the results")


@pytest.fixture(scope="module")
def tables():
    """`benchmarks/tables.py`, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def test_pages_are_those_that_the_results_make(tables):
    results = tables.read_results()
    for name in tables.PAGES:
        page = (ROOT / name).read_text(encoding="utf-8")
        assert tables.rewritten(page, results) == page, f"{name}: run `python benchmarks/tables.py`"
    made = (RESULTS / "results.md").read_text()
    assert made == tables.page_text(results)


def test_every_part_stands_in_a_page_and_nothing_else_is_marked(tables):
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in tables.PAGES]
    assert {name for page in pages for _, name, _ in tables.BLOCK.findall(page)} == set(
        tables.PARTS
    )
    for page in pages:
        assert page.count("<!-- from ") == len(tables.BLOCK.findall(page))


def test_a_number_that_was_edited_is_found(tables):
    results = tables.read_results()
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    rate = next(row[2] for row in results["harvest"]["rows"] if row[1] == "saelab cache")
    assert f"{int(rate):,} tokens/s" in page
    edited = page.replace(f"{int(rate):,} tokens/s", "4,073 tokens/s")
    assert tables.rewritten(edited, results) == page != edited

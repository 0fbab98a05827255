"""The Python programs of the documentation run, page by page, one after the other in one folder."""

from __future__ import annotations

import re
import textwrap

import pytest

from tests.command import ROOT, python

PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if "```python\n" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_programs_of_a_page_run(page, tmp_path):
    for example in (ROOT / "examples").glob("*.py"):  # so that a program can import it
        (tmp_path / example.name).symlink_to(example)
    for number, program in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)):
        file = tmp_path / f"program_{number}.py"
        file.write_text(program)
        ended = python(file, cwd=tmp_path)
        assert ended.code == 0, ended.err


def test_the_test_of_a_backend_that_is_shown_is_the_one_that_is_run():
    page = (ROOT / "docs" / "write-a-backend.md").read_text()
    (shown,) = re.findall(r"\n\n((?:    .*\n|\n)+)", page)
    run = (ROOT / "tests" / "conformance" / "test_sqlite_conformance.py").read_text()
    lines = textwrap.dedent(shown).replace("from sqlite_backend", "from examples.sqlite_backend").split("\n")
    assert [line.split("  #")[0] for line in lines if line] == [line for line in run.split("\n") if line]

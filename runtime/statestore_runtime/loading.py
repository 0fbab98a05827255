"""Finds the job that a command names: a Python file, and a variable in it."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from statestore.errors import StateStoreError, UsageError, did_you_mean
from statestore_runtime.job import Job


class JobFileError(StateStoreError, ImportError):
    """The job's file raised an exception when it was read; that is the `__cause__`. Mend the file."""

    exit_code = 10

    def __init__(self, file: str, problem: str, line: int | None):
        self.file, self.problem, self.line = file, problem, line
        super().__init__(f"job file {file}{f', line {line}' if line else ''}: {problem}")


def load_job(target: str) -> Job:
    """The job that `FILE[:VARIABLE]` names; without a variable `job`, or the only job in the file.

    The file's folder becomes the first place where imports are looked for, as for `python FILE`.

    Raises
    ------
    UsageError
        There is no such file or variable, or it is no job.
    JobFileError
        The file raised an exception.
    """
    file, colon, variable = target.rpartition(":")
    if not colon or variable.endswith(".py"):
        file, variable = target, ""
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"there is no job file {file}; expected FILE.py or FILE.py:VARIABLE, from {Path.cwd()}")
    module = _imported(path)
    jobs = {name: value for name, value in vars(module).items() if isinstance(value, Job)}
    if not variable:
        variable = "job" if "job" in jobs or len(jobs) != 1 else next(iter(jobs))
    if variable in jobs:
        return jobs[variable]
    if not jobs:
        raise UsageError(f"{file} has no job: it needs a variable such as job = Job('name')")
    problem = "is no Job" if hasattr(module, variable) else "is not there"
    raise UsageError(f"{file}: variable '{variable}' {problem}; {did_you_mean(variable, jobs)}")


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[path.stem] = module  # before it runs, so that its classes can be found by their module's name
    try:
        spec.loader.exec_module(module)
    except StateStoreError:
        raise
    except (Exception, SystemExit) as error:
        raise JobFileError(str(path), f"{type(error).__name__}: {error}", _line_of(error, path)) from error
    return module


def _line_of(error: BaseException, path: Path) -> int | None:
    if isinstance(error, SyntaxError):
        return error.lineno
    here = path.resolve()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == here]
    return frames[-1].lineno if frames else None

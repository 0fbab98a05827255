"""The graph: what each operator does, which arguments are refused, and whose fault an error is said to be."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from statestore.config import load_config
from statestore.errors import ConfigError, IncompatibleStateError, StateMigrationError, UsageError
from statestore_runtime import (
    CollectionSource,
    CollectSink,
    FileSink,
    Job,
    KeyedProcessFunction,
    UserCodeError,
)


@pytest.fixture
def config(tmp_path):
    return load_config(overrides=["state.backend=memory", f"state.dir={tmp_path / 'state'}"])


def stream(job, *events, batch_size=3, uid=None):
    return job.source(CollectionSource(events, batch_size=batch_size), uid)


def results(config, build, *events, **options):
    """What comes out of a job whose stream `build` makes of a stream of `events`."""
    job, sink = Job("job"), CollectSink()
    build(stream(job, *events, **options)).sink(sink)
    job.run(config)
    return sink.results


class Count(KeyedProcessFunction):
    def open(self, ctx):
        self.counts = ctx.value_state("count", int, default=0)

    def process(self, event, ctx):
        self.counts.update(self.counts.value() + 1)
        yield ctx.key, self.counts.value()


class Mean:
    def create_accumulator(self):
        return (0, 0)

    def add(self, event, accumulator):
        return (accumulator[0] + event, accumulator[1] + 1)

    def get_result(self, accumulator):
        return accumulator[0] / accumulator[1]

    def merge(self, one, other):
        return (one[0] + other[0], one[1] + other[1])


def parity(number):
    return "odd" if number % 2 else "even"


# Operators


def test_map_filter_flat_map(config):
    def build(numbers):
        return (
            numbers.map(lambda n: n + 1).filter(lambda n: n % 2).flat_map(lambda n: [n] * n).flat_map(lambda n: (n, -n))
        )

    assert results(config, build, 0, 1, 2, 3) == [1, -1, 3, -3, 3, -3, 3, -3]


def test_a_batch_that_is_filtered_away(config):
    assert results(config, lambda s: s.filter(lambda n: n > 6).map(str), *range(8)) == ["7"]


def test_flat_map_takes_generators(config):
    def words(line):
        yield from line.split()

    assert results(config, lambda s: s.flat_map(words), "a b", "", "c") == ["a", "b", "c"]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_process_keeps_state_by_key(config, batch_size):
    found = results(config, lambda s: s.key_by(parity, str).process(Count()), *range(5), batch_size=batch_size)
    assert found == [("even", 1), ("odd", 1), ("even", 2), ("odd", 2), ("even", 3)]


def test_process_may_return_nothing(config):
    class Last(KeyedProcessFunction):
        def open(self, ctx):
            self.last = ctx.value_state("last", int)

        def process(self, event, ctx):
            before = self.last.value()
            self.last.update(event)
            return None if before is None else [(ctx.key, before)]

    found = results(config, lambda s: s.key_by(parity, str).process(Last()), 1, 2, 3, 5)
    assert found == [("odd", 1), ("odd", 3)]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_reduce_gives_the_value_after_each_event(config, batch_size):
    found = results(
        config,
        lambda s: s.key_by(parity, str).reduce(lambda a, b: a + b, int),
        *[1, 2, 3, 4, 5],
        batch_size=batch_size,
    )
    assert found == [1, 2, 4, 6, 9]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_aggregate_gives_key_and_result_after_each_event(config, batch_size):
    found = results(
        config,
        lambda s: s.key_by(parity, str).aggregate(Mean(), tuple[int, int]),
        *[1, 2, 4, 5],
        batch_size=batch_size,
    )
    assert found == [("odd", 1.0), ("even", 2.0), ("even", 3.0), ("odd", 3.0)]


def test_union_takes_all_events(config):
    job, sink = Job("job"), CollectSink()
    one, two, three = stream(job, 1, 2, 3, 4), stream(job, 5), stream(job, 6, 7)
    one.union(two.map(lambda n: n * 10), three).sink(sink)
    finished = job.run(config)
    assert sorted(sink.results) == [1, 2, 3, 4, 6, 7, 50]
    assert [n for n in sink.results if n < 5] == [1, 2, 3, 4]
    assert finished.events == 7


def test_several_consumers_see_the_same_events(config):
    job, doubled, evens, counts, sums = Job("job"), CollectSink(), CollectSink(), CollectSink(), CollectSink()
    numbers = stream(job, 1, 2, 3, 4)
    numbers.map(lambda n: 2 * n).sink(doubled)
    numbers.filter(lambda n: n % 2 == 0).sink(evens)
    keyed = numbers.key_by(parity, str)
    keyed.process(Count()).sink(counts)
    keyed.reduce(lambda a, b: a + b, int).sink(sums)
    finished = job.run(config)
    assert (doubled.results, evens.results) == ([2, 4, 6, 8], [2, 4])
    assert counts.results == [("odd", 1), ("even", 1), ("odd", 2), ("even", 2)]
    assert sums.results == [1, 2, 4, 6]
    assert (finished.events, finished.keys) == (4, 2)


def test_a_stream_may_be_united_with_itself(config):
    assert sorted(results(config, lambda s: s.union(s), 1, 2)) == [1, 1, 2, 2]


def test_sinks_that_are_functions_and_print(config, capsys):
    job, seen = Job("job"), []
    numbers = stream(job, 1, 2)
    numbers.sink(seen.append)
    numbers.print()
    job.run(config)
    assert seen == [1, 2]
    assert capsys.readouterr().out == "1\n2\n"


def test_several_key_types(config):
    class Plane(msgspec.Struct, frozen=True):
        maker: str
        number: int

    job = Job("job")
    numbers = stream(job, 1, 2, 3)
    sinks = [CollectSink() for _ in range(4)]
    makers = (
        (lambda n: n % 2, int),
        (lambda n: (parity(n), n % 2), tuple[str, int]),
        (lambda n: Plane(parity(n), n % 2), Plane),
        (lambda n: n % 2 == 0, bool),
    )
    for (function, key_type), sink in zip(makers, sinks, strict=True):
        numbers.key_by(function, key_type).process(Count()).sink(sink)
    job.run(config)
    assert [[count for _, count in sink.results] for sink in sinks] == [[1, 1, 2]] * 4
    assert sinks[2].results[-1] == (Plane("odd", 1), 2)


def test_functions_are_opened_and_closed_once(config):
    calls = []

    class Told(Count):
        def open(self, ctx):
            super().open(ctx)
            calls.append(("open", ctx.job, ctx.operator, ctx.attempt))

        def close(self):
            calls.append("close")

    results(config, lambda s: s.key_by(parity, str).process(Told(), uid="told"), 1, 2, 3, 4)
    assert calls == [("open", "job", "told", 1), "close"]


def test_a_job_can_run_again(config):
    job, sink = Job("job"), CollectSink()
    stream(job, 1, 2, 3).key_by(parity, str).process(Count()).sink(sink)
    for _ in range(2):
        job.run(config)
        assert sink.results == [("odd", 1), ("even", 1), ("odd", 2)]


def test_run_takes_the_jobs_defaults_and_overrides(tmp_path):
    job, sink = Job("job", {"state.backend": "filesystem", "state.dir": str(tmp_path / "one")}), CollectSink()
    stream(job, 1).sink(sink)
    job.run()
    assert (tmp_path / "one" / "checkpoints" / "job").is_dir()
    job.run(**{"state.dir": str(tmp_path / "two"), "state.backend": "memory"})
    assert (tmp_path / "two" / "checkpoints" / "job").is_dir()
    with pytest.raises(UsageError, match="either a config or overrides"):
        job.run(load_config(), **{"state.backend": "memory"})
    with pytest.raises(ConfigError, match=r"checkpointing\.intervall.*did you mean 'checkpointing\.interval'"):
        job.run(**{"checkpointing.intervall": "1s"})


# Wrong graphs


class Unfit:
    pass


def keyed(job):
    return stream(job, 1).key_by(parity, str)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda job: job.source([1, 2]), "source() takes a source such as FileSource(...), not list"),
        (lambda job: job.source(CollectionSource), "not the class CollectionSource: make an object of it"),
        (lambda job: stream(job).map(3), "map() takes a function, not int"),
        (lambda job: stream(job).filter(None), "filter() takes a function, not NoneType"),
        (lambda job: stream(job).flat_map("x"), "flat_map() takes a function, not str"),
        (lambda job: stream(job).key_by("x", str), "key_by() takes a function, not str"),
        (lambda job: stream(job).key_by(parity, float), "float"),
        (lambda job: stream(job).key_by(parity, list[str]), "list"),
        (lambda job: keyed(job).process(Count), "not the class Count: make an object of it"),
        (lambda job: keyed(job).process(parity), "process() takes an object of a KeyedProcessFunction, not function"),
        (lambda job: keyed(job).reduce(3, int), "reduce() takes a function, not int"),
        (lambda job: keyed(job).aggregate(Mean, int), "not the class Mean: make an object of it"),
        (lambda job: keyed(job).aggregate(Unfit(), int), "create_accumulator, add, get_result and merge, not Unfit"),
        (lambda job: stream(job).union([1]), "union() takes streams of the same job"),
        (lambda job: stream(job).union(stream(Job("other"))), "union() takes streams of the same job"),
        (lambda job: stream(job).sink(3), "sink() takes a sink such as FileSink(...), or a function, not int"),
        (lambda job: stream(job).sink(CollectSink), "not the class CollectSink: make an object of it"),
        (lambda job: stream(job, uid=""), "must not be empty"),
        (lambda job: stream(job, uid="a/b"), "'a/b'"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        build(Job("job"))


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "-x", "x" * 129, "ä"])
def test_job_names_that_can_not_be_folders(name):
    with pytest.raises(UsageError, match="job name"):
        Job(name)


def test_default_uids_count_by_kind():
    job = Job("job")
    numbers = stream(job)
    numbers.map(str).map(str, "mine").map(str).sink(print)
    numbers.flat_map(list).key_by(parity, str).process(Count()).print()
    assert [node.uid for node in job.nodes] == [
        "source-1",
        "map-1",
        "mine",
        "map-2",
        "sink-1",
        "flat-map-1",
        "key-by-1",
        "process-1",
        "sink-2",
    ]
    assert repr(job).startswith("Job('job': source-1, map-1, mine,")


def test_a_uid_belongs_to_one_operator():
    job = Job("job")
    numbers = stream(job, uid="in")
    numbers.map(str, uid="map-1")
    numbers.map(str)
    assert [node.uid for node in job.nodes] == ["in", "map-1", "map-2"]
    with pytest.raises(UsageError, match="uid 'in' is taken"):
        numbers.sink(print, uid="in")


def test_a_job_needs_source_and_sink(config):
    with pytest.raises(UsageError, match="job 'job' has no source"):
        Job("job").run(config)
    job = Job("job")
    stream(job, 1).map(str)
    with pytest.raises(UsageError, match="job 'job' has no sink"):
        job.run(config)


def test_two_sinks_can_not_write_to_one_place(config, tmp_path):
    job = Job("job")
    numbers = stream(job, 1)
    numbers.sink(FileSink(tmp_path / "out"))
    (tmp_path / "link").symlink_to(tmp_path / "out")
    numbers.sink(FileSink(tmp_path / "link"))
    with pytest.raises(UsageError, match="two sinks write to"):
        job.run(config)
    assert not (tmp_path / "out").exists()


# Whose fault it is


def line_of(text):
    """Where in this file it stands."""
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def divide(number):
    return 1 // number  # divides by zero


class Dividing(Count):
    def process(self, event, ctx):
        return [divide(event)]


class DividingMean(Mean):
    def add(self, event, accumulator):
        return (divide(event), 1)


class DividingSource(CollectionSource):
    def read_part(self, part, position, context):
        divide(0)


class DividingSink(CollectSink):
    def prepare(self):
        divide(0)


@pytest.mark.parametrize(
    ("uid", "build"),
    [
        ("source-1", lambda job: job.source(DividingSource([1])).print()),
        ("map-1", lambda job: stream(job, 1, 0).map(divide).print()),
        ("my-map", lambda job: stream(job, 1, 0).map(divide, uid="my-map").print()),
        ("filter-1", lambda job: stream(job, 1, 0).filter(divide).print()),
        ("flat-map-1", lambda job: stream(job, 1, 0).flat_map(lambda n: [divide(n)]).print()),
        ("key-by-1", lambda job: stream(job, 1, 0).key_by(divide, int).process(Count()).print()),
        ("process-1", lambda job: stream(job, 1, 0).key_by(parity, str).process(Dividing()).print()),
        ("reduce-1", lambda job: keyed_numbers(job).reduce(lambda a, b: divide(b), int).print()),
        ("aggregate-1", lambda job: keyed_numbers(job).aggregate(DividingMean(), tuple[int, int]).print()),
        ("sink-1", lambda job: stream(job, 1, 0).sink(divide)),
        ("sink-1", lambda job: stream(job, 1, 0).sink(DividingSink())),
    ],
)
def test_a_users_exception_names_operator_file_and_line(config, uid, build):
    job = Job("job")
    build(job)
    with pytest.raises(UserCodeError) as caught:
        job.run(config)
    error = caught.value
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert (error.operator, error.exit_code) == (uid, 10)
    assert error.problem == "ZeroDivisionError: integer division or modulo by zero"
    assert error.place == f"test_job.py:{line_of('# divides by zero')}"
    on_what = "" if uid in ("source-1", "sink-1") else " on an event"
    assert str(error) == f"operator '{uid}' failed{on_what}: {error.problem} ({error.place})"


def keyed_numbers(job):
    return stream(job, 1, 1, 0).key_by(lambda n: "k", str)


def test_an_exception_in_a_library_names_the_users_line(config):
    job = Job("job")
    stream(job, "(").map(lambda text: re.compile(text)).print()  # a regular expression that is none
    with pytest.raises(UserCodeError) as caught:
        job.run(config)
    assert caught.value.place == f"test_job.py:{line_of('# a regular expression that is none')}"


@pytest.mark.parametrize(
    ("key_type", "key", "problem"),
    [
        (str, 1, "key 1 is int"),
        (int, True, "key True is bool"),
        (int, "1", "key '1' is str"),
        (bool, 1, "key 1 is int"),
        (tuple[str, int], ("a", "b"), "'b' is str"),
        (tuple[str, int], ("a",), "has 1 elements"),
    ],
)
@pytest.mark.parametrize("operator", ["process", "reduce", "aggregate"])
def test_a_key_of_another_type_names_the_operator(config, key_type, key, problem, operator):
    job = Job("job")
    numbers = stream(job, 1).key_by(lambda n: key, key_type)
    made = {
        "process": lambda: numbers.process(Count()),
        "reduce": lambda: numbers.reduce(lambda a, b: a, int),
        "aggregate": lambda: numbers.aggregate(Mean(), tuple[int, int]),
    }[operator]()
    made.print()
    with pytest.raises(UsageError, match=re.escape(problem)) as caught:
        job.run(config)
    assert caught.value.__notes__ == [f"in operator '{operator}-1'"]


def test_a_value_of_another_type_than_declared(config):
    job = Job("job")
    stream(job, 1).key_by(parity, str).reduce(max, str).print()
    with pytest.raises(UsageError, match="state 'reduce-1/value' holds str, not int: 1"):
        job.run(config)


def test_an_exception_in_open(config):
    class Broken(Count):
        def open(self, ctx):
            divide(0)

    job = Job("job")
    stream(job, 1).key_by(parity, str).process(Broken()).print()
    with pytest.raises(UserCodeError, match=r"'process-1'.*ZeroDivisionError"):
        job.run(config)


def test_an_exception_in_close_does_not_hide_the_result(config, caplog):
    class Clumsy(Count):
        def close(self):
            divide(0)

    caplog.set_level("CRITICAL")
    assert results(config, lambda s: s.key_by(parity, str).process(Clumsy()), 1) == [("odd", 1)]


# A job that has changed since its checkpoint


def counting(sink, *, source="in", process="count", sink_uid="out", events=(1, 2, 3)):
    job = Job("job")
    numbers = stream(job, *events, uid=source)
    counted = numbers.key_by(parity, str).process(Count(), uid=process) if process else numbers.map(str)
    counted.sink(sink, uid=sink_uid)
    return job


@pytest.mark.parametrize(
    ("kind", "uid", "changed"),
    [
        ("source", "in", {"source": "other"}),
        ("operator", "count", {"process": "other"}),
        ("operator", "count", {"process": None}),
        ("sink", "out", {"sink_uid": "other"}),
    ],
)
def test_a_uid_that_the_job_does_not_know_any_more(config, kind, uid, changed):
    counting(CollectSink()).run(config)
    with pytest.raises(IncompatibleStateError, match=rf"knows a {kind} '{uid}', the job has none.*--restore none"):
        counting(CollectSink(), **changed).run(config, restore="latest")
    sink = CollectSink()
    counting(sink, **changed).run(config, restore="none")
    assert len(sink.results) == 3


def test_a_job_may_gain_operators(config):
    counting(sink := CollectSink()).run(config)
    job = Job("job")
    numbers = stream(job, 1, 2, 3, 4, uid="in").key_by(parity, str)
    numbers.process(Count(), uid="count").sink(sink, uid="out")
    numbers.process(Count(), uid="count-again").sink(new := CollectSink(), uid="new")
    job.run(config, restore="latest")
    assert sink.results == [("odd", 1), ("even", 1), ("odd", 2), ("even", 2)]
    assert new.results == [("even", 1)]


def test_a_state_of_another_type_than_stored(config):
    class CountDifferently(Count):
        def open(self, ctx):
            self.counts = ctx.value_state("count", str, default="")

    counting(CollectSink()).run(config)
    job = Job("job")
    stream(job, 1, uid="in").key_by(parity, str).process(CountDifferently(), uid="count").sink(print, uid="out")
    with pytest.raises(StateMigrationError, match="state 'count/count' was stored as int and is declared as str"):
        job.run(config, restore="latest")

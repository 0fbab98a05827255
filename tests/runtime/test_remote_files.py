"""Files of an object store as sources: found by patterns, read in ranges, with positions as local files have them."""

from __future__ import annotations

import functools
import gzip
import io
import itertools
import uuid

import fsspec
import msgspec
import pyarrow
import pyarrow.parquet
import pytest

from statestore.errors import ConfigError, UnavailableError, UsageError
from statestore_runtime import CollectSink, Job
from statestore_runtime.sources import FileSource, SourceContext
from statestore_runtime.sources.files import places
from tests.runtime.source_files import CSV, JSON_LINES, ORDERS, TRICKY_CSV, Order, zipped
from tests.runtime.source_reading import Reading, check_every_cut, drained, read, stopped


@pytest.fixture
def folder():
    """A URL; what is below it goes with the test."""
    files = fsspec.filesystem("memory")
    name = uuid.uuid4().hex
    yield f"memory://{name}"
    if files.exists(name):
        files.rm(name, recursive=True)


def put(url, data):
    with fsspec.open(url, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
    return url


def zip_of(tmp_path, data):
    zipped(tmp_path / "orders.csv.zip", data)
    return (tmp_path / "orders.csv.zip").read_bytes()


def columns(write):
    buffer = io.BytesIO()
    write(pyarrow.Table.from_pylist(list(map(msgspec.to_builtins, ORDERS))), buffer)
    return buffer.getvalue()


def stream_of(table, buffer):
    with pyarrow.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)


def test_every_cut_of_each_format(folder, tmp_path):
    for name, data in {
        "a.jsonl": JSON_LINES,
        "a.jsonl.gz": gzip.compress(JSON_LINES),
        "a.csv.zip": zip_of(tmp_path, CSV),
        "a.parquet": columns(pyarrow.parquet.write_table),
        "a.arrows": columns(stream_of),
    }.items():
        check_every_cut(functools.partial(FileSource, put(f"{folder}/{name}", data), type=Order), ORDERS)


def test_an_archive_that_tells_its_format_by_its_file(folder, tmp_path):
    url = put(f"{folder}/all.zip", zip_of(tmp_path, TRICKY_CSV))
    assert len(read(FileSource(url, type=Order))) == 7


def test_patterns_and_lists(folder):
    for number, name in enumerate(["b.jsonl", "a.jsonl", "deep/er/c.jsonl", "d.txt", ".hidden.jsonl"]):
        put(f"{folder}/{name}", f"{number}\n")
    assert FileSource(f"{folder}/*.jsonl").discover([]) == [f"{folder}/a.jsonl", f"{folder}/b.jsonl"]
    assert read(FileSource(f"{folder}/**/*.jsonl")) == [1, 0, 2]
    assert read(FileSource([f"{folder}/b.jsonl", f"{folder}/a.jsonl"])) == [0, 1]
    assert FileSource(f"{folder}/?.jsonl").discover([f"{folder}/a.jsonl"]) == [f"{folder}/b.jsonl"]
    assert FileSource(f"{folder}/*.jsonl").name == f"{folder}/*.jsonl"


def test_a_name_with_the_signs_of_a_pattern(folder):
    assert read(FileSource(put(f"{folder}/a[1].jsonl", "1\n"))) == [1]


def test_files_that_come_later(folder):
    put(f"{folder}/b.jsonl", "2\n")
    source = FileSource(f"{folder}/*.jsonl", discovery_interval=10)
    reading = Reading(source)
    assert reading.next_batch() == [2]
    put(f"{folder}/a.jsonl", "1\n")
    assert reading.look() == [f"{folder}/a.jsonl"]
    assert reading.next_batch() == [1]
    reading.close()


def test_a_file_that_changed_since_the_checkpoint(folder):
    url = put(f"{folder}/a.jsonl", "1\n2\n3\n")
    position, _ = stopped(FileSource(url, batch_size=2), 1)
    put(url, "1\n2\n3\n4\n")
    assert read(FileSource(url), position) == [3, 4]
    put(url, "7\n8\n9\n")
    with pytest.raises(UsageError, match="begins differently"):
        read(FileSource(url), position)
    put(url, "1\n")
    with pytest.raises(UsageError, match="has become shorter"):
        read(FileSource(url), position)
    fsspec.filesystem("memory").rm(url)
    with pytest.raises(UsageError, match=r"a\.jsonl, in which the checkpoint stands at line 2, is not there any more"):
        FileSource(url).read(url, position["splits"][url], SourceContext())


def test_a_file_that_is_replaced_while_it_is_read(folder):
    url = put(f"{folder}/a.jsonl", "1\n2\n")
    reading = Reading(FileSource(url, batch_size=1))
    assert reading.next_batch() == [1]
    put(url, "1\n2\n")
    with pytest.raises(UsageError, match=r"a\.jsonl has been replaced by another file while it was read"):
        drained(reading)
    reading.close()


def test_a_file_that_is_removed_when_all_of_it_was_fetched(folder):
    url = put(f"{folder}/a.jsonl", "1\n2\n")
    reading = Reading(FileSource(url, batch_size=1))
    assert reading.next_batch() == [1]
    fsspec.filesystem("memory").rm(url)
    assert drained(reading) == [2]
    reading.close()


def test_what_is_not_there(folder):
    put(f"{folder}/deep/a.jsonl", "1\n")
    for url, problem in {
        f"{folder}/*.csv": r"no file matches memory:.*; is the URL right\?",
        f"{folder}/b.jsonl": r"there is no file memory:.*; is the URL right\?",
        f"{folder}/deep": "is a folder; give a pattern such as",
        "nonsense://a.jsonl": "nonsense",
    }.items():
        with pytest.raises(ConfigError, match=problem):
            FileSource(url).discover([])
    with pytest.raises(UnavailableError, match="not there any more; put it back"):
        FileSource(f"{folder}/b.jsonl").read(f"{folder}/b.jsonl", None, SourceContext())


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sftp://user:secret@host/a.jsonl", "holds a secret; give it as storage_options="),
        ("https://host/a.jsonl?token=secret", "holds a secret; give it as storage_options="),
        ("simplecache::s3://bucket/a.jsonl", "is a chain of URLs"),
    ],
)
def test_urls_that_are_not_taken(url, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        FileSource(url)
    assert "=secret" not in str(caught.value) and ":secret" not in str(caught.value)


def test_remote_files_are_not_followed(folder):
    with pytest.raises(ConfigError, match=r"can't be followed; plain JSON lines and CSV of the local disk can"):
        FileSource(put(f"{folder}/a.jsonl", ""), follow=True).discover([])


def test_a_store_that_fails(folder, monkeypatch):
    url = put(f"{folder}/a.jsonl", "1\n")
    source = FileSource(url)
    reader = source.read(url, None, SourceContext())

    def fail(*arguments, **options):
        raise RuntimeError("the store is on fire")

    monkeypatch.setattr(reader._opened.raw._file, "read", fail, raising=False)
    with pytest.raises(UnavailableError, match=r"source unavailable at memory:.*a\.jsonl: the store is on fire"):
        reader.next_batch()
    reader.close()
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", fail)
    with pytest.raises(UnavailableError, match="the store is on fire"):
        source.discover([])


def test_a_server_that_does_not_tell_a_size(folder, monkeypatch):
    url = put(f"{folder}/a.jsonl", "1\n")
    monkeypatch.setattr(places, "info_of", lambda files, path, url: {"type": "file", "size": None})
    with pytest.raises(ConfigError, match="does not tell the size"):
        FileSource(url).read(url, None, SourceContext())


def test_a_job_that_reads_from_s3(s3_url, monkeypatch):
    monkeypatch.setattr(places, "BLOCK_BYTES", 4096)
    numbers = list(range(20_000))
    for part in range(3):
        data = "".join(f"{number}\n" for number in numbers[part::3]).encode()
        put(f"{s3_url}/part-{part}.jsonl{'.gz' if part == 1 else ''}", gzip.compress(data) if part == 1 else data)
    sink = CollectSink()
    job = Job("numbers", {"state.backend": "memory"})
    job.source(FileSource(f"{s3_url}/part-*", type=int)).sink(sink)
    job.run()
    assert sorted(sink.results) == numbers
    position, batches = stopped(FileSource(f"{s3_url}/part-0*", type=int, batch_size=1000), 3)
    assert list(itertools.chain(*batches)) + read(FileSource(f"{s3_url}/part-0*", type=int), position) == numbers[::3]


def test_an_object_of_s3_that_is_replaced_between_two_ranges(s3_url, monkeypatch):
    monkeypatch.setattr(places, "BLOCK_BYTES", 4096)
    url = put(f"{s3_url}/a.jsonl", "1\n" * 200_000)
    reading = Reading(FileSource(url, batch_size=1000))
    assert reading.next_batch() == [1] * 1000
    put(url, "2\n" * 200_000)
    with pytest.raises((UnavailableError, UsageError), match=r"a\.jsonl"):
        drained(reading)
    reading.close()

"""Lines that are bad, or good and made differently: the same ones are bad in record batches as event by event."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from statestore_runtime.sources.files.layouts import CsvLayout, JsonLayout
from statestore_runtime.sources.files.row_schema import RowSchema
from tests.runtime.batch_reading import GOOD, HEADER, Event, check_same, rows_of

# Good and bad lines. The first line is the one that others are compared with.

LINES = [
    GOOD,
    GOOD.replace("1.5", "null"),
    '{"key":"b","value":-2,"price":-0.25e-3,"is_new":false}',
    '{"key":"b","value":-2}',
    '{"key":"ü, ö","value":-0,"price":2,"is_new":false}',
    '{"key":"q\\"uote","value":7,"price":1e2,"is_new":true}',
    '{"value":9223372036854775807,"key":"order","price":1E+2,"is_new":true}',
    '{"key":"n","value":007,"price":1.5,"is_new":true}',
    '{"key":"n","value":0x7,"price":1.5,"is_new":true}',
    '{"key":"n","value":-01,"price":1.5,"is_new":true}',
    '{"key":"n","value":1.0,"price":1.5,"is_new":true}',
    '{"key":"n","value":1,"price":1.,"is_new":true}',
    '{"key":"n","value":1,"price":.5,"is_new":true}',
    '{"key":"n","value":1,"price":NaN,"is_new":true}',
    '{"key":"n","value":1,"price":1e999,"is_new":true}',
    '{"key":"n","value":1,"price":1.5,"is_new":1}',
    '{"key":"n","value":1,"price":1.5,"is_new":True}',
    '{"key":"n","value":"1","price":1.5,"is_new":true}',
    '{"key":1,"value":1,"price":1.5,"is_new":true}',
    '{"key":null,"value":1,"price":1.5,"is_new":true}',
    '{"key":"a","value":null,"price":1.5,"is_new":true}',
    '{"key":"a","value":1,"price":1.5,"is_new":true,"more":{"x":[1]}}',
    '{"key":"a","value":1,"price":1.5,"is_new":true}' * 2,
    '{"key":"a","value":1,"price":1.5,"is_new":true',
    '{"key":"a","value":1,"price":1.5,"is_new":true}}',
    '{"key":"a,"value":1,"price":1.5,"is_new":true}',
    '{"key":"a"","value":1,"price":1.5,"is_new":true}',
    '{"key":"","value":1,"price":1.5,"is_new":true}',
    '{"key":"a\tb","value":1,"price":1.5,"is_new":true}',
    '{"key":"a\x7fb","value":1,"price":1.5,"is_new":true}',
    '{"key":"a","key":"b","value":1,"price":1.5,"is_new":true}',
    '{"key":"',
    GOOD + "\r",
    GOOD + " ",
    " " + GOOD,
    "",
    " ",
    "[]",
    '"text"',
    "{}",
]


def check_lines(path, *files):
    for lines in files:
        path.write_text("\n".join(lines), newline="")
        check_same(path)


@pytest.mark.parametrize("number", range(len(LINES)))
def test_one_odd_line(tmp_path, number):
    line = LINES[number]
    check_lines(tmp_path / "a.jsonl", [GOOD, line, GOOD, ""], [line, line, GOOD, GOOD])


_WORDS = st.sampled_from(["a", "b", "", "x,y", 'q"', "\\", "ü", "\t", "}", "{"])
_NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1), st.floats(), st.none(), st.just("1"), st.just(True)
)


@st.composite
def records(draw):
    record = {"key": draw(st.one_of(_WORDS, _NUMBERS)), "value": draw(_NUMBERS)}
    if draw(st.booleans()):
        record["price"] = draw(_NUMBERS)
    if draw(st.integers(0, 5)) == 0:
        record = dict(reversed(record.items()))
    if draw(st.integers(0, 5)) == 0:
        record["more"] = draw(_NUMBERS)
    return json.dumps(
        record, ensure_ascii=draw(st.booleans()), separators=draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    )


@st.composite
def damaged(draw, texts):
    """Lines of which some have a character changed, taken out or put in."""
    lines = []
    for text in draw(st.lists(texts, min_size=1, max_size=8)):
        if draw(st.integers(0, 3)) == 0 and text:
            place = draw(st.integers(0, len(text) - 1))
            rest = text[place + draw(st.integers(0, 1)) :]
            text = text[:place] + draw(st.sampled_from(['"', ",", "}", "{", "0", "-", " ", "\r", "", "e"])) + rest
        lines.append(text)
    return lines


@given(damaged(st.one_of(st.just(GOOD), records())))
@settings(deadline=None, max_examples=150)
def test_lines_at_random(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_text("\n".join(lines) + "\n", newline="")
    check_same(path)


# CSV

CSV_ROWS = [
    "a,1,1.5,true",
    "b,-2,,false",
    ",3,2,false",
    '"x,y",4,1,true',
    '"two\nlines",5,1,true',
    'a"b,6,1,true',
    "a,007,1,true",
    "a, 8,1,true",
    "a,9,nan,true",
    "a,1e1,1,true",
    "a,10,1e999,true",
    "a,11,1,TRUE",
    "a,12,1,1",
    "a,13,1,",
    "a,,1,true",
    "a,14,1",
    "a,15,1,true,5",
    "",
    "a\tb,16,1,true",
    "ü,17,1,true\r",
    '"open',
]


@pytest.mark.parametrize("number", range(len(CSV_ROWS)))
def test_one_odd_row(tmp_path, number):
    good, row = CSV_ROWS[0], CSV_ROWS[number]
    check_lines(tmp_path / "a.csv", [HEADER, good, row, good, ""], ["\ufeff" + HEADER, row, good, good])


@given(damaged(st.sampled_from(CSV_ROWS)), st.booleans())
@settings(deadline=None, max_examples=150)
@example(["a,1,1.5,true", '"two', 'lines",5,1,true', "a,2,1,true", "a,3,x,true"], True)
def test_rows_at_random(tmp_path_factory, lines, is_wide):
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    header = HEADER if is_wide else "value,more,key,price"
    path.write_text("\n".join([header, *lines]) + "\n", newline="")
    check_same(path)


# What Arrow converts: else all of the above would say nothing about it.


class Half(msgspec.Struct):
    key: str
    value: int


JSON_BLOCKS = [
    ([GOOD, GOOD.replace("1.5", "-2e-3"), GOOD.replace('"a"', '"ü"')], True),
    ([GOOD.replace(":", ": ").replace(",", ", ")] * 2, True),
    (["{ " + GOOD[1:-1] + " }"] * 2, True),
    ([GOOD.replace("true", "false").replace("}", ',"more":"x"}')] * 2, True),
    ([GOOD.replace("}", ',"more":null}'), GOOD.replace("}", ',"more":12.5}')], True),
    ([GOOD, GOOD.replace("1.5", "null")], False),
    ([GOOD, GOOD.replace('"a"', '"a,b"')], False),
    ([GOOD, "", GOOD], False),
    ([GOOD, GOOD.replace(":", ": ")], False),
    ([GOOD.replace("}", ',"more":[1]}')] * 2, False),
]


@pytest.mark.parametrize(("lines", "is_certain"), JSON_BLOCKS)
def test_lines_that_are_made_alike(lines, is_certain):
    for declared in (Event, Half):
        for end in ("", "\n"):
            made = JsonLayout(RowSchema(declared)).batch_of(("\n".join(lines) + end).encode())
            if is_certain or (declared is Half and "null" in "".join(lines)):
                events = [msgspec.json.decode(line, type=declared) for line in lines]
                assert made.to_pylist() == rows_of(events)
            else:
                assert made is None


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("a,1,2.5,true\nb,-2,,false\n", [(1, 2.5), (-2, None)]),
        ("ü,3,1e3,true", [(3, 1000.0)]),
        ('"a",1,2.5,true\n', None),
        ("a,01,2.5,true\n", None),
        ("a,1,2.5\n", None),
        ("a,1,2.5,true\n\n", None),
        ("\ufeffa,1,2.5,true\n", None),
    ],
)
def test_rows_that_are_made_alike(text, numbers):
    made = CsvLayout(RowSchema(Event), HEADER.split(","), [""]).batch_of(text.encode())
    assert (made if made is None else [(row["value"], row["price"]) for row in made.to_pylist()]) == numbers

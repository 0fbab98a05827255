"""Columns of values from columns of text, where that is certain to give what decoding the values one by one gives.

What is not certain gives None: whoever asked decodes the values one by one then, which says what is wrong with them, if anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from statestore.reading.arrow import import_pyarrow

if TYPE_CHECKING:
    import pyarrow

NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"
"""Of JSON."""

_NOT_IN_STRINGS = bytes(range(32)) + b'"'

_END = 1 << 30
"""Behind every text."""


class Texts:
    """Makes columns of text into columns of values. Threads may share it. Raises ConfigError when pyarrow is not installed.

    Attributes
    ----------
    converters : dict
        By type of the values; each takes a column without nulls, of UTF-8.
    """

    def __init__(self) -> None:
        self._pa = import_pyarrow()
        from pyarrow import compute

        self._compute: Any = compute
        self.converters: dict[Any, Callable[[pyarrow.Array], pyarrow.Array | None]] = {
            str: lambda texts: texts,
            int: self._integers,
            float: self._floats,
            bool: self._booleans,
        }

    def within(self, texts: pyarrow.Array, prefix: bytes, suffix: bytes) -> pyarrow.Array | None:
        """What is between the same beginning and end of all texts; None when one has another."""
        compute = self._compute
        if prefix:
            if not self._all(compute.starts_with(texts, prefix)):
                return None
            texts = compute.binary_replace_slice(texts, 0, len(prefix), b"")
        if suffix:
            if not self._all(compute.ends_with(texts, suffix)):
                return None
            texts = compute.binary_replace_slice(texts, -len(suffix), _END, b"")
        return texts

    def are_within_strings(self, texts: pyarrow.Array) -> bool:
        """Whether no text has a quote or a control character; a backslash is not looked for."""
        compute = self._compute
        assert texts.offset == 0, "it was just made"
        size = compute.sum(compute.binary_length(texts), min_count=0).as_py()
        data = bytes(texts.buffers()[2] or b"")[:size]
        return len(data.translate(None, _NOT_IN_STRINGS)) == len(data)

    def are_words(self, texts: pyarrow.Array) -> bool:
        """Whether all are what JSON has without quotes: numbers, true, false and null."""
        return self._match(texts, f"{NUMBER}|true|false|null")

    def _match(self, texts: pyarrow.Array, pattern: str) -> bool:
        return self._all(self._compute.match_substring_regex(texts, f"^({pattern})$"))

    def _all(self, conditions: pyarrow.Array) -> bool:
        return bool(self._compute.all(conditions, min_count=0).as_py())

    def _integers(self, texts: pyarrow.Array) -> pyarrow.Array | None:
        compute = self._compute
        try:
            numbers = texts.cast(self._pa.int64())
        except self._pa.ArrowInvalid:
            return None
        # Arrow reads 007, 0x7 and -0 as well.
        are_zero = compute.equal(texts, "0")
        if (
            self._all(compute.equal(compute.starts_with(texts, "0"), are_zero))
            and not compute.any(compute.starts_with(texts, "-0")).as_py()
        ):
            return numbers
        return None

    def _floats(self, texts: pyarrow.Array) -> pyarrow.Array | None:
        if not self._match(texts, NUMBER):
            return None
        numbers = texts.cast(self._pa.float64())
        return numbers if self._all(self._compute.is_finite(numbers)) else None

    def _booleans(self, texts: pyarrow.Array) -> pyarrow.Array | None:
        compute = self._compute
        are_true = compute.equal(texts, "true")
        return are_true if self._all(compute.or_(are_true, compute.equal(texts, "false"))) else None

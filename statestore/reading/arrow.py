"""A state's keys and values as Arrow record batches. Needs the extra `arrow`."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from statestore.errors import ConfigError, UsageError
from statestore.keys import KeyCodec
from statestore.reading.values import key_codec_of

if TYPE_CHECKING:
    import pyarrow

    from statestore.reading.state import StateInfo

Items = Iterator[tuple[Any, Any]]

_ARROW_TYPES = (bytes, datetime.datetime, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal)
_PLAIN = (int, float, str, bytes)


def import_pyarrow() -> Any:
    """The package. Raises ConfigError when it is not installed."""
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError("pyarrow is not installed", hint="install the extra 'statestore[arrow]'") from error
    return pyarrow


def record_batches(
    info: StateInfo, key_codec: KeyCodec, items: Items, value_type: pyarrow.DataType | None, batch_rows: int
) -> pyarrow.RecordBatchReader:
    """See `StoredState.to_arrow`."""
    pa = import_pyarrow()
    column = _MapColumn(pa, info) if info.kind == "map" else _Column(pa)
    first = list(islice(items, batch_rows))
    with _Explained(pa, info.name):
        wanted = value_type or column.type_of(column.plain(first))
    schema = pa.schema([("key", _key_type(pa, key_codec)), ("value", wanted)])

    def batches() -> Iterator[pyarrow.RecordBatch]:
        rows = first
        while rows:
            with _Explained(pa, info.name):
                values = column.plain(rows)
                if value_type is None and rows is not first:
                    _check_conforms(pa, column.type_of(values), wanted)
                keys = pa.array([_plain_key(key) for key, _ in rows], schema.field("key").type)
                batch = pa.record_batch([keys, pa.array(values, wanted)], schema=schema)
            yield batch
            rows = list(islice(items, batch_rows))

    return pa.RecordBatchReader.from_batches(schema, batches())


class _Column:
    """What a column of values is made of."""

    def __init__(self, pa: Any):
        self._pa = pa

    def plain(self, rows: list[tuple[Any, Any]]) -> list[Any]:
        """The rows' values as Arrow takes them."""
        return [_plain_value(value) for _, value in rows]

    def type_of(self, values: list[Any]) -> pyarrow.DataType:
        """Type that all of them have in common. Raises ArrowException."""
        return self._pa.infer_type(values)


class _MapColumn(_Column):
    """The same of dicts, which become maps."""

    def __init__(self, pa: Any, info: StateInfo):
        super().__init__(pa)
        self._map_key_type = _key_type(pa, key_codec_of(info.map_key_type or "", None, info.name))

    def plain(self, rows: list[tuple[Any, Any]]) -> list[Any]:
        """Lists of pairs."""
        return [[(_plain_key(key), _plain_value(item)) for key, item in entries.items()] for _, entries in rows]

    def type_of(self, values: list[Any]) -> pyarrow.DataType:
        """Map type that all of them have in common. Raises ArrowException."""
        return self._pa.map_(self._map_key_type, super().type_of([item for pairs in values for _, item in pairs]))


def _key_type(pa: Any, codec: KeyCodec) -> pyarrow.DataType:
    if codec.is_scalar:
        return {str: pa.string(), int: pa.int64(), bytes: pa.binary(), bool: pa.bool_()}[codec.declared]
    names = getattr(codec.runtime_type, "__struct_fields__", range(len(codec.parts)))
    return pa.struct([(str(name), _key_type(pa, part)) for name, part in zip(names, codec.parts, strict=True)])


def _plain_key(key: Any) -> Any:
    if isinstance(key, msgspec.Struct):
        key = msgspec.structs.astuple(key)
    return tuple(map(_plain_key, key)) if isinstance(key, tuple) else key


def _plain_value(value: Any) -> Any:
    return (
        value
        if isinstance(value, _PLAIN)
        else msgspec.to_builtins(value, builtin_types=_ARROW_TYPES, enc_hook=_as_list)
    )


def _as_list(array: Any) -> Any:
    return array.tolist()


def _check_conforms(pa: Any, found: pyarrow.DataType, wanted: pyarrow.DataType) -> None:
    """Arrow would cut off what does not fit the type: fractions, fields of a struct. Raises ArrowException."""
    schemas = [pa.schema([("value", value_type)]) for value_type in (wanted, found)]
    if pa.unify_schemas(schemas, promote_options="permissive").field("value").type != wanted:
        raise pa.ArrowInvalid(f"the first ones are {wanted}, later ones {found}")


class _Explained:
    """`with` block in which what Arrow can't do is the caller's error."""

    def __init__(self, pa: Any, state: str):
        self._errors, self._state = (pa.ArrowException, OverflowError), state

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, self._errors):
            raise UsageError(
                f"values of state '{self._state}' have no common Arrow type: {error}; give `value_type`, or take another format"
            ) from error

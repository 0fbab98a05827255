"""numpy's numbers and arrays as bytes. numpy is imported only where there is one (extra `numpy`).

array = MessagePack extension ARRAY: array of dtype as text, shape (nil of a number), values in C order
"""

from __future__ import annotations

import ast
import sys
from typing import Any, get_origin

import msgspec

from statestore.errors import UnavailableError

ARRAY = 3
"""Code of the MessagePack extension."""

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[str, list[int] | None, bytes]).decode


def array_type_name(cls: type) -> str | None:
    """Readable name of a type of numpy that can be stored, None for any other."""
    numpy: Any = sys.modules.get("numpy")  # where it was not imported, there can be none of its types
    if numpy is None:
        return None
    numbers = (numpy.number, numpy.bool_, numpy.datetime64, numpy.timedelta64)
    return f"numpy.{cls.__name__}" if cls is numpy.ndarray or issubclass(cls, numbers) else None


def encode_array(value: Any) -> msgspec.msgpack.Ext:
    """What stands for an array or number of numpy in MessagePack. Raises TypeError when it is none, or holds Python objects."""
    cls = type(value)
    if array_type_name(cls) is None:
        raise TypeError(f"{cls.__qualname__} can't be stored here")
    if value.dtype.hasobject:
        raise TypeError(f"an array of dtype {value.dtype} can't be stored: it holds Python objects")
    from numpy.lib.format import dtype_to_descr

    described = dtype_to_descr(value.dtype)
    dtype = described if isinstance(described, str) else repr(described)
    shape = value.shape if value.ndim or cls.__name__ == "ndarray" else None
    return msgspec.msgpack.Ext(ARRAY, _pack((dtype, shape, value.tobytes())))


def decode_array(data: bytes | memoryview) -> Any:
    """The array or number of numpy that `data` stands for.

    Raises
    ------
    ValueError
        It stands for none.
    UnavailableError
        numpy is not installed.
    """
    try:
        import numpy
        from numpy.lib.format import descr_to_dtype
    except ImportError as error:
        raise UnavailableError("numpy", "this Python", error, hint="pip install 'statestore[numpy]'") from error
    try:
        text, shape, values = _unpack(data)
        dtype = descr_to_dtype(ast.literal_eval(text) if text.startswith("[") else text)
        if dtype.hasobject:
            raise ValueError(f"dtype {text} holds Python objects")
        array = numpy.ndarray(shape or (), dtype, bytearray(values))  # of its own memory, so that it can be changed
    except (TypeError, SyntaxError, msgspec.MsgspecError) as error:
        raise ValueError(f"no array: {error}") from error
    return array[()] if shape is None else array


def as_declared(declared: Any, value: Any) -> Any:
    """A value of a declared type of numpy. Raises TypeError when it is of another."""
    cls = get_origin(declared) or declared
    if not isinstance(value, cls):
        raise TypeError(f"expected {cls.__name__}, got {type(value).__name__}")
    return value

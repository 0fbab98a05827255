"""Files of orders, plain and compressed."""

from __future__ import annotations

import dataclasses
import gzip
import zipfile

import msgspec
import zstandard


class Order(msgspec.Struct, frozen=True):
    id: int
    city: str
    price: float | None = None


@dataclasses.dataclass(frozen=True)
class Item:
    id: int
    city: str | None = None
    is_new: bool = False


ORDERS = [Order(number, f"city {number}", number / 4 if number % 3 else None) for number in range(11)]
JSON_LINES = b"".join(msgspec.json.encode(order) + b"\n" for order in ORDERS)
CSV = "id,city,price\n" + "".join(f"{o.id},{o.city},{'' if o.price is None else o.price}\n" for o in ORDERS)

# Blank lines, CRLF, fields over several lines, quotes, no newline at the end: 7 records.
TRICKY_CSV = 'id,city,price\r\n0,a,1\r\n\r\n1,"b\nc",2\n2,"d,\n\n""e""\n",\n3,f,4\n\n\n4,"g",5\n5,"\n",6\n6,h,'
TRICKY_CITIES = ["a", "b\nc", 'd,\n\n"e"\n', "f", "g", "\n", "h"]


def zipped(path, data):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", "not this one")
        archive.writestr(path.name.removesuffix(".zip"), data)


WRITERS = {
    "": lambda path, data: path.write_bytes(data),
    ".gz": lambda path, data: path.write_bytes(gzip.compress(data)),
    ".zst": lambda path, data: path.write_bytes(zstandard.compress(data)),
    ".zip": zipped,
}


def file(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS.get(path.suffix, WRITERS[""])(path, data.encode() if isinstance(data, str) else data)
    return path

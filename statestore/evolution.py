"""What has changed between two schemas, and whether values stored under the old one can be read as the new type.

Readable without help: a field added with a default or removed, a field renamed that is still stored under its old name, a type widened (int
to float, T to T | None, an Enum or Literal with more values, a list to a tuple or a set to a frozenset), a limit dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import msgspec

from statestore.schema import (
    Array,
    Choices,
    Field,
    Map,
    Node,
    Object,
    Reference,
    Scalar,
    Schema,
    Tuple,
    Union,
)


class Difference(msgspec.Struct, frozen=True):
    """One thing that has changed."""

    field: str
    """Where, as in `address.lines[]`; empty for the value itself."""
    old: str
    new: str
    change: str
    """What has changed, readable."""
    problem: bool = False
    """Whether old values can't be read because of it."""

    def __str__(self) -> str:
        return f"field '{self.field}' {self.change}" if self.field else f"the value {self.change}"


def differences(old: Schema, new: Schema) -> list[Difference]:
    """All changes from `old` to `new`; old values can be read as the new type unless one is a problem."""
    return _Comparison(old, new).nodes("", old.root, new.root)


_SAME_BYTES = {("int", "float"), ("bytes", "bytearray"), ("bytearray", "bytes")}

# What can be read as what, with nothing lost.
_ARRAY_FORMS = {
    "list": ("tuple",), "tuple": ("list",), "set": ("frozenset", "list", "tuple"), "frozenset": ("set", "list", "tuple"),
}  # fmt: skip

_OPEN = ("Any", "None", "bool", "int", "float", "str", "bytes")
"""Types whose values stay what they are where the type is left open."""


class _Comparison:
    def __init__(self, old: Schema, new: Schema):
        self._old, self._new = old, new
        self._compared: set[tuple[int, int]] = set()

    def nodes(self, path: str, old: Node, new: Node) -> list[Difference]:
        match old, new:
            case Reference(old_index), Reference(new_index):
                if (old_index, new_index) in self._compared:
                    return []
                self._compared.add((old_index, new_index))
                return self._objects(path, self._old.objects[old_index], self._new.objects[new_index])
            case Union(members), _:
                return self._from_union(path, old, members, new)
            case _, Union(members):
                return self._whole(path, old, new, self._into_union(path, old, new, members))
            case Scalar(one), Scalar(other) if one == other or (one, other) in _SAME_BYTES:
                return self._limits(path, old, new, changed=one != other)
            case _, Scalar("Any") if self._stays(old):
                return [self._differs(path, old, new, problem=False)]
            case Choices(before), Choices(after):
                missing = [value for value in before if value not in after]
                if missing:
                    return [self._note(path, old, new, f"has lost {', '.join(map(repr, missing))}", problem=True)]
                return [] if before == after else [self._differs(path, old, new, problem=False)]
            case Choices(values), Scalar(name) if all(type(value).__name__ == name for value in values):
                return self._limits(path, old, new, changed=True)
            case Array(form, item), Array(new_form, new_item) if new_form in (form, *_ARRAY_FORMS[form]):
                return [
                    *self._limits(path, old, new, changed=form != new_form),
                    *self.nodes(f"{path}[]", item, new_item),
                ]
            case Tuple(items), Tuple(new_items) if len(items) == len(new_items):
                pairs = enumerate(zip(items, new_items, strict=True))
                return [found for n, (one, other) in pairs for found in self.nodes(f"{path}[{n}]", one, other)]
            case Map(key, value), Map(new_key, new_value):
                return [
                    *self._limits(path, old, new),
                    *self.nodes(f"{path}{{key}}", key, new_key),
                    *self.nodes(f"{path}{{}}", value, new_value),
                ]
        return [self._differs(path, old, new)]

    def _note(self, path: str, old: Node, new: Node, change: str, *, problem: bool) -> Difference:
        return Difference(path.lstrip("."), self._old.text(old), self._new.text(new), change, problem)

    def _differs(self, path: str, old: Node, new: Node, *, problem: bool = True) -> Difference:
        change = f"was {self._old.text(old)} and is {self._new.text(new)}"
        return self._note(path, old, new, change, problem=problem)

    def _limits(
        self, path: str, old: Scalar | Array | Map | Choices, new: Scalar | Array | Map, *, changed: bool = False
    ) -> list[Difference]:
        before = {} if isinstance(old, Choices) else old.limits
        if before == new.limits and not changed:
            return []
        tighter = any(before.get(name) != limit for name, limit in new.limits.items())
        return [self._differs(path, old, new, problem=tighter)]

    def _from_union(self, path: str, old: Node, members: Sequence[Node], new: Node) -> list[Difference]:
        """Each type of the old union must find its place."""
        new_members: Sequence[Node] = new.members if isinstance(new, Union) else [new]
        found = [one for member in members for one in self._into_union(path, member, new, new_members)]
        return found if old == new else self._whole(path, old, new, found)

    def _whole(self, path: str, old: Node, new: Node, found: list[Difference]) -> list[Difference]:
        """Of a union: what has changed in it, said once, and what within its members."""
        own = path.lstrip(".")
        problem = any(one.problem and one.field == own for one in found)
        return [self._differs(path, old, new, problem=problem), *(one for one in found if one.field != own)]

    def _into_union(self, path: str, old: Node, new: Node, members: Sequence[Node]) -> list[Difference]:
        """What has changed from a type to the one among several that it fits best."""
        tried = sorted((self._tried(path, old, member) for member in members), key=_badness)
        if any(one.problem for one in tried[0]) and not (len(tried[0]) > 1 or _is_deeper(tried[0], path)):
            return [self._differs(path, old, new)]
        return tried[0]

    def _tried(self, path: str, old: Node, new: Node) -> list[Difference]:
        before = set(self._compared)
        found = self.nodes(path, old, new)
        if any(one.problem for one in found):
            self._compared = before
        return found

    def _stays(self, old: Node) -> bool:
        match old:
            case Scalar(name):
                return name in _OPEN
            case Array("list", item):
                return self._stays(item)
            case Map(key, value):
                return self._stays(key) and self._stays(value)
            case Choices():
                return True
        return False

    def _objects(self, path: str, old: Object, new: Object) -> list[Difference]:
        if (old.is_positional, old.tag) != (new.is_positional, new.tag):
            what = "is stored otherwise" if old.is_positional != new.is_positional else "has another tag"
            return [Difference(path.lstrip("."), _form(old), _form(new), what, True)]
        if old.is_positional:
            return self._positions(path, old, new)
        before, after = {field.name: field for field in old.fields}, {field.name: field for field in new.fields}
        found = [self._removed(path, field, new) for name, field in before.items() if name not in after]
        for name, field in after.items():
            found += self._fields(path, before[name], field) if name in before else [self._added(path, field)]
        return found

    def _positions(self, path: str, old: Object, new: Object) -> list[Difference]:
        found: list[Difference] = []
        for before, after in zip_longest(old.fields, new.fields):
            if after is None:
                found.append(self._removed(path, before, new))
            elif before is None:
                found.append(self._added(path, after))
            elif before.name != after.name:  # values would silently change places
                was, now = f"{path}.{before.name}".lstrip("."), f"{path}.{after.name}".lstrip(".")
                return [*found, Difference(was, was, now, f"is where '{now}' is now, in an array", True)]
            else:
                found += self._fields(path, before, after)
        return found

    def _removed(self, path: str, field: Field, new: Object) -> Difference:
        change = "was removed" + (", and the class takes no field it does not have" if new.is_strict else "")
        return Difference(f"{path}.{field.name}".lstrip("."), self._old.text(field.type), "", change, new.is_strict)

    def _added(self, path: str, field: Field) -> Difference:
        change = "is new, and has no default" if field.required else "was added, with a default"
        return Difference(f"{path}.{field.name}".lstrip("."), "", self._new.text(field.type), change, field.required)

    def _fields(self, path: str, old: Field, new: Field) -> list[Difference]:
        path = f"{path}.{old.name}"
        found = self.nodes(path, old.type, new.type)
        if new.required and not old.is_always_stored:
            found.append(
                self._note(path, old.type, new.type, "is not always stored, and has no default now", problem=True)
            )
        elif not old.is_always_stored and old.default != new.default:
            change = f"is not stored where it is its default, which was {old.default} and is {new.default}"
            found.append(self._note(path, old.type, new.type, change, problem=True))
        elif old.required != new.required:
            change = "is required now" if new.required else "has a default now"
            found.append(self._note(path, old.type, new.type, change, problem=False))
        return found


def _badness(found: list[Difference]) -> tuple[bool, bool, int]:
    has_problem = any(one.problem for one in found)
    return has_problem, has_problem and len(found) == 1, len(found)


def _is_deeper(found: list[Difference], path: str) -> bool:
    return any(len(one.field) > len(path.lstrip(".")) for one in found)


def _form(one: Object) -> str:
    form = "array" if one.is_positional else "map"
    return form if one.tag is None else f"{form} with {one.tag[0]} = {one.tag[1]!r}"

"""Encodes builtin values as JSON, by exact type, for the way into the isolation and out of it.

Both sides use it. Decoding makes builtin values only, from any input.
"""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

PLAIN_INT = 1 << 53  # beyond it JSON readers disagree
DEPTH = 60  # nesting of a value
HASHED = 20_000  # members of a set or dict: hashes that collide on purpose cost the square of it


class Unplain(Exception):
    """A value that is not plain data."""


def encode(value: object, depth: int = 0) -> object:
    """A builtin value as JSON data. Raises Unplain for any other.

    The exact type counts, so that no object with methods of its own passes for a number or a list.
    """
    kind = type(value)
    if depth > DEPTH:
        raise Unplain("nesting")
    if value is None or kind in (bool, str, float):
        return value
    if kind is int:
        return value if -PLAIN_INT < value < PLAIN_INT else {"int": hex(value)}  # type: ignore[operator, arg-type]
    if kind is list:
        return [encode(item, depth + 1) for item in value]  # type: ignore[attr-defined]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [encode(item, depth + 1) for item in value]}  # type: ignore[attr-defined]
    if kind in (dict, OrderedDict, defaultdict, Counter):
        pairs = dict.items(value)  # type: ignore[arg-type]
        return {"dict": [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in pairs]}
    if kind in (bytes, bytearray):
        return {kind.__name__: value.hex()}  # type: ignore[attr-defined]
    if kind is complex:
        return {"complex": [value.real, value.imag]}  # type: ignore[attr-defined]
    if kind is range:
        return {"range": [value.start, value.stop, value.step]}  # type: ignore[attr-defined]
    raise Unplain(kind.__name__)


def decode(data: Any) -> Any:
    """The value that `encode` encoded. Raises ValueError for data that is not from `encode`."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise ValueError("no tag of plain data")
    ((tag, inside),) = data.items()
    if tag in ("set", "frozenset", "dict") and len(inside) > HASHED:
        raise ValueError(f"more than {HASHED} members")
    if tag == "int":
        return int(inside, 16)
    if tag == "dict":
        return {decode(key): decode(item) for key, item in inside}
    if tag in ("bytes", "bytearray"):
        return (bytes if tag == "bytes" else bytearray).fromhex(inside)
    if tag in ("complex", "range"):
        return (complex if tag == "complex" else range)(*inside)
    kinds: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
    if tag not in kinds:
        raise ValueError("no tag of plain data")
    return kinds[tag](map(decode, inside))

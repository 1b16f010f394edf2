"""Rows of a JSONL or Parquet file, each with its place for error messages.

Content is data and never evaluated.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.errors import DataError, did_you_mean
from whet.types import Message

LINES = (".jsonl", ".ndjson", ".json")
ROLES = ("system", "user", "assistant")  # of a row's messages


@dataclass(frozen=True, slots=True)
class Row:
    where: str  # "train.jsonl:12"
    values: dict[str, Any]

    def text(self, column: str) -> str | None:
        """A cell as text; None where it is missing, null or blank.

        Raises DataError for a list, a table or bytes.
        """
        value = self.values.get(column)
        if value is None or value != value:  # NaN: an empty cell of a column of numbers
            return None
        if isinstance(value, (list, dict, bytes)):
            raise DataError(
                f"{self.where}: column {column!r} holds {type(value).__name__}; "
                "it must be text or a number"
            )
        text = str(value)
        self._check_unicode(text, column)
        return text if text.strip() else None

    def messages(self, column: str) -> list[Message] | None:
        """A cell as messages; None where it is no list of {role, content} with ROLES.

        Raises DataError for text that is not valid Unicode.
        """
        cell = self.values.get(column)
        if not isinstance(cell, list):
            return None
        messages: list[Message] = []
        for entry in cell:
            if not isinstance(entry, dict):
                return None
            role, content = entry.get("role"), entry.get("content")
            if role not in ROLES or not isinstance(content, str):
                return None
            self._check_unicode(content, column)
            messages.append({"role": role, "content": content})
        return messages

    def _check_unicode(self, text: str, column: str) -> None:
        """Raises DataError for half a surrogate pair, which no file can hold."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{self.where}: column {column!r} is not valid Unicode (half of a surrogate pair)"
            ) from None


def thinking_of(values: Mapping[str, Any]) -> dict[str, bool]:
    """How the thinking switch stands: from a row to a problem's meta, and back.

    >>> thinking_of({"thinking": False, "id": 7}), thinking_of({"thinking": "First, …"})
    ({'thinking': False}, {})
    """
    switch = values.get("thinking")
    return {"thinking": switch} if isinstance(switch, bool) else {}


def read_rows(path: Path, columns: Sequence[str] | None, optional: Sequence[str] = ()) -> list[Row]:
    """All rows of a file. It must have `columns` and may have `optional`; None: read every column.

    Raises DataError, which names the line and the cure.
    """
    if not path.exists():
        raise DataError(f"no data file at {path}")
    if path.is_dir():
        raise DataError(f"{path} is a directory; name one of its .jsonl or .parquet files")
    if path.suffix not in (*LINES, ".parquet"):
        raise DataError(
            f"{path}: cannot read {path.suffix or 'a file without a suffix'}; "
            "give .jsonl or .parquet"
        )
    rows = (
        _parquet(path, columns, optional)
        if path.suffix == ".parquet"
        else _lines(path, columns or [])
    )
    if not rows:
        raise DataError(f"{path}: it is empty; there is not one row")
    return rows


def _lines(path: Path, columns: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append(_row(line, f"{path}:{number}"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if rows:
        known = dict.fromkeys(name for row in rows for name in row.values)
        _demand_columns(path, columns, list(known))
    return rows


def _row(line: bytes, where: str) -> Row:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{where}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: JSON beyond all bounds ({' '.join(str(error).split())[:80]})"
        ) from None
    if not isinstance(values, dict):
        raise DataError(
            f"{where}: a row must be a JSON object, one a line, not {type(values).__name__}"
        )
    return Row(where, values)


def _parquet(path: Path, columns: Sequence[str] | None, optional: Sequence[str]) -> list[Row]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow: pip install 'whet[data]'"
        ) from None
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        _demand_columns(path, columns or [], names)
        if columns is not None:
            columns = [*columns, *(c for c in optional if c in names and c not in columns)]
        cells = file.read(columns=columns).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{path}: no readable Parquet file ({reason}); was it copied whole?"
        ) from None
    return [Row(f"{path}, row {number}", values) for number, values in enumerate(cells, start=1)]


def _demand_columns(path: Path, columns: Sequence[str], known: Sequence[str]) -> None:
    for column in columns:
        if column not in known:
            raise DataError(f"{path}: no column {column!r}{did_you_mean(column, known)}")

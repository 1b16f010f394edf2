"""Rows of a JSONL or Parquet file, each with the place that an error message can name. Content is
data, never evaluated.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.errors import DataError, did_you_mean

LINES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, slots=True)
class Row:
    where: str  # "train.jsonl:12"
    values: dict[str, Any]

    def text(self, column: str) -> str | None:
        """A cell as text; None where it is missing, null or blank. Raises DataError for what is no
        text.
        """
        value = self.values.get(column)
        if value is None or value != value:  # NaN: an empty cell of a column of numbers
            return None
        if isinstance(value, (list, dict, bytes)):
            raise DataError(
                f"{self.where}: column {column!r} holds {type(value).__name__}; it must be text or a number"
            )
        return valid_text(str(value), self.where, column)


def asked(values: Mapping[str, Any]) -> dict[str, bool]:
    """A problem's meta from a row, or the other way round: how its thinking switch stands, where
    `thinking` is true or false.

    >>> asked({"thinking": False, "id": 7}), asked({"thinking": "First, …"})
    ({'thinking': False}, {})
    """
    given = values.get("thinking")
    return {"thinking": given} if isinstance(given, bool) else {}


def valid_text(text: str, where: str, column: str) -> str | None:
    """The text; None where it is blank. Raises DataError for half a surrogate pair, which no file
    could be written with.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: column {column!r} is not valid Unicode (half of a surrogate pair)"
        ) from None
    return text if text.strip() else None


def read_rows(path: Path, columns: Sequence[str] | None, optional: Sequence[str] = ()) -> list[Row]:
    """All rows of a file that must have these columns and may have the optional ones; None: every
    column it has.

    Raises DataError, naming the line and the cure."""
    if not path.exists():
        raise DataError(f"no data file at {path}")
    if path.is_dir():
        raise DataError(f"{path} is a directory; name one of its .jsonl or .parquet files")
    if path.suffix not in (*LINES, ".parquet"):
        raise DataError(
            f"{path}: cannot read {path.suffix or 'a file without a suffix'}; give .jsonl or .parquet"
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
        wanted = (
            None
            if columns is None
            else [*columns, *(c for c in optional if c in names and c not in columns)]
        )
        cells = file.read(columns=wanted).to_pylist()
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

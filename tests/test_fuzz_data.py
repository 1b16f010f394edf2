"""Data files that nobody would want: each is read to its end, tokens and all, or refused in one
line that says why; nothing else ever happens.
"""

import json
import random
from collections import Counter
from datetime import date

import pyarrow
import pyarrow.parquet
import pytest

from whet.chat import Chat
from whet.data import preferences
from whet.errors import DataError, WhetError
from whet.tasks.files import Files

from .test_fuzz_recipes import NUMBERS, WORDS, refused

LINES, PARQUETS = 2000, 300
TEXTS = [
    *WORDS,
    "<|im_start|>",
    "<eos><bos>",
    "</think>",
    "#### 8",
    "2+2=",
    "\ud800",
    "e\u0301",
    "\u2028",
    "\ufeff",
    "8" * 6000,
]
ROLES = ["user", "assistant", "system", "tool", 3, None]
FORMS = [
    {},
    {"answer_after": "####"},
    {"answer_pattern": r"(\d+)"},
    {"answer": "", "response": "response"},
    {"messages": "messages"},
    {"messages": "messages", "answer": ""},
]


def cell(rng, deep=3):
    kind = rng.randrange(7 if deep else 4)
    if kind < 2:
        return rng.choice(TEXTS)
    if kind == 2:
        return rng.choice([*NUMBERS[:18], True, False])
    if kind == 3:
        return None
    if kind == 4:
        return {
            rng.choice(["role", "content", "thinking", "x"]): cell(rng, deep - 1)
            for _ in range(rng.randrange(4))
        }
    if kind == 5:
        return [cell(rng, deep - 1) for _ in range(rng.randrange(4))]
    return [
        {"role": rng.choice(ROLES), "content": cell(rng, deep - 1)} for _ in range(rng.randrange(4))
    ]


def good(i):
    messages = [
        {"role": "user", "content": f"{i}+1="},
        {"role": "assistant", "content": f"#### {i + 1}"},
    ]
    row = {
        "question": f"{i}+1=",
        "answer": f"#### {i + 1}",
        "response": f"{i + 1}",
        "messages": messages,
        "prompt": f"{i}",
    }
    return row | {"chosen": "a", "rejected": "b"} if i % 2 else row | {"ranked": ["a", "b"]}


def rows(rng):
    """Twelve rows, of which a few are not as they should be."""
    made = [good(i) for i in range(12)]
    for _ in range(rng.randrange(4)):
        row = rng.choice(made)
        key = rng.choice([*row, "thinking", "extra"])
        if rng.random() < 0.2:
            row.pop(key, None)
        else:
            row[key] = cell(rng)
    return made


def lines(rng):
    lines = [json.dumps(row).encode("utf-8", "surrogatepass") for row in rows(rng)]
    i = rng.randrange(len(lines))
    at = rng.randrange(len(lines[i]))
    match rng.randrange(12):
        case 0:
            lines[i] = lines[i][:at]
        case 1:
            lines[i] = lines[i][:at] + rng.randbytes(3) + lines[i][at:]
        case 2:
            lines[i] = lines[i].decode().encode(rng.choice(["utf-16", "latin-1", "utf-8-sig"]))
        case 3:
            lines[i] = rng.choice(
                [b"[" * 9999, b"9" * 5000, b"null", b"[]", b"\x00", b'{"a":' * 3000, b"NaN"]
            )
        case 4:
            return rng.choice([b"", b"\n\n", b"\r\n", b"PAR1", rng.randbytes(100)])
        case 5:
            return rng.choice([b"\r", b"\r\n", b"\n\n", b"\x85"]).join(lines)
    return b"\n".join(lines) + b"\n"


def read_all(path, form):
    """Every question and response to the end: as the pipeline reads them."""
    task = Files(path=str(path), **form)
    chat = Chat.from_characters(task.alphabet() or "a")
    for split in ("train", "test"):
        problems = task.problems(split, task.size(split), 1)
        for problem in problems:
            ids = chat.prompt(problem).tokens
            assert not set(ids[1:]) & set(chat.eos), problem
        if form.get("answer") != "":
            task.score(problems[:2], ["8", "<think></think>2"][: len(problems[:2])])
    if form.get("response") and task.size("train"):
        for _, text in task.corpus({}, 3, 1):
            assert chat.turn_end not in chat.response(text)[:-1]


def test_thousands_of_broken_files_of_lines_are_read_or_refused_in_one_line(tmp_path):
    rng, refusals, path = random.Random(5), Counter(), tmp_path / "rows.jsonl"
    for i in range(LINES):
        path.write_bytes(lines(rng))
        if i % 4 == 3:
            refusals[refused(lambda: preferences.read(str(path)))] += 1
        else:
            refusals[refused(lambda i=i: read_all(path, FORMS[i % len(FORMS)]))] += 1
    assert min(refusals.values()) > LINES / 10, refusals


def test_hundreds_of_broken_parquet_files_are_read_or_refused_in_one_line(tmp_path):
    rng, refusals, path = random.Random(6), Counter(), tmp_path / "rows.parquet"
    for i in range(PARQUETS):
        lines = [good(j) for j in range(12)]
        for row in lines:
            for key in ("chosen", "rejected", "ranked"):
                row.pop(key, None)
        columns = {key: [row[key] for row in lines] for key in lines[0]}
        kind = rng.choice(list(columns))
        columns[kind] = rng.choice(
            [
                [None] * 12,
                list(range(12)),
                [float(j) if j % 3 else float("nan") for j in range(12)],
                [b"\xff\xfe"] * 12,
                [date(2026, 1, 1)] * 12,
                [[str(j)] for j in range(12)],
                [{"role": "user"}] * 12,
                [rng.choice(TEXTS[:10]) for _ in range(12)],
            ]
        )
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        data = path.read_bytes()
        at = rng.randrange(len(data))
        if i % 2:
            path.write_bytes(
                rng.choice(
                    [
                        data[:at],
                        data[:at] + rng.randbytes(4) + data[at + 4 :],
                        data + b"x",
                        b"",
                        data[4:],
                    ]
                )
            )
        refusals[refused(lambda i=i: read_all(path, FORMS[i % len(FORMS)]))] += 1
    assert min(refusals.values()) > PARQUETS / 10, refusals


def test_what_is_raised_of_a_broken_row_names_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(good(i)) for i in range(5)) + '\n{"question": "2"\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:6: not JSON") as caught:
        Files(path=str(path))
    assert isinstance(caught.value, WhetError)

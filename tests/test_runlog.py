"""What a step writes, made in bulk, says what it would say token by token."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models

from whet.chat import Chat
from whet.storage.run_log import rounded


def test_numbers_are_rounded_as_python_rounds_them():
    rng = np.random.default_rng(0)
    ties = np.arange(4000) / 2**17  # halves of the last place that float32 can hold, among others
    wide = -np.abs(rng.standard_normal(20_000)) * 10 ** rng.uniform(-7, 3, 20_000)
    numbers = np.concatenate([ties, -ties, wide, [0.0, -0.0, -1e-9]]).astype(np.float32)
    assert json.dumps(rounded(numbers)) == json.dumps([round(float(x), 5) for x in numbers])


@pytest.fixture
def words(tmp_path):
    """A tokenizer of whole words that says nothing of how they are put together."""
    made = Tokenizer(
        models.WordLevel({"<eos>": 0, "a": 1, "b c": 2, "<0xE2>": 3, "d": 4, "": 5}, unk_token="a")
    )
    made.add_special_tokens([AddedToken("<eos>", normalized=False, special=True)])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return Chat.load(tmp_path), made


def test_pieces_of_a_tokenizer_of_words(words):
    chat, theirs = words
    assert chat.pieces([1, 2, 0, 1]) == ["a", " b c", " <eos>", " a"]
    for ids in ([], [2], [5, 1, 5, 4], [1, 3, 4], [3, 3], [1, 99, 4], [99, 4]):
        pieces = chat.pieces(ids)
        assert len(pieces) == len(ids) and "".join(pieces) == theirs.decode(
            ids, skip_special_tokens=False
        )

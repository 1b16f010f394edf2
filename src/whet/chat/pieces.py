"""The text that each token adds to a decoded sequence."""

import codecs
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_LOST = "\ufffd"  # what decoders write for bytes that are not UTF-8


class Pieces:
    """Splits the text of a token sequence, special tokens included, into one piece a token.

    The pieces' concatenation is the decoder's text of the whole. A character whose bytes are spread
    over several tokens stands at the token that completes it; the tokens before have empty pieces.
    """

    def __init__(self, layout: dict[str, Any], tokenizer: Tokenizer) -> None:
        decoder = layout.get("decoder")
        self._tokenizer = tokenizer
        self._bytes = _byte_of() if decoder and decoder.get("type") == "ByteLevel" else None
        self._plain = bool(decoder) and decoder.get("type") in ("ByteLevel", "Fuse")
        self._spaced = decoder is None  # what is decoded are the tokens, a space between any two
        self._known: dict[int, bytes] = {}
        self._alone: dict[int, str | None] = {}

    def __call__(self, tokens: Sequence[int]) -> list[str]:
        if self._plain or self._spaced:
            alone = list(map(self._by_itself, tokens))
            if None not in alone:
                return _joined(
                    [text for text in alone if text is not None], " " if self._spaced else ""
                )
        if self._plain:
            return self._by_bytes(tokens)
        pieces = self._by_prefix(tokens)
        whole = self._text(tokens)
        if (
            "".join(pieces) != whole
        ):  # a decoder that revises earlier text: exact in sum, at the last token
            pieces = [*[""] * (len(pieces) - 1), whole] if pieces else []
        return pieces

    def _text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def _by_itself(self, token: int) -> str | None:
        """The text of a token whose neighbours cannot change it; None for parts of a character, and
        for what is no token.
        """
        if token not in self._alone:
            text = self._tokenizer.id_to_token(int(token))
            if self._plain:
                try:
                    text = self._spelling(int(token)).decode()
                except UnicodeDecodeError:
                    text = None
            elif text is not None and (_BYTE.fullmatch(text) or text.endswith(_LOST)):
                text = None
            self._alone[token] = text
        return self._alone[token]

    def _by_bytes(self, tokens: Sequence[int]) -> list[str]:
        """One look-up a token, where a token's bytes do not depend on its neighbours."""
        join = codecs.getincrementaldecoder("utf-8")("replace")
        last = len(tokens) - 1
        return [join.decode(self._spelling(int(t)), final=i == last) for i, t in enumerate(tokens)]

    def _spelling(self, token: int) -> bytes:
        if token not in self._known:
            text = self._tokenizer.id_to_token(token) or ""
            table = self._bytes
            exact = table is not None and all(c in table for c in text)
            self._known[token] = bytes(table[c] for c in text) if exact and table else text.encode()
        return self._known[token]

    def _by_prefix(self, tokens: Sequence[int]) -> list[str]:
        """The difference between the text of a window with a unit (a token, or a run of bytes) and
        without it.
        """
        pieces: list[str] = []
        begin = end = 0  # tokens[begin:end] have their pieces and are the window's context
        for _, stop, run in self._units(tokens):
            before, now = self._text(tokens[begin:end]), self._text(tokens[begin:stop])
            if now.endswith(_LOST) and not run and stop < len(tokens):
                pieces.append("")
                continue
            added = now[len(before) :]
            pieces += _spread(added, run) if run else [added]
            begin, end = end, stop
        return pieces

    def _units(self, tokens: Sequence[int]) -> Iterator[tuple[int, int, bytes]]:
        """(start, stop, bytes): a decoder reads neighbouring byte tokens, <0xE2>, as one; b"" for
        any other token.
        """
        spelled = [_BYTE.fullmatch(self._tokenizer.id_to_token(int(t)) or "") for t in tokens]
        start = 0
        while start < len(tokens):
            stop = start
            while stop < len(tokens) and spelled[stop]:
                stop += 1
            run = bytes(int(m.group(1), 16) for m in spelled[start:stop] if m)
            yield start, max(stop, start + 1), run
            start = max(stop, start + 1)


def _joined(texts: list[str], between: str) -> list[str]:
    """Pieces of texts with something between any two, which is the later one's."""
    return [*texts[:1], *(between + text for text in texts[1:])] if between else texts


def _spread(text: str, run: bytes) -> list[str]:
    """The text of a run of bytes over its tokens; a run that is not UTF-8 has one replacement
    character a byte.
    """
    if text == _LOST * len(run):
        return list(text)
    join = codecs.getincrementaldecoder("utf-8")("replace")
    return [join.decode(run[i : i + 1]) for i in range(len(run))]


def _byte_of() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100
    and on, in order.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in plain}
    return table | {
        chr(0x100 + n): b for n, b in enumerate(b for b in range(256) if b not in set(plain))
    }

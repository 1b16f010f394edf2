"""Text <-> tokens. Only a template writes special tokens; the text of a message never is one."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import DecodeStream

from whet.errors import DataError, ModelError

Json = dict[str, Any]

# Turn markers, which some models forget to call special.
_CONTROL = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
_TAG = r"/?[A-Za-z][A-Za-z0-9_-]*"


class ChatTokenizer:
    """A `tokenizers.Tokenizer` that never finds a special token in a text.

    special: {text: id} of the tokens that only a template, or the policy, may write. size: the
    largest id + 1. It does not change after construction, so threads may share it.
    """

    def __init__(
        self, source: str, named: Iterable[str] = (), where: str = "tokenizer.json"
    ) -> None:
        """`source` is tokenizer.json's text, `named` are further special tokens.

        Raises ModelError where the text is no tokenizer.
        """
        layout = _parsed(source, where)
        self._first = _tokenizer(layout, named, where)
        self._rest = (
            _tokenizer(inner, named, where) if (inner := _without_prefix(layout)) else self._first
        )
        added = self._first.get_added_tokens_decoder()
        self.special: dict[str, int] = {
            token.content: i for i, token in added.items() if token.special
        }
        self._added: dict[str, AddedToken] = {token.content: token for token in added.values()}
        self.size = max(self._first.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not self.size:
            raise ModelError(f"{where} has no vocabulary")
        words = sorted(
            (w for w, t in self._added.items() if t.special or not t.normalized),
            key=len,
            reverse=True,
        )
        self._words = re.compile("|".join(map(re.escape, words))) if words else None
        self._hazard = _hazard(self.special)
        self._closed = _closed(layout)

    def id(self, text: str) -> int | None:
        """Returns the id of the token with exactly this text, or None."""
        return self._first.token_to_id(text)

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Returns the ids [n] of a text as data: none is a special token.

        `first`: the text begins the sequence.

        Raises DataError naming a character that the vocabulary does not hold, or half of a
        surrogate pair.
        """
        tokenizer = self._first if first else self._rest
        try:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:
            half = next((c for c in text if "\ud800" <= c <= "\udfff"), "")
            raise DataError(
                f"the text holds {half!r}, half of a surrogate pair; it is not valid Unicode"
            ) from None
        if self._closed and tokenizer.decode(ids, skip_special_tokens=False) != text:
            lost = next(
                (c for c in text if not tokenizer.encode(c, add_special_tokens=False).ids), None
            )
            if lost is not None:
                raise DataError(
                    f"the tokenizer has no token for the character {lost!r}; its alphabet must hold it"
                )
        return ids

    def encode_rendered(self, text: str, originals: Mapping[int, str]) -> list[int]:
        """Returns the ids [n] of a rendered template: its special tokens, all else as data.

        `originals`, from `disguise`, turns the stand-ins back. Raises DataError as `encode` does.
        """
        ids: list[int] = []
        start = 0
        for begin, end, token in self.specials(text):
            if begin > start:
                ids += self.encode(text[start:begin].translate(originals), first=start == 0)
            ids.append(token)
            start = end
        if start < len(text):
            ids += self.encode(text[start:].translate(originals), first=start == 0)
        return ids

    def specials(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Yields (begin, end, id) of each special token in a text, with white space it swallows."""
        past = 0
        for match in self._words.finditer(text) if self._words else ():
            token, (begin, end) = self._added[match.group()], match.span()
            if token.single_word and _joined(text, begin, end):
                continue
            if token.lstrip:
                begin = max(past, len(text[:begin].rstrip()))
            if token.rstrip:
                end += len(text[end:]) - len(text[end:].lstrip())
            past = end
            if token.special:
                yield begin, end, self.special[token.content]

    def disguise(self, texts: Sequence[str], template: str) -> tuple[list[str], dict[int, str]]:
        """Replaces characters that could begin a special token by stand-ins.

        Returns the texts, and {stand-in: character}. A stand-in is a private-use character that
        neither the texts nor the template contain. It replaces the first character of special
        tokens, except of a harmless tag such as <think>, which templates look for.
        """
        if self._hazard is None or not any(self._hazard.search(t) for t in texts):
            return list(texts), {}
        used = set(template).union(*texts, *self._added)
        free = (
            chr(c)
            for c in chain(range(0xE000, 0xF900), range(0xF0000, 0x10FFFE))
            if chr(c) not in used
        )
        standin: dict[str, str] = {}

        def hide(match: re.Match[str]) -> str:
            char = match.group()
            if char not in standin:
                standin[char] = next(free)
            return standin[char]

        hidden = [self._hazard.sub(hide, t) for t in texts]
        return hidden, {ord(s): char for char, s in standin.items()}

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of the ids, without special tokens and ids beyond the vocabulary."""
        return self._first.decode(list(tokens), skip_special_tokens=True)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Returns the text of each token, special tokens included; the pieces add up to the text.

        A character whose bytes are spread over several tokens is the piece of the last of these. A
        decoder that revises earlier text gives the whole text at the last token.
        """
        whole = self._first.decode(list(tokens), skip_special_tokens=False)
        stream = DecodeStream(skip_special_tokens=False)
        try:
            pieces = [stream.step(self._first, int(t)) or "" for t in tokens]
        except Exception:  # the library raises nothing narrower
            pieces = [""] * len(tokens)
        if not whole.startswith("".join(pieces)):
            pieces = [""] * len(tokens)
        if pieces:  # the stream keeps back bytes that are no character yet
            pieces[-1] += whole[len("".join(pieces)) :]
        return _at_their_tokens(pieces)


def _at_their_tokens(pieces: list[str]) -> list[str]:
    """Puts replacement characters, which a stream writes late, at the tokens they stand for.

    >>> _at_their_tokens(["a", "", "", "\ufffd\ufffdb"])
    ['a', '\ufffd', '\ufffd', 'b']
    """
    for i, piece in enumerate(pieces):
        rest = piece.lstrip("\ufffd")
        lost = len(piece) - len(rest)
        first = i + (not rest) - lost
        if lost and first >= 0 and not any(pieces[first:i]):
            pieces[first : i + 1] = ["\ufffd"] * lost + ([rest] if rest else [])
    return pieces


def _parsed(source: str, where: str) -> Json:
    try:
        layout = json.loads(source)
    except ValueError as failure:
        raise ModelError(f"{where} is not valid JSON: {failure}") from None
    if not isinstance(layout, dict) or not isinstance(layout.get("model"), dict):
        raise ModelError(f"{where} is not a tokenizer: it has no `model`")
    added = layout.get("added_tokens") or []
    if not isinstance(added, list) or not all(
        isinstance(t, dict) and isinstance(t.get("content"), str) for t in added
    ):
        raise ModelError(f"{where}: its added_tokens are not a list of objects with `content`")
    return layout


def _tokenizer(layout: Json, named: Iterable[str], where: str) -> Tokenizer:
    wanted = set(named)
    tokens = [
        {**t, "special": True} if t["content"] in wanted or _CONTROL.fullmatch(t["content"]) else t
        for t in layout.get("added_tokens") or []
    ]
    try:
        tokenizer = Tokenizer.from_str(json.dumps({**layout, "added_tokens": tokens}))
    except Exception as failure:  # the library raises nothing narrower
        raise ModelError(f"{where} cannot be read: {failure}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = {t.content for t in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_special_tokens(
        [AddedToken(w, normalized=False, special=True) for w in sorted(wanted - known)]
    )
    tokenizer.encode_special_tokens = True
    return tokenizer


def _without_prefix(layout: Json) -> Json | None:
    """The tokenizer for a text in the middle of a sequence; None where it is the same."""
    whole = json.dumps(layout.get("pre_tokenizer"))
    inner = whole.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
    return {**layout, "pre_tokenizer": json.loads(inner)} if inner != whole else None


def _closed(layout: Json) -> bool:
    """Whether the model silently drops characters that it does not know."""
    model = layout["model"]
    steps = json.dumps([layout.get("pre_tokenizer"), layout.get("normalizer")])
    silent = model.get("unk_token") is None and not model.get("byte_fallback")
    return model.get("type") == "BPE" and silent and '"ByteLevel"' not in steps


def _hazard(special: Mapping[str, int]) -> re.Pattern[str] | None:
    """Matches the characters to disguise: any that begins a special token, any sign that could."""
    if not special:
        return None
    words = "|".join(map(re.escape, special))
    signs = sorted({w[0] for w in special if not w[0].isalnum() and not w[0].isspace()})
    lone = rf"(?!<{_TAG}>|\[{_TAG}\])[{''.join(map(re.escape, signs))}]|" if signs else ""
    return re.compile(rf"{lone}(?=(?:{words})).", re.IGNORECASE | re.DOTALL)


def _joined(text: str, begin: int, end: int) -> bool:
    before, after = text[begin - 1 : begin], text[end : end + 1]
    return bool(re.fullmatch(r"\w", before) or re.fullmatch(r"\w", after))

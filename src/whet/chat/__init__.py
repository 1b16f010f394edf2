"""A model's chat: its tokenizer, its chat template and its thinking marks; text <-> tokens.

Not in here: models, and what messages are about (tasks).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from whet.chat import files, template
from whet.chat.thinking import begun
from whet.chat.tokenizer import ChatTokenizer
from whet.errors import DataError, ModelError
from whet.types import Message, Problem, Prompt

__all__ = ["Chat"]

PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
)
ROLES = ("system", "developer", "user", "assistant", "tool")


class Chat:
    """Turns messages into a prompt's tokens, and a completion's tokens into text.

    Text of a message never becomes a special token: only the template writes those. For messages
    that do not spell one out, the ids equal those of transformers' apply_chat_template.

    eos: every id that ends a turn. turn_end: the id that ends the assistant's turn in the template.
    bos: None where there is none. pad: eos where there is none. vocab: the largest id + 1 (a model
    may have more rows). special: {text: id}. note: a remark for the user, else "".
    """

    def __init__(self, source: files.Files) -> None:
        self._files = source
        self._words = ChatTokenizer(source.texts[files.TOKENIZER], source.special)
        self._named = source.named
        self.note, self.template = "", source.template or ""
        if source.template is None:
            self.note = "the model has no chat template: contents are joined by newlines"
            self.template = PLAIN
        self.vocab = self._words.size
        self.special = dict(self._words.special)
        own = self._id("eos_token")
        ends: list[int] = [*([] if own is None else [own]), *source.ends]
        end = self._template_end()
        if end is None and not ends:
            raise ModelError(
                "the tokenizer names no token that ends a turn; set eos_token in tokenizer_config.json"
            )
        self.turn_end = ends[0] if end is None else end
        self.eos = tuple(dict.fromkeys([*ends, self.turn_end]))
        self.bos = self._id("bos_token")
        pad = self._id("pad_token")
        self.pad = self.eos[0] if pad is None else pad

    @classmethod
    def from_characters(
        cls,
        alphabet: str,
        words: tuple[str, ...] = ("<think>", "</think>"),
        template: str | None = None,
    ) -> "Chat":
        """Makes a tokenizer with a token per character and per word, <bos>, and <eos>, which pads.

        The first two words open and close thinking; `template` replaces `files.direct`. Raises
        DataError for an empty alphabet or words that clash.
        """
        return cls(files.of_characters(alphabet, words, template))

    @classmethod
    def load(cls, directory: Path) -> "Chat":
        """Loads the tokenizer of a directory in Hugging Face's format.

        Raises ModelError where a file is missing or broken.
        """
        source = files.read(Path(directory))
        try:
            return cls(source)
        except ModelError as failure:
            raise ModelError(f"{directory}: {failure}") from None

    def save(self, directory: Path) -> None:
        """Writes the files that were loaded, each whole or not at all.

        generation_config.json lists all of `eos`.
        """
        texts = dict(self._files.texts)
        if files.GENERATION in texts and set(self._files.ends) != set(self.eos):
            kept = {**self._files.generation, "eos_token_id": list(self.eos)}
            texts[files.GENERATION] = json.dumps(kept, indent=2) + "\n"
        files.write(Path(directory), texts)

    def prompt(
        self,
        problem: Problem,
        thinking: bool | None = None,
        system: str | None = None,
        template: str | None = None,
    ) -> Prompt:
        """Returns a problem's Prompt, ready to be answered. Raises as `render` does."""
        messages = problem.messages
        if system:
            messages = ({"role": "system", "content": system}, *messages)
        text, originals = self._rendered(messages, thinking, True, template or self.template)
        return Prompt(problem, tuple(self._words.encode_rendered(text, originals)), begun(text))

    def render(
        self,
        messages: Sequence[Message],
        thinking: bool | None = None,
        add_generation_prompt: bool = True,
        template: str | None = None,
    ) -> list[int]:
        """Returns the ids [n] of messages under the chat template.

        The template gets `enable_thinking` where `thinking` is not None.

        Raises DataError for a message without role or content and for characters that the tokenizer
        does not have; ModelError where the template is broken or refuses the messages.
        """
        text, originals = self._rendered(
            messages, thinking, add_generation_prompt, template or self.template
        )
        return self._words.encode_rendered(text, originals)

    def demand_switch(self) -> None:
        """Raises ModelError where `enable_thinking` makes no difference to the chat template."""
        messages = ({"role": "user", "content": "ask"},)
        on, off = (self._rendered(messages, x, True, self.template) for x in (True, False))
        if on == off:
            raise ModelError(
                "the chat template has no enable_thinking switch, so nothing can be asked with "
                "thinking both on and off; set thinking to true or false, or take a model such as "
                "Qwen3"
            )

    def encode(self, text: str) -> list[int]:
        """Returns the ids [n] of a text as data: none is a special token.

        Raises DataError for a character that has no token.
        """
        return self._words.encode(text)

    def response(self, text: str) -> list[int]:
        """Returns the ids [n + 1] of an answer after a prompt, with the end of the turn.

        Raises as `encode` does.
        """
        return [*self._words.encode(text, first=False), self.turn_end]

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of the ids without special tokens."""
        return self._words.decode(tokens)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Returns the text of each id, special tokens included; the pieces add up to the text."""
        return self._words.pieces(tokens)

    def _id(self, role: str) -> int | None:
        return self._words.id(self._named[role]) if role in self._named else None

    def _rendered(
        self,
        messages: Sequence[Message],
        thinking: bool | None,
        add_generation_prompt: bool,
        source: str,
    ) -> tuple[str, dict[int, str]]:
        for i, message in enumerate(messages, start=1):
            _check(i, message)
        fields = [(i, key) for i, m in enumerate(messages) for key in m if key != "role"]
        hidden, originals = self._words.disguise([messages[i][key] for i, key in fields], source)
        safe = [dict(m) for m in messages]
        for (i, key), text in zip(fields, hidden, strict=True):
            safe[i][key] = text
        names: dict[str, object] = {**self._named, "add_generation_prompt": add_generation_prompt}
        if thinking is not None:
            names["enable_thinking"] = thinking
        return template.render(source, safe, names), originals

    def _template_end(self) -> int | None:
        """The special token that the template writes after the assistant's text, or None."""
        messages = ({"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"})
        try:
            text, _ = self._rendered(messages, None, False, self.template)
        except ModelError:
            return None
        after = text.rfind("answer")
        return next(
            (token for begin, _, token in self._words.specials(text) if begin > after >= 0), None
        )


def _check(number: int, message: Message) -> None:
    for key in ("role", "content"):
        if key not in message:
            raise DataError(
                f"message {number} has no {key!r}; a message is {{'role': …, 'content': …}}"
            )
    for key, value in message.items():
        if not isinstance(value, str):
            raise DataError(f"message {number}: {key!r} is {type(value).__name__}, not a text")
    if message["role"] not in ROLES:
        raise DataError(
            f"message {number}: unknown role {message['role']!r}; known: {', '.join(ROLES)}"
        )

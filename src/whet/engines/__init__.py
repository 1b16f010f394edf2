"""Engines draw completions. Which one serves a model is decided here."""

from typing import TYPE_CHECKING, Protocol, cast

from whet.types import Engine

if TYPE_CHECKING:
    from whet.engines.requests import Decoder
    from whet.model.policy import Policy

    class ChatTokens(Decoder, Protocol):
        eos: tuple[int, ...]


ROWS = 256  # alive at once, unless an engine is told otherwise


def engine_for(model: "Policy", chat: "ChatTokens", rows: int = ROWS) -> Engine:
    """The engine that samples from `model` with its live weights: the native one for whet's own
    decoder.
    """
    from whet.engines.native import NativeEngine
    from whet.model.transformer import Transformer

    if isinstance(model, Transformer):
        return NativeEngine(model, chat, chat.eos, rows)
    from whet.engines.huggingface import Adapted, HuggingFaceEngine

    return HuggingFaceEngine(cast(Adapted, model), chat, chat.eos, rows)

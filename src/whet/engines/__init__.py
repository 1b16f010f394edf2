"""Engines sample completions of prompts from a model's live weights; `engine_for` picks one.

native: whet's decoder, with cache (keys and values on a CPU), static_cache and cuda_graph (a GPU),
step (one token a row), sampling (random numbers and the draw) and requests (prompts in, samples
out). huggingface: any model of transformers. Not in here: rewards, training, the decoder itself.
"""

from typing import TYPE_CHECKING, Protocol, cast

from whet.types import Engine

if TYPE_CHECKING:
    from whet.engines.requests import Decoder
    from whet.model.policy import Policy

    class ChatTokens(Decoder, Protocol):
        eos: tuple[int, ...]


ROWS = 256  # samples that are drawn at once, by default


def engine_for(model: "Policy", chat: "ChatTokens", rows: int = ROWS) -> Engine:
    """Returns the engine for a model: the native one for whet's own decoder."""
    from whet.engines.native import NativeEngine
    from whet.model.transformer import Transformer

    if isinstance(model, Transformer):
        return NativeEngine(model, chat, chat.eos, rows)
    from whet.engines.huggingface import Adapted, HuggingFaceEngine

    return HuggingFaceEngine(cast(Adapted, model), chat, chat.eos, rows)

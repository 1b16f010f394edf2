"""The chat template's thinking switch: how a recipe sets it, what a prompt has begun because of it, what is left to say then."""

import hashlib
import re
from typing import Annotated, Literal

from pydantic import PlainValidator

from whet.errors import DataError
from whet.types import Prompt

_BEGUN = re.compile(r"<think>\s*(?:</think>\s*)?\Z")


def _setting(value: object) -> bool | float | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and 0 <= value <= 1:
        return float(value)
    raise ValueError("must be true, false or a share from 0 to 1")


Thinking = Annotated[bool | float | None, PlainValidator(_setting)]  # a number: the share that is asked with it on
Switch = Literal["on", "off", "both"] | None  # None: as prompts are asked


def stands(setting: bool | float | None, key: str) -> bool | None:
    """How the switch stands for what `key` names; where the setting is a share, a hash of the key decides. None: not set.

    >>> stands(True, "7"), sum(stands(0.3, str(i)) for i in range(1000))
    (True, 296)
    """
    if setting is None or isinstance(setting, bool):
        return setting
    digest = hashlib.sha256(f"thinking {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < setting * 2**64


def measured(how: Switch, setting: bool | float | None) -> tuple[bool | None, ...]:
    """How the switch stands, measurement by measurement; None: as prompts are asked. A share is measured both ways.

    >>> measured(None, True), measured(None, 0.5), measured("off", 0.5)
    ((None,), (True, False), (False,))
    """
    if how is None:
        return (True, False) if isinstance(setting, float) else (None,)
    return {"on": (True,), "off": (False,), "both": (True, False)}[how]


def begun(rendered: str) -> str:
    """The thinking with which a rendered prompt ends, open or shut and empty; "" where it ends otherwise.

    >>> begun("<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n"), begun("2+2=<think>"), begun("<think>2</think>")
    ('<think>\\n\\n</think>\\n\\n', '<think>', '')
    """
    found = _BEGUN.search(rendered)
    return found.group() if found else ""


def left(prompt: Prompt, response: str) -> str:
    """What of a whole answer follows the prompt: all but what the prompt has begun; with thinking off all but the thinking.

    An answer that does not repeat what the prompt has opened is what follows it already. Raises DataError where nothing
    follows the thinking.
    """
    if prompt.begun and response.startswith(prompt.begun):
        return response[len(prompt.begun) :]
    if "</think>" not in prompt.begun and prompt.problem.meta.get("thinking") is not False:
        return response.removeprefix("<think>") if prompt.begun else response
    thought, end, after = response.rpartition("</think>")
    said = after.lstrip() if end else thought + after
    if not said or said.startswith("<think>"):
        raise DataError(f"{prompt.id}: nothing follows the thinking, so with thinking off there is nothing to train on")
    return said

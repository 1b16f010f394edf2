"""The chat template's thinking switch, as a recipe sets it and as a measurement asks for it."""

import hashlib
from typing import Annotated, Literal

from pydantic import PlainValidator


def _setting(value: object) -> bool | float | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and 0 <= value <= 1:
        return float(value)
    raise ValueError("it must be true, false or a share from 0 to 1")


# a number: the share of the problems that are asked with the switch on
Thinking = Annotated[
    bool | float | None, PlainValidator(_setting, json_schema_input_type=bool | float | None)
]
Switch = Literal["on", "off", "both"] | None  # None: as prompts are asked


def stands(setting: bool | float | None, key: str) -> bool | None:
    """How the switch stands for the problem that `key` names; None: not set.

    Where the setting is a share, a hash of the key decides.

    >>> stands(True, "7"), sum(stands(0.3, str(i)) for i in range(1000))
    (True, 296)
    """
    if setting is None or isinstance(setting, bool):
        return setting
    digest = hashlib.sha256(f"thinking {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < setting * 2**64


def measured(switch: Switch, setting: bool | float | None) -> tuple[bool | None, ...]:
    """How the switch stands in each measurement; None: as prompts are asked.

    A setting that is a share is measured both ways.

    >>> measured(None, True), measured(None, 0.5), measured("off", 0.5)
    ((None,), (True, False), (False,))
    """
    if switch is None:
        return (True, False) if isinstance(setting, float) else (None,)
    return {"on": (True,), "off": (False,), "both": (True, False)}[switch]

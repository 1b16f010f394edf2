"""Options as data: what a task or a reward may be told, with bounds, defaults and meanings.

A task or a reward is a class whose fields are its options: `whet tasks NAME` prints them,
`whet schema` hands them to editors, and a value that is none is refused in one line.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from whet.errors import RecipeError, WhetError, did_you_mean

# What pydantic's kinds of fault are in our words; the keys in braces are of the fault's context.
_WORDS = {
    "bool_type": "it must be true or false",
    "int_type": "it must be a whole number",
    "float_type": "it must be a number",
    "string_type": "it must be text",
    "list_type": "it must be a list",
    "tuple_type": "it must be a list",
    "dict_type": "it must be a table",
    "mapping_type": "it must be a table",
    "model_type": "it must be a table",
    "finite_number": "it must be a finite number",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
    "too_short": "it needs at least {min_length}",
    "too_long": "it takes at most {max_length}",
    "string_too_short": "it needs at least {min_length} characters",
    "string_pattern_mismatch": "it must match {pattern}",
}


class Option(NamedTuple):
    """One option as a person reads it; `default` is None where it must be given."""

    name: str
    kind: str
    default: str | None
    meaning: str


class Options(BaseModel):
    """A class whose fields are options. Making one raises `refusal`, in one line, for a value that
    is none, an unknown option (with the nearest right one) and a missing one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    refusal: ClassVar[type[WhetError]] = RecipeError
    owner: ClassVar[str] = ""  # whose options they are, for messages: "task chain"

    def __init__(self, /, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise self.refusal(f"{self.owner}: {first_fault(error, type(self))}") from None


def first_fault(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong with a model's data, in one line of our words."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    match fault["type"]:
        case "extra_forbidden":
            known = _known(model, fault["loc"])
            key = str(fault["loc"][-1])
            hint = did_you_mean(key, known) if known else "; it takes none"
            return f"unknown option {where!r}{hint}"
        case "missing":
            return f"the option {where!r} is missing"
        case "value_error" if not where:
            return fault["msg"].removeprefix("Value error, ")
        case _:
            return f"{where} = {_shown(fault['input'])}; {wording(fault)}"


def wording(fault: ErrorDetails) -> str:
    """What a value must be, in our words.

    Unions are told by their first alternative; pydantic's own words stand where we have none.
    """
    if fault["type"] == "literal_error":
        return f"it must be {fault.get('ctx', {})['expected']}"
    words = _WORDS.get(fault["type"])
    if words is None:
        return fault["msg"].removeprefix("Value error, ")
    return words.format(**fault.get("ctx", {}))


def options(model: type[BaseModel]) -> Iterator[Option]:
    """The options of a class, in the order in which it names them."""
    properties = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        default = (
            None if field.is_required() else _shown(field.get_default(call_default_factory=True))
        )
        yield Option(name, _kind(properties[name]), default, field.description or "")


def _kind(schema: Mapping[str, Any]) -> str:
    """The type of a JSON schema in a word or two: "whole number 1 to 30", "text", "a | b"."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(_kind(s) for s in schema["anyOf"] if s.get("type") != "null")
    names = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true | false",
    }
    kind = names.get(schema.get("type", ""), {"array": "list"}.get(schema.get("type", ""), "table"))
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is not None and high is not None:
        return f"{kind}, {low:g} to {high:g}"
    if low is not None:
        return f"{kind}, {'at least' if 'minimum' in schema else 'above'} {low:g}"
    return kind


def _shown(value: object) -> str:
    """A value as a recipe writes it, as far as JSON can."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    try:
        return "none" if value is None else json.dumps(value, ensure_ascii=False, default=repr)
    except ValueError:
        return repr(value)


def _known(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The fields of the model, or of the one inside it, in which an unknown key stands."""
    for part in loc[:-1]:
        field = model.model_fields.get(str(part))
        inner = getattr(field, "annotation", None)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return list(model.model_fields)

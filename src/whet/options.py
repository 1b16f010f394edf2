"""Options as data: the values that a recipe, a task or a reward accepts, each with its meaning.

A task or a reward is a class whose fields are its options. `whet tasks NAME` prints the fields,
`whet schema` hands them to editors, and a value that does not fit is refused in one line.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from whet.errors import RecipeError, WhetError, did_you_mean

# pydantic's kinds of fault in our words; the names in braces are keys of the fault's context
_WORDS = {
    "bool_type": "it must be true or false",
    "int_type": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "int_parsing_size": "it must be a smaller whole number",
    "float_type": "it must be a number",
    "string_type": "it must be text",
    "list_type": "it must be a list",
    "tuple_type": "it must be a list",
    "dict_type": "it must be a table",
    "mapping_type": "it must be a table",
    "model_type": "it must be a table",
    "model_attributes_type": "it must be a table",
    "finite_number": "it must be a finite number",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
    "too_short": "it needs at least {min_length}",
    "too_long": "it takes at most {max_length}",
    "string_too_short": "it needs at least {min_length} characters",
    "string_pattern_mismatch": "it must match {pattern}",
    "literal_error": "it must be {expected}",
}
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true | false",
    "array": "list",
    "object": "table",
}
# the last word of a fault's place where pydantic names the alternative of a union that it tried
_ALTERNATIVE = re.compile(
    r"str|int|float|bool|(list|dict|tuple|constrained|function|literal)[\[-].*"
)
_LONGEST = 200  # characters of a value in a message
Place = tuple[int | str, ...]


class Option(NamedTuple):
    """One option as a person reads it; `default` is None where the option is required."""

    name: str
    kind: str
    default: str | None
    meaning: str


class Options(BaseModel):
    """A class whose fields are options.

    The constructor raises `refusal`, in one line that starts with `owner`, for a value that does
    not fit, an unknown option (with the nearest right one) and a missing one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    refusal: ClassVar[type[WhetError]] = RecipeError
    # whose options they are, for messages: "task chain", or "task gym:{dataset}" to fill in one
    owner: ClassVar[str] = ""

    def __init__(self, /, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            owner = self.owner.format_map(defaultdict(str, options))
            raise self.refusal(f"{owner}: {next(faults(error, type(self)))}") from None


def dotted(place: Place) -> str:
    """A fault's place as a recipe writes it: `optimizer.lr`."""
    return ".".join(str(part) for part in place)


def faults(
    error: ValidationError,
    model: type[BaseModel],
    noun: str = "option",
    name: Callable[[Place], str] = dotted,
) -> Iterator[str]:
    """Each fault of a model's data in one line of our words.

    `noun` is what the model calls its fields; `name` turns a fault's place into words. The
    alternatives of a union make one line.
    """
    by_place: dict[Place, list[ErrorDetails]] = {}
    for fault in error.errors(include_url=False):
        place = fault["loc"]
        if place[-1:] == ("[key]",) or (
            len(place) > 1 and _ALTERNATIVE.fullmatch(str(place[-1]))
        ):  # of a table whose keys are a fixed few
            place = place[:-1]
        by_place.setdefault(place, []).append(fault)
    # a misspelt key first: it is the cause of the missing one
    unknown_first = sorted(by_place.items(), key=lambda x: x[1][0]["type"] != "extra_forbidden")
    for place, alternatives in unknown_first:
        fault, where = alternatives[0], name(place)
        match fault["type"]:
            case "extra_forbidden":
                known = _keys_beside(model, place)
                hint = did_you_mean(str(place[-1]), known) if known else "; it takes none"
                yield f"unknown {noun} {where!r}{hint}"
            case "missing":
                yield f"the {noun} {where!r} is missing"
            case "union_tag_not_found":
                yield f"{where}: the {noun} {fault.get('ctx', {})['discriminator']} is missing"
            case "union_tag_invalid":
                yield f"{where}: {_unknown_tag(fault)}"
            case "literal_error" if fault["loc"][-1:] == ("[key]",):
                known = re.findall(r"'([^']*)'", fault.get("ctx", {})["expected"])
                yield f"unknown {noun} {where!r}{did_you_mean(str(place[-1]), known)}"
            case "value_error" if isinstance(fault["input"], Mapping):
                yield f"{where}: {wording(fault)}" if where else wording(fault)
            case "greater_than_equal" | "less_than_equal" if between := _between(model, place):
                yield f"{where} = {shown(fault['input'])}; {between}"
            case _:
                words = " or ".join(dict.fromkeys(map(wording, alternatives)))
                words = words.replace(" or it must be ", " or ")
                yield f"{where} = {shown(fault['input'])}; {words}{_nearest(fault)}"


def _nearest(fault: ErrorDetails) -> str:
    """The nearest right word, where a fixed few are right."""
    known = re.findall(r"'([^']*)'", fault.get("ctx", {}).get("expected", ""))
    near = get_close_matches(str(fault["input"]), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def wording(fault: ErrorDetails) -> str:
    """What a value must be, in our words; a validator's or pydantic's own where we have none."""
    words = _WORDS.get(fault["type"])
    if words is None:
        return fault["msg"].removeprefix("Value error, ")
    context = fault.get("ctx", {})
    return words.format(
        **{key: _figure(x) if isinstance(x, float) else x for key, x in context.items()}
    )


def options(model: type[BaseModel], prefix: str = "") -> Iterator[Option]:
    """The options of a class, in its order; those of a table within follow as `table.option`."""
    properties = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        default = None
        if not field.is_required():
            default = shown(field.get_default(call_default_factory=True))
        key = field.alias or name
        yield Option(prefix + key, _kind(properties[key]), default, field.description or "")
        for table in _tables(field.annotation):
            yield from options(table, f"{prefix}{key}.")


def shown(value: object) -> str:
    """A value as a recipe writes it, as far as JSON can.

    >>> shown(True), shown(None), shown({"a": 0.5})
    ('true', 'none', '{"a": 0.5}')
    """
    if isinstance(value, BaseModel):
        value = value.model_dump()
    try:
        text = "none" if value is None else json.dumps(value, ensure_ascii=False, default=repr)
    except (ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def _unknown_tag(fault: ErrorDetails) -> str:
    context = fault.get("ctx", {})
    known = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
    key = context["discriminator"].strip("'")
    return f"{key} = {shown(context['tag'])} is not known{did_you_mean(context['tag'], known)}"


def _kind(schema: Mapping[str, Any]) -> str:
    """The type of a JSON schema in a word or two.

    >>> _kind({"type": "integer", "minimum": 1, "maximum": 30}), _kind({"enum": ["a", "b"]})
    ('whole number, 1 to 30', 'a | b')
    """
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    if "anyOf" in schema:
        return " | ".join(_kind(s) for s in schema["anyOf"] if s.get("type") != "null")
    kind = _TYPES[schema.get("type", "object")]
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if high in (2**31, 2**53):  # what an integer of the machine holds is no bound to speak of
        high = None
    if low is not None and high is not None:
        return f"{kind}, {_figure(low)} to {_figure(high)}"
    if low is not None:
        return f"{kind}, {'at least' if 'minimum' in schema else 'above'} {_figure(low)}"
    return kind


def _figure(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


def _between(model: type[BaseModel], place: Place) -> str:
    """Both bounds of a number in words; empty where it has only one."""
    for table in _tables_at(model, place):
        if field := table.model_fields.get(str(place[-1])):
            low, high = (
                next((getattr(m, bound) for m in field.metadata if hasattr(m, bound)), None)
                for bound in ("ge", "le")
            )
            if low is not None and high is not None:
                return f"it must be between {_figure(low)} and {_figure(high)}"
    return ""


def _keys_beside(model: type[BaseModel], place: Place) -> list[str]:
    """The fields of the table in which an unknown key stands."""
    tables = _tables_at(model, place)
    return list(dict.fromkeys(name for table in tables for name in table.model_fields))


def _tables_at(model: type[BaseModel], place: Place) -> list[type[BaseModel]]:
    """The tables within a model in which a key may stand."""
    tables = [model]
    for part in place[:-1]:
        inner = [
            inside
            for table in tables
            if part in table.model_fields
            for inside in _tables(table.model_fields[str(part)].annotation)
        ]
        tagged = [table for table in tables if part in _tags(table)]
        tables = inner or tagged or tables
    return tables


def _tags(table: type[BaseModel]) -> tuple[Any, ...]:
    """The values of a table's `kind`, by which a union of tables is told apart."""
    return get_args(table.model_fields["kind"].annotation) if "kind" in table.model_fields else ()


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a field's annotation names, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _tables(inner)

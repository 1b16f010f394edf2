"""Chat templates: Jinja programs that come with a model, run in a sandbox with bounds on work."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from whet.errors import ModelError
from whet.types import Message

MAX_TEXT = 1 << 24  # characters that one rendering may give, or hold in one string
MAX_STEPS = 1 << 16  # turns of loops and calls of macros in one rendering
MAX_RANGE = 1 << 14  # numbers in one range()
MAX_BITS = 1 << 12  # of a product of two integers

_STEPS = " steps"  # no template can write a name with a space in it
_FAILURES = (
    TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError,
    TypeError, ValueError,
)  # fmt: skip


class _Steps:
    """Counts the steps of one rendering."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self) -> bool:
        self.taken += 1
        if self.taken > MAX_STEPS:
            raise TemplateRuntimeError(f"it loops more than {MAX_STEPS} times")
        return True


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}` marks the assistant's text; its body is rendered."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it as an instance's)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(
            parser.parse_statements(("name:endgeneration",), drop_needle=True)
        ).set_lineno(line)


class _Names(Namespace):
    """`namespace()`, without names that lead to Python's own."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise SecurityError(f"the name {name!r} begins with an underscore")
        super().__setitem__(name, value)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja for chat templates: no file, no import, no attribute of Python, bounded work and size."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self.filters["tojson"] = _to_json
        self.globals.update(
            raise_exception=_raise,
            strftime_now=_now,
            range=_range,
            dict=lambda **items: items,
            namespace=_Names,
        )
        del self.globals["lipsum"]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Computes `+` and `*`, unless the result would be huge; `**` is refused."""
        if operator == "**":
            raise SecurityError("powers are not allowed")
        if operator == "*":
            if isinstance(left, int) and isinstance(right, int):
                size, most = left.bit_length() + right.bit_length(), MAX_BITS
            else:
                text, times = (right, left) if isinstance(left, int) else (left, right)
                size, most = (len(text) * times if hasattr(text, "__len__") else 0), MAX_TEXT
            if size > most:
                raise SecurityError("a product is too large")
            return left * right
        return self.bounded(left + right)

    def bounded(self, value: Any) -> Any:
        if isinstance(value, str | list | tuple) and len(value) > MAX_TEXT:
            raise TemplateRuntimeError(f"it builds a text of more than {MAX_TEXT} characters")
        return value

    def step(self, context: Context) -> bool:
        return context.resolve(_STEPS).take()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > MAX_RANGE:
        raise SecurityError(f"a range has more than {MAX_RANGE} numbers")
    return numbers


def _call(method: str, *arguments: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)


def _bound(tree: nodes.Template, environment: _Environment) -> nodes.Template:
    """Adds a count to every turn of a loop and call of a macro, a bound to every joined text."""
    for loop in tree.find_all(nodes.For):
        step = _call("step", nodes.ContextReference())
        loop.body.insert(0, nodes.ExprStmt(step))
        if loop.test is not None:
            loop.test = nodes.And(step, loop.test)
    for macro in tree.find_all((nodes.Macro, nodes.CallBlock)):
        macro.body.insert(0, nodes.ExprStmt(_call("step", nodes.ContextReference())))
    for joined in list(tree.find_all(nodes.Concat)):
        joined.nodes = [_call("bounded", nodes.Concat(list(joined.nodes)))]
    tree.set_environment(environment)
    for node in tree.find_all(nodes.Node):
        node.set_lineno(node.lineno or 1)
    return tree


@lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    environment = _Environment()
    return environment.from_string(_bound(environment.parse(source), environment))


def _pieces(source: str, names: dict[str, Any]) -> Iterator[str]:
    size = 0
    for piece in _compiled(source).generate({**names, _STEPS: _Steps()}):
        size += len(piece)
        if size > MAX_TEXT:
            raise TemplateRuntimeError(f"it gives more than {MAX_TEXT} characters")
        yield piece


def render(source: str, messages: Sequence[Message], names: dict[str, Any]) -> str:
    """Renders the messages by the template `source`.

    `names` are the template's other variables (bos_token, add_generation_prompt, …). Raises
    ModelError, in one line, where the template is not valid, refuses the messages, or works or
    writes without end.
    """
    variables = {
        "messages": [dict(m) for m in messages], "tools": None, "documents": None, **names,
    }  # fmt: skip
    try:
        return "".join(_pieces(source, variables))
    except _FAILURES as failure:
        reason = " ".join(str(failure).split()) or type(failure).__name__
        raise ModelError(
            f"the chat template fails on these messages: {reason[:300]}; "
            "give another with `template`"
        ) from None

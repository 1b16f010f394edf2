"""Builds HTML in which text cannot become markup: only `tag` makes markup, all else is escaped."""

import html
import re

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_VOID = frozenset({"meta", "link"})


class Markup(str):
    """Finished HTML."""


Child = str | Markup | None


def escape(text: str) -> Markup:
    """Escapes text for HTML; characters that a page may not hold become U+FFFD.

    >>> escape("<b> & \\x00")
    '&lt;b&gt; &amp; \ufffd'
    """
    return text if isinstance(text, Markup) else Markup(html.escape(_CONTROL.sub("\ufffd", text)))


def tag(name: str, /, *children: Child, **attributes: str | None) -> Markup:
    """An element; children and attributes that are None are left out.

    `class_` is class, and `_` within an attribute's name is `-`.

    >>> tag("td", "a < b", class_="number", data_label="n")
    '<td class="number" data-label="n">a &lt; b</td>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(escape(child) for child in children if child is not None)
    return Markup(f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{inside}</{name}>")


def join(parts: list[Markup]) -> Markup:
    return Markup("".join(parts))

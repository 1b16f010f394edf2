"""Plain numbers with their units, read exactly: the fast way of comparing answers.

Integers, decimals, fractions, mixed numbers, percent and powers of ten become a Fraction with
bounded digits and exponents. There are no floats.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

DIGITS = 100  # of a number
EXPONENT = 300  # of ten

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_SIGNED = rf"[-+]?(?:{_NUMBER})"
_FRACTION = re.compile(rf"([-+]?)\\frac\{{({_SIGNED})\}}\{{({_SIGNED})\}}")
_MIXED = re.compile(r"([-+]?)(\d+)(?:\s+|(?=\\))(?:(\d+)/(\d+)|\\frac\{(\d+)\}\{(\d+)\})")
_RATIO = re.compile(rf"({_SIGNED})\s*/\s*({_SIGNED})")
_POWER = re.compile(
    rf"({_SIGNED})(?:[eE]|\s*(?:\\times|\\cdot|\*|x|×)\s*10\s*(?:\^|\*\*))"
    r"\s*(?:\{\s*([-+]?\d+)\s*\}|([-+]?\d+))"
)
_PLAIN = re.compile(_SIGNED)
_ASSIGNED = re.compile(r"(?:\\?[A-Za-z]{1,8}|[A-Za-z]_\{?\w\}?)\s*=\s*(.+)", re.DOTALL)
_UNIT = re.compile(
    r"(?P<number>.*?[\d.}])(?:\s*\^?\s*\{?\\?°\}?)?\s*(?P<unit>[A-Za-z][A-Za-z .²³^\d{}/·-]*)?",
    re.DOTALL,
)

_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# Words after a number that change it, or say that more follows: then they are no unit.
_NOT_UNIT = re.compile(
    r"pi|e|i|x|y|z|n|k|or|and|to|by|over|times|plus|minus|than|less|more|not|no|half|halves"
    r"|thirds?|quarters?|squared|cubed|factorial|root|sqrt|sin|cos|tan|log|ln|exp|mod|choose"
    r"|is|dozen|score|infinity|inf",
    re.IGNORECASE,
)
_SYNONYMS = {
    name: unit
    for unit, names in {
        "dollar": "dollars usd", "cent": "cents", "euro": "euros eur", "pound sterling": "gbp",
        "meter": "m meters metre metres", "centimeter": "cm centimeters centimetre centimetres",
        "millimeter": "mm millimeters millimetre millimetres",
        "kilometer": "km kilometers kilometre kilometres",
        "inch": "in inches", "foot": "ft feet", "yard": "yd yards", "mile": "mi miles",
        "gram": "g grams", "kilogram": "kg kilograms kilo kilos", "milligram": "mg milligrams",
        "pound": "lb lbs pounds", "ounce": "oz ounces", "ton": "tons tonne tonnes",
        "second": "s sec secs seconds", "minute": "min mins minutes",
        "hour": "h hr hrs hours", "day": "days", "week": "weeks", "month": "months",
        "year": "yr yrs years", "liter": "l L liters litre litres",
        "milliliter": "ml mL milliliters millilitre millilitres",
        "mile per hour": "mph miles/hour miles_per_hour",
        "kilometer per hour": "km/h kph kmh kilometers_per_hour",
        "meter per second": "m/s meters_per_second", "radian": "rad radians", "degree": "degrees",
        "percent": "percentage pct",
    }.items()
    for name in [unit, *names.split()]
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value. `unit` is a known unit or empty; with `percent` the value is the one before
    the sign.
    """

    value: Fraction
    unit: str = ""
    percent: bool = False


def same(gold: Number, answer: Number) -> bool:
    """Equal values, where a percent sign or a unit may be left out but not contradict.

    >>> from whet.rewards.math.numbers import number, same
    >>> [same(number("50%"), number(other)) for other in ["50", "0.5", "1/2", "5"]]
    [True, True, True, False]
    >>> same(number("5 m"), number("5 kg"))
    False
    """
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    values = [n.value / (100 if n.percent else 1) for n in (gold, answer)]
    return gold.value == answer.value or values[0] == values[1]


def number(text: str) -> Number | None:
    """The number that the whole of `text` writes, or None: more than a number, or beyond DIGITS and
    EXPONENT.

    >>> number("x = 1{,}234.50 dollars")
    Number(value=Fraction(2469, 2), unit='dollar', percent=False)
    >>> number("5 or 6"), number("9**9**9")
    (None, None)
    """
    if len(text) > 4 * DIGITS:
        return None
    text = cleaned(text)
    assigned = _ASSIGNED.fullmatch(text)
    if assigned:
        text = assigned.group(1).strip()
    unit = ""
    currency = re.fullmatch(r"([-+]?)\s*([$€£])\s*(.*)", text, re.DOTALL)
    if currency:
        sign, symbol, amount = currency.groups()
        text = sign + amount
        unit = {"$": "dollar", "€": "euro", "£": "pound sterling"}[symbol]
    percent = text.endswith("%")
    text = text.rstrip("%").rstrip()
    match = _UNIT.fullmatch(text)
    if match is None:
        return None
    figures, words, scale = match.group("number"), match.group("unit") or "", 0
    if words and figures[-1:].isdigit() and re.match(r"[eE][-+]?\d", words):  # 1e5: no unit
        figures, words = text, ""
    if words:
        named = _named(words)
        if named is None:
            return None
        scale, name = named
        percent, unit = percent or name == "percent", unit or ("" if name == "percent" else name)
    value = _value(figures.strip())
    return None if value is None else Number(value * 10**scale, unit, percent)


def cleaned(text: str) -> str:
    """The text without markup that does not change a number: dollars around formulas, spacing,
    \\text, bold, a final period.
    """
    text = text.strip().strip("*").strip()
    for start, end in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(start) and text.endswith(end) and len(text) > len(start + end):
            text = text[len(start) : -len(end)].strip()
            break
    text = re.sub(
        r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 ", text
    )
    text = re.sub(
        r"\\[!,;: ]|\{,\}|~|\\left|\\right", lambda m: "," if m.group() == "{,}" else "", text
    )
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|°", " degrees", text)
    text = (
        text.replace("\\$", "$")
        .replace("\\%", "%")
        .replace("−", "-")
        .replace("–", "-")
        .replace("\u202f", "")
    )
    return " ".join(text.split()).removesuffix(".").strip()


def _named(words: str) -> tuple[int, str] | None:
    """The power of ten and the known unit in the words after a number; None where the words make it
    something else.
    """
    parts = words.strip(" .").split()
    scale = 0
    while parts and parts[0].lower() in _SCALES:
        scale += _SCALES[parts.pop(0).lower()]
    if len(parts) > 5 or any(
        _NOT_UNIT.fullmatch(part) or part.lower() in _SCALES for part in parts
    ):
        return None
    joined = [joint.join(parts) for joint in (" ", "_")]
    for name in [*joined, *map(str.lower, joined)]:
        if name in _SYNONYMS:
            return scale, _SYNONYMS[name]
    if any(
        len(part) < 2 or not re.fullmatch(r"[A-Za-z.-]+(?:[²³]|\^\{?[23]\}?)?(?:/[A-Za-z]+)?", part)
        for part in parts
    ):
        return None
    return scale, ""


def _value(text: str) -> Fraction | None:
    """The exact value of figures without a unit; None where they are no number."""
    if sum(map(str.isdigit, text)) > DIGITS:
        return None
    if _PLAIN.fullmatch(text):
        return _exact(text)
    if match := _POWER.fullmatch(text):
        exponent = int(match[2] or match[3])
        return _exact(match[1]) * Fraction(10) ** exponent if abs(exponent) <= EXPONENT else None
    whole, sign = "0", ""
    if match := _FRACTION.fullmatch(text):
        sign, top, bottom = match.groups()
    elif match := _MIXED.fullmatch(text):
        sign, whole, *parts = match.groups()
        top, bottom = (part for part in parts if part is not None)
    elif match := _RATIO.fullmatch(text):
        top, bottom = match.groups()
    else:
        return None
    if not _exact(bottom):
        return None
    return (-1 if sign == "-" else 1) * (_exact(whole) + _exact(top) / _exact(bottom))


def _exact(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))

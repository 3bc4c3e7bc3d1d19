"""Predicates of PMML as formulas over the fields of its data dictionary."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence

from distill_jax.rules.binding.binding import RuleWarning
from distill_jax.rules.exchange._xml import Element
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._times import parse_date, parse_datetime, parse_time
from distill_jax.rules.language._tokens import underflows
from distill_jax.rules.language.errors import shortened

_OPERATORS = {
    "equal": "==",
    "notEqual": "!=",
    "lessThan": "<",
    "lessOrEqual": "<=",
    "greaterThan": ">",
    "greaterOrEqual": ">=",
}
PREDICATES = (
    "SimplePredicate", "CompoundPredicate", "SimpleSetPredicate", "True", "False",
)  # fmt: skip


def warn(message: str) -> None:
    """Warns of what is not kept."""
    warnings.warn(shortened(message, 400), RuleWarning, stacklevel=2)


class Fields:
    """The types of the fields that predicates name.

    Attributes:
      derived, replaced: Fields that were used, and need a warning.
    """

    def __init__(self, root: Element, model: Element):
        self.types: dict[str, str] = {}
        self._derived = set()
        self._changed: dict[str, str] = {}
        self.derived: dict[str, None] = {}
        self.replaced: dict[str, str] = {}
        for x in (*root.every("DerivedField"), *root.every("DataField")):
            name = x.attributes.get("name", "")
            self.types[name] = x.attributes.get("dataType", "")
            if x.tag == "DerivedField":
                self._derived.add(name)
                continue
            self._derived.discard(name)
            if any(y.attributes.get("property") == "missing" for y in x.children):
                self._changed[name] = "have values that stand for missing ones"
        for x in model.children:
            for y in x.children if x.tag == "MiningSchema" else ():
                name = y.attributes.get("name", "")
                if "missingValueReplacement" in y.attributes:
                    self._changed[name] = "are replaced where they are missing"
                elif y.attributes.get("outliers", "asIs") != "asIs":
                    self._changed[name] = "are changed where they are outliers"

    def type_of(self, predicate: Element) -> tuple[str, str]:
        """The field of a predicate, and its type."""
        name = predicate.needed("field")
        if name not in self.types:
            raise predicate.error(f"the field {name!r} is not in the data dictionary")
        if name in self._derived:
            self.derived[name] = None
        if name in self._changed:
            self.replaced[name] = self._changed[name]
        return name, self.types[name]

    def warn(self) -> None:
        if self.derived:
            warn(
                f"the fields {list(self.derived)} are derived: compute them into columns of the "
                "table, as the file says"
            )
        for name, how in self.replaced.items():
            warn(f"values of {name!r} {how} in the model: do the same in the table")


def _of_number(text: str) -> f.Value:
    found = float(text)
    if not math.isfinite(found) or underflows(text.strip()):
        raise ValueError
    return f.Number(int(text) if re.fullmatch(r"\s*[+-]?[0-9]+\s*", text) else found)


_READ: dict[str, Callable[[str], f.Value]] = {
    "string": f.String,
    "integer": _of_number,
    "float": _of_number,
    "double": _of_number,
    "date": lambda text: f.Time(parse_date(text)),
    "dateTime": lambda text: f.Time(*parse_datetime(text)),
    "time": lambda text: f.TimeOfDay(parse_time(text)),
}


def _literal(predicate: Element, kind: str, text: str) -> f.Value:
    """A value, as the type of its field asks for."""
    if kind not in _READ:
        raise predicate.error(f"values of the type {kind!r} are not known to rules")
    try:
        return _READ[kind](text)
    except ValueError:
        raise predicate.error(
            f"expected a value of type {kind}, got {shortened(text, 60)!r}"
        ) from None


# Predicates


def formula_of(x: Element, fields: Fields) -> f.Formula | bool:
    """A predicate as a formula; True or False if it is that."""
    if x.tag in ("True", "False"):
        return x.tag == "True"
    if x.tag == "SimplePredicate":
        return _simple(x, fields)
    if x.tag == "SimpleSetPredicate":
        return _in_set(x, fields)
    operator = x.needed("booleanOperator")
    parts = [formula_of(y, fields) for y in x.children if y.tag in PREDICATES]
    if len(parts) < 1:
        raise x.error("it has no predicates")
    if operator == "surrogate":
        raise x.error(
            "surrogate predicates, which stand in where others are unknown, are not known to rules"
        )
    if operator not in ("and", "or", "xor"):
        raise x.error(f"booleanOperator must be and, or, xor or surrogate, got {operator!r}")
    known = [y for y in parts if isinstance(y, bool)]
    formulas = [y for y in parts if isinstance(y, f.Formula)]
    if operator == "xor":
        return _odd(formulas, sum(known) % 2 == 1)
    ends = operator == "or"  # what one part alone decides
    if ends in known:
        return ends
    kind = f.Or if ends else f.And
    flat = [z for y in formulas for z in (y.parts if type(y) is kind else (y,))]
    if not flat:
        return not ends
    return flat[0] if len(flat) == 1 else kind(tuple(flat))


def _odd(formulas: Sequence[f.Formula], negated: bool) -> f.Formula | bool:
    """An odd number of the formulas holds; an even one if ``negated``."""
    if not formulas:
        return negated
    whole = formulas[0]
    for other in formulas[1:]:
        whole = f.Not(f.Iff(whole, other))
    if not negated:
        return whole
    return whole.part if isinstance(whole, f.Not) else f.Not(whole)


def _simple(x: Element, fields: Fields) -> f.Formula:
    name, kind = fields.type_of(x)
    column, operator = f.Name(name), x.needed("operator")
    if operator in ("isMissing", "isNotMissing"):
        return f.Missing(column, negated=operator == "isNotMissing")
    if operator not in _OPERATORS:
        raise x.error(f"operator must be one of {', '.join(_OPERATORS)}, got {operator!r}")
    text = x.needed("value")
    if kind == "boolean":
        holds = {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower())
        if holds is None or operator not in ("equal", "notEqual"):
            raise x.error(f"a boolean is equal to true or false, got {operator} {text[:40]!r}")
        return column if holds == (operator == "equal") else f.Not(column)
    return f.Compare((column, _literal(x, kind, text)), (_OPERATORS[operator],))


def _in_set(x: Element, fields: Fields) -> f.Formula:
    name, kind = fields.type_of(x)
    operator = x.needed("booleanOperator")
    if operator not in ("isIn", "isNotIn"):
        raise x.error(f"booleanOperator must be isIn or isNotIn, got {operator!r}")
    array = next((y for y in x.children if y.tag == "Array"), None)
    words = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', array.text) if array is not None else []
    texts = [bare or re.sub(r"\\(.)", r"\1", quoted) for quoted, bare in words]
    if not texts:
        raise x.error("the set has no values")
    if kind == "boolean":
        raise x.error("a boolean is compared by equal, not with a set")
    values = tuple(_literal(x, kind, text) for text in texts)
    if len(values) == 1:
        return f.Compare((f.Name(name), values[0]), ("==" if operator == "isIn" else "!=",))
    return f.In(f.Name(name), values, negated=operator == "isNotIn")

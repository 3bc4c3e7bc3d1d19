"""Rule sets in PMML, the Predictive Model Markup Language.

References:
  Data Mining Group, `PMML 4.4: RuleSet <https://dmg.org/pmml/v4-4-1/RuleSet.html>`_.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from distill_jax._arguments import checked
from distill_jax.rules.exchange._predicates import PREDICATES, Fields, formula_of, warn
from distill_jax.rules.exchange._xml import Element, read_xml
from distill_jax.rules.exchange.mined import smoothed
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language.errors import RuleError

METHODS = ("firstHit", "weightedSum", "weightedMax")


@checked
def from_pmml(
    source: str | bytes | pathlib.Path,
    *,
    model: str | None = None,
    method: Literal["firstHit", "weightedSum", "weightedMax"] | None = None,
    scale: float = 1.0,
    group: str = "ruleset",
) -> tuple[f.Rule, ...]:
    """Rules from a ``RuleSetModel`` of a PMML file.

    =================  =========================================================================
    selection method   rules
    =================  =========================================================================
    ``firstHit``       a group ``[first=ruleset]``, with ``[p=confidence]``
    ``weightedMax``    the same, the rule of the highest weight first, the order of the file among
                       equal weights
    ``weightedSum``    ``[w=scale*weight]``: weights of one class add up, and the class with the
                       highest sum wins, as log-odds do over uniform predictions
    =================  =========================================================================

    A default score becomes ``else``. Rules in a ``CompoundRule`` have its predicate as a further
    condition. A confidence is smoothed by ``recordCount`` if there is one, else brought into
    [0.001, 0.999]. Columns are the fields of the data dictionary, in whose types values are read.

    What is not kept, and said here alone: score distributions, counts, the confidence of a weighted
    sum. A rule over a missing value does not fire in PMML, and the rules after it are tried; in a
    group of rules here, it stops the group, since it might have been the one. What changes
    predictions otherwise is in a warning or an error.

    Args:
      source: The file, or its text.
      model: The ``modelName`` of the rule set, if the file has several.
      method: How rules are selected, of those that the file lists; by default the first one.
      scale: Log-odds per unit of weight.
      group: The name of the group.

    Returns:
      The rules, named by their ``id``.

    Raises:
      RuleError: with the line, for text that is no PMML, a document type, or what no rule can say:
        surrogate predicates, regression, values that do not fit the type of their field, types
        such as ``timeSeconds``.
      ValueError: for a ``model`` or ``method`` that the file does not have.

    Warns:
      RuleWarning: for rules that never fire; for derived fields, which are columns to the rules;
        and where the model itself replaces missing values or outliers, or is a segment of another.

    Example:
      >>> text = '''<PMML version="4.4"><DataDictionary>
      ...   <DataField name="K" optype="continuous" dataType="double"/>
      ...   <DataField name="BP" optype="categorical" dataType="string"/>
      ... </DataDictionary>
      ... <RuleSetModel functionName="classification"><RuleSet defaultScore="drugY">
      ...   <RuleSelectionMethod criterion="firstHit"/>
      ...   <SimpleRule id="one" score="drugB" confidence="0.9">
      ...     <CompoundPredicate booleanOperator="and">
      ...       <SimplePredicate field="BP" operator="equal" value="HIGH"/>
      ...       <SimplePredicate field="K" operator="greaterThan" value="0.0458"/>
      ...     </CompoundPredicate>
      ...   </SimpleRule>
      ... </RuleSet></RuleSetModel></PMML>'''
      >>> for rule in from_pmml(text):
      ...     print(rule)
      [p=0.9, first=ruleset] one: BP == 'HIGH' and K > 0.0458 => drugB
      [first=ruleset] else => drugY
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    if method is not None and method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    data, where = _bytes(source)
    try:
        # Text has no encoding any more, whatever it declares.
        is_text = isinstance(source, str) and not where
        root = read_xml(data, "utf-8" if is_text else None)
        if root.tag != "PMML":
            raise root.error("expected <PMML>")
        return _rules(root, model, method, scale, group)
    except RuleError as error:
        raise RuleError(f"{where}{error}") from None


def _bytes(source: str | bytes | pathlib.Path) -> tuple[bytes, str]:
    """The file's content, and what an error begins with."""
    if isinstance(source, bytes):
        return source, ""
    if isinstance(source, str) and source.lstrip("\ufeff \t\r\n").startswith("<"):
        text = source.lstrip("\ufeff")
        text = text.lstrip() if text.lstrip().startswith("<?xml") else text
        return text.encode("utf-8"), ""
    path = pathlib.Path(source)
    return path.read_bytes(), f"{path}, "


class _Found(NamedTuple):
    """A simple rule: its element, its conditions, and whether these hold always."""

    element: Element
    conditions: tuple[f.Formula, ...]

    def number(self, name: str) -> float | None:
        return _number(self.element, name)


def _rules(
    root: Element, model: str | None, method: str | None, scale: float, group: str
) -> tuple[f.Rule, ...]:
    chosen = _model(root, model)
    if chosen.needed("functionName") != "classification":
        raise chosen.error(
            f"rules are for classification, got functionName {chosen.needed('functionName')!r}"
        )
    rule_set = next((x for x in chosen.children if x.tag == "RuleSet"), None)
    if rule_set is None:
        raise chosen.error("it has no <RuleSet>")
    criterion = _criterion(rule_set, method)
    fields = Fields(root, chosen)
    found = _simple_rules(rule_set, (), fields)
    fields.warn()
    default = rule_set.attributes.get("defaultScore")
    if not found and default is None:
        raise rule_set.error("it has no rules that may fire")
    if criterion == "weightedSum":
        return _summed(found, rule_set, scale, group)
    if criterion == "weightedMax":  # sorted() keeps the order of equal weights
        found = sorted(found, key=lambda x: -_weight(x))
    return _first(found, rule_set, group)


def _model(root: Element, name: str | None) -> Element:
    models = list(root.every("RuleSetModel"))
    names = [x.attributes.get("modelName", "") for x in models]
    if not models:
        others = sorted({x.tag for x in root.children if x.tag.endswith("Model")})
        raise root.error(f"it has no <RuleSetModel>, but {', '.join(others) or 'no model at all'}")
    if name is None and len(models) > 1:
        raise ValueError(f"model must name one of the rule sets {names}, got None")
    if name is not None and names.count(name) != 1:
        raise ValueError(f"model must name one of the rule sets {names}, got {name!r}")
    chosen = models[0 if name is None else names.index(name)]
    if chosen.parent is not root:
        warn(f"line {chosen.line}: the rule set is a part of another model, which is not read")
    return chosen


def _criterion(rule_set: Element, method: str | None) -> str:
    listed = [x.needed("criterion") for x in rule_set.children if x.tag == "RuleSelectionMethod"]
    if not listed:
        raise rule_set.error("it has no <RuleSelectionMethod>")
    if method is not None and method not in listed:
        raise ValueError(f"method must be one of {', '.join(listed)}, got {method!r}")
    criterion = listed[0] if method is None else method
    if criterion not in METHODS:
        raise rule_set.error(
            f"the criterion must be one of {', '.join(METHODS)}, got {criterion!r}"
        )
    return criterion


def _simple_rules(element: Element, outer: tuple[f.Formula, ...], fields: Fields) -> list[_Found]:
    """The simple rules of a rule set or compound rule that may fire."""
    found: list[_Found] = []
    for rule in element.children:
        if rule.tag not in ("SimpleRule", "CompoundRule"):
            continue
        predicates = [x for x in rule.children if x.tag in PREDICATES]
        if len(predicates) != 1:
            raise rule.error(f"it must have one predicate, got {len(predicates)}")
        formula = formula_of(predicates[0], fields)
        if formula is False:
            warn(f"line {rule.line}, <{rule.tag}>: it never fires, and was left out")
            continue
        inner = formula.parts if type(formula) is f.And else (formula,)
        conditions = (*outer, *(x for x in inner if isinstance(x, f.Formula)))
        if rule.tag == "SimpleRule":
            rule.needed("score")
            found.append(_Found(rule, conditions))
        else:
            found += _simple_rules(rule, conditions, fields)
    return found


def _rule(
    x: _Found, strength: f.Strength, group: str | None, priority: int | None, last: bool = False
) -> f.Rule:
    head = f.Name(x.element.needed("score"))
    if x.conditions:
        body = x.conditions[0] if len(x.conditions) == 1 else f.And(x.conditions)
        made: f.Formula = f.Implies(body, head)
    else:
        made = f.Implies(f.Else(), head) if last else head
    name = x.element.attributes.get("id")
    return f.Rule(made, name, strength, line=x.element.line, group=group, priority=priority)


def _first(found: Sequence[_Found], rule_set: Element, group: str) -> tuple[f.Rule, ...]:
    """Rules of which the first fires."""
    always = next((i for i, x in enumerate(found) if not x.conditions), None)
    kept = found if always is None else found[: always + 1]
    for x in found[len(kept) :]:
        warn(f"line {x.element.line}: a rule before this one always fires, and it was left out")
    if always == 0:  # and then it is no group
        return (_rule(kept[0], _strength(kept[0]), None, None),)
    rules = [_rule(x, _strength(x), group, None, last=True) for x in kept]
    if always is None:
        rules += _default(rule_set, group, None, alone=not rules)
    return tuple(rules)


def _summed(
    found: Sequence[_Found], rule_set: Element, scale: float, group: str
) -> tuple[f.Rule, ...]:
    """Rules whose weights add up; in a group if there is a default."""
    always = any(not x.conditions for x in found)
    grouped = "defaultScore" in rule_set.attributes and not always and bool(found)
    own, rank = (group, 1) if grouped else (None, None)
    rules = []
    for x in found:
        weight = scale * _weight(x)
        if not math.isfinite(weight):
            raise x.element.error(f"scale * weight must be finite, got {weight}")
        rules.append(_rule(x, f.Strength("w", weight), own, rank))
    if grouped or not found:
        rules += _default(rule_set, group, 0, alone=not found)
    return tuple(rules)


def _default(rule_set: Element, group: str, rank: int | None, alone: bool) -> list[f.Rule]:
    if "defaultScore" not in rule_set.attributes:
        return []
    head = f.Name(rule_set.attributes["defaultScore"])
    confidence = _number(rule_set, "defaultConfidence")
    strength = f.Strength() if confidence is None else _of_confidence(rule_set, confidence, None)
    if alone:
        return [f.Rule(head, None, strength)]
    return [f.Rule(f.Implies(f.Else(), head), None, strength, group=group, priority=rank)]


def _strength(x: _Found) -> f.Strength:
    confidence = x.number("confidence")
    if confidence is None:
        return f.Strength()
    return _of_confidence(x.element, confidence, x.number("recordCount"))


def _of_confidence(element: Element, confidence: float, count: float | None) -> f.Strength:
    if not 0.0 <= confidence <= 1.0 or not (count is None or count >= 0):
        raise element.error(f"a confidence lies between 0 and 1, got {confidence} of {count}")
    return f.Strength("p", smoothed("a rule", confidence, count))


def _weight(x: _Found) -> float:
    weight = x.number("weight")
    return 1.0 if weight is None else weight  # the default of PMML


def _number(element: Element, name: str) -> float | None:
    if name not in element.attributes:
        return None
    try:
        found = float(element.attributes[name])
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise element.error(f"{name} must be a number, got {element.attributes[name][:40]!r}")
    return found

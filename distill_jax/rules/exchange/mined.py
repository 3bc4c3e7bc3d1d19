"""Rules learned by other libraries: decision trees, and conditions as strings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.rules.language import formulas as f
from distill_jax.rules.language.building import Built, formula
from distill_jax.rules.language.errors import RuleError
from distill_jax.rules.language.parsing import parse_formula


def from_tree(
    estimator: Any,
    feature_names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    *,
    smoothing: float = 1.0,
) -> tuple[f.Rule, ...]:
    r"""One rule per leaf of a scikit-learn decision tree: the path to the leaf implies its class.

    With :math:`n_c` of a leaf's :math:`n` training examples in its class, ``K`` classes, and
    ``smoothing`` :math:`s` added to the count of each class, the strength of its rule is the
    log-odds of its class against an average other class:

    .. math:: w = \log(n_c + s) - \log((n - n_c) / (K - 1) + s)

    Applied to a uniform prediction, the rules predict the class that the tree predicts.

    Args:
      estimator: A fitted ``DecisionTreeClassifier`` with one output.
      feature_names: The names of the columns that it was fitted on, in their order; None for its
        ``feature_names_in_``.
      classes: The names of its classes, in the order of ``estimator.classes_``; None for those.
      smoothing: Count added to each class, > 0.

    Returns:
      Rules ``low < x <= high and y > 2 => class``, named by the leaf's node, such as ``leaf_3``.
      Thresholds are rounded down to float32, which separates the same float32 values. Unlike the
      tree, rules over a missing value are silent.

    Raises:
      TypeError: for another estimator, or one that is not fitted.
      ValueError: for several outputs, names whose number does not match, or a ``smoothing`` out of
        range.

    Example:
      >>> from sklearn.tree import DecisionTreeClassifier
      >>> tree = DecisionTreeClassifier().fit([[0.0], [1.0], [3.0]], [0, 0, 1])
      >>> for rule in from_tree(tree, ["x"], ["low", "high"]):
      ...     print(rule)
      [w=1.0986] leaf_1: x <= 2 => low
      [w=0.6931] leaf_2: x > 2 => high
    """
    try:
        tree, labels = estimator.tree_, estimator.classes_
        left, right = tree.children_left.tolist(), tree.children_right.tolist()
    except AttributeError:
        raise TypeError(
            f"estimator must be a fitted DecisionTreeClassifier, got {type(estimator).__name__}"
        ) from None
    if tree.value.shape[1] != 1:
        raise ValueError(f"estimator must have one output, got {tree.value.shape[1]}")
    if not (math.isfinite(smoothing) and smoothing > 0):
        raise ValueError(f"smoothing must be finite and > 0, got {smoothing}")
    if feature_names is None:
        feature_names = vars(estimator).get("feature_names_in_")
    if feature_names is None or len(feature_names) != tree.n_features:
        got = "none" if feature_names is None else len(feature_names)
        raise ValueError(f"feature_names must hold {tree.n_features} names, got {got}")
    names = [str(x) for x in (labels if classes is None else classes)]
    if len(names) != len(labels) or len(names) < 2:
        raise ValueError(
            f"classes must name the estimator's {len(labels)} classes, at least two, got {names}"
        )
    rules = []
    stack: list[tuple[int, dict[int, tuple[float, float]]]] = [(0, {})]
    while stack:
        node, limits = stack.pop()
        if left[node] == right[node]:  # a leaf
            shares = tree.value[node, 0] / tree.value[node, 0].sum()
            counts = shares * tree.weighted_n_node_samples[node]
            best = int(counts.argmax())
            other = (counts.sum() - counts[best]) / (len(names) - 1)
            weight = round(math.log((counts[best] + smoothing) / (other + smoothing)), 4)
            body = [_interval(str(feature_names[i]), *ends) for i, ends in limits.items()]
            rules.append(
                f.Rule(_implies(body, f.Name(names[best])), f"leaf_{node}", f.Strength("w", weight))
            )
            continue
        feature, threshold = int(tree.feature[node]), _threshold(tree.threshold[node])
        low, high = limits.get(feature, (-math.inf, math.inf))
        stack.append((right[node], limits | {feature: (max(low, threshold), high)}))
        stack.append((left[node], limits | {feature: (low, min(high, threshold))}))
    return tuple(rules)


def _threshold(value: float) -> float:
    """The number with the fewest digits that splits the float32 values as ``value`` does."""
    floor = np.float32(value)
    if float(floor) > value:
        floor = np.nextafter(floor, np.float32(-np.inf))
    candidates = (float(f"{float(floor):.{digits}g}") for digits in range(1, 18))
    return next(x for x in candidates if x >= floor and np.float32(x) == floor)


def _interval(name: str, low: float, high: float) -> f.Formula:
    """``low < name <= high``, without an infinite end."""
    if math.isinf(low):
        return f.Compare((f.Name(name), f.Number(high)), ("<=",))
    if math.isinf(high):
        return f.Compare((f.Name(name), f.Number(low)), (">",))
    return f.Compare((f.Number(low), f.Name(name), f.Number(high)), ("<", "<="))


def _implies(body: Sequence[f.Formula], head: f.Formula) -> f.Formula:
    """The rule's formula; the head alone for a tree without a split."""
    if not body:
        return head
    return f.Implies(body[0] if len(body) == 1 else f.And(tuple(body)), head)


_AND = re.compile(r"\s+(?:and|&)\s+")
_CONDITION = re.compile(r"\s*([^<>=!]*[^<>=!\s])\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")


def from_rule_strings(
    strings: Sequence[str],
    then: str | Built | f.Formula,
    *,
    p: Sequence[float] | None = None,
    feature_names: Sequence[str] | None = None,
) -> tuple[f.Rule, ...]:
    """Rules from conditions such as ``a > 3 and b <= 4``, the output of skope-rules and imodels.

    Args:
      strings: The conditions. A string that is not a formula of this library is read as comparisons
        of a column with a number, joined by ``and`` or ``&``; the names of columns may contain
        spaces.
      then: The head of each rule: the name of a class or label, or a formula.
      p: The probability of each rule, such as its precision, in (0, 1); its strength is
        ``[p=...]``.
      feature_names: The names of the columns. If given, all conditions are read as such
        comparisons, and other names raise an error.

    Returns:
      One rule per string, ``condition => then``.

    Raises:
      RuleError: for a string that is not a condition, with its index.
      TypeError: if ``strings`` is a single string, or ``then`` is not a formula.
      ValueError: if the number of probabilities does not match, or one lies outside (0, 1).

    Example:
      >>> for rule in from_rule_strings(["mean area > 3.0 and b <= 4"], "malignant", p=[0.9]):
      ...     print(rule)
      [p=0.9] `mean area` > 3 and b <= 4 => malignant
    """
    if isinstance(strings, str):
        raise TypeError(f"strings must be a list, got the string {strings!r}")
    if p is not None and len(p) != len(strings):
        raise ValueError(f"p must hold {len(strings)} numbers, one per rule, got {len(p)}")
    head = f.Name(then) if isinstance(then, str) else formula(then)
    known = None if feature_names is None else {name: None for name in feature_names}
    if p is None:
        strengths = [f.Strength()] * len(strings)
    else:
        strengths = [f.Strength("p", float(x)) for x in p]
    return tuple(
        f.Rule(f.Implies(_body(text, i, known), head), None, strength)
        for i, (text, strength) in enumerate(zip(strings, strengths, strict=True))
    )


def _body(text: str, i: int, known: Mapping[str, None] | None) -> f.Formula:
    """The formula of ``strings[i]``."""
    if known is None:
        try:
            return parse_formula(text)
        except RuleError as error:
            problem = str(error).removeprefix("line 1, ")
    else:
        problem = f"expected comparisons of {', '.join(known)} with numbers, got {text}"
    parts = tuple(_condition(part, known) for part in _AND.split(text))
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        raise RuleError(f"strings[{i}], {problem}")
    return whole[0] if len(whole) == 1 else f.And(tuple(whole))


def _condition(text: str, known: Mapping[str, None] | None) -> f.Formula | None:
    """A comparison of a column with a number; None if the text is not one."""
    match = _CONDITION.fullmatch(text)
    if match is None or (known is not None and match[1] not in known):
        return None
    try:
        number = f.Number(float(match[3]))
    except ValueError:  # not a number, or not finite
        return None
    return f.Compare((f.Name(match[1]), number), (match[2],))

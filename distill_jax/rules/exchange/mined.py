"""Rules learned by other libraries: decision trees, and conditions as strings."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from distill_jax._arguments import checked
from distill_jax.rules.exchange._leaves import check_smoothing, leaf_rule, leaf_strength
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._tokens import underflows
from distill_jax.rules.language.building import Built, formula
from distill_jax.rules.language.errors import RuleError, shortened
from distill_jax.rules.language.parsing import parse_formula


@checked
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
    check_smoothing(smoothing)
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
            named = {str(feature_names[i]): ends for i, ends in limits.items()}
            strength = leaf_strength(counts.tolist(), smoothing)
            label = names[int(counts.argmax())]
            rules.append(leaf_rule(named, label, f"leaf_{node}", strength))
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


LEAST_P = 0.001
"""Probabilities without a support lie between this and 1 minus this: log-odds of ±6.9."""

_JOIN = re.compile(r"\s+(?:and|&)\s+")
_TEST = re.compile(r"\s*(<=|>=|==|!=|<|>)\s*([^\s&]+)")
_UNKNOWN = re.compile(r"[^\s<>=!`'\"](?:[^<>=!`'\"]*[^\s<>=!`'\"])?+(?=\s*[<>=!])")
_NUMBER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)?(?:(?<=[0-9])\.[0-9]*|\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


@checked
def from_rule_strings(
    strings: Sequence[str],
    then: str | Built | f.Formula,
    *,
    p: Sequence[float] | None = None,
    support: Sequence[float] | None = None,
    feature_names: Sequence[str] | None = None,
) -> tuple[f.Rule, ...]:
    r"""Rules from conditions such as ``a > 3 and b <= 4``, the output of skope-rules and imodels.

    A rule that was always right on the rows that it was mined from has the precision 1, and
    infinite log-odds. So with the ``support`` :math:`n` of each rule, its strength is ``[p=...]``
    of :math:`(p\,n + 1) / (n + 2)`, Laplace's rule of succession. Without it, probabilities are
    brought into [0.001, 0.999].

    Args:
      strings: The conditions. A string that is not a formula of this library is read as comparisons
        of a column with a number, joined by ``and`` or ``&``; the names of columns may contain
        spaces.
      then: The head of each rule: the name of a class or label, or a formula.
      p: The probability of each rule, such as its precision, in [0, 1]; its strength is
        ``[p=...]``.
      support: With ``p``, the number of rows that each probability was estimated from, >= 0.
      feature_names: The names of the columns, of any characters: ``income_<=50K``, ``x-1``, ``a and
        b``. If given, all conditions are read as such comparisons. The longest name that fits is
        read first, then the operator. Other names raise an error.

    Returns:
      One rule per string, ``condition => then``.

    Raises:
      RuleError: for a string that is not a condition, with its index; without ``feature_names``,
        also for arithmetic without spaces, such as ``x-1 > 3``, which may be a column's name.
      TypeError: if ``strings`` is a single string, or ``then`` is not a formula.
      ValueError: if the number of probabilities or supports does not match, or one is out of range.

    Example:
      >>> for rule in from_rule_strings(["mean area > 3.0 and b <= 4"], "malignant", p=[0.9]):
      ...     print(rule)
      [p=0.9] `mean area` > 3 and b <= 4 => malignant
      >>> names = ["income_<=50K", "age"]
      >>> print(*from_rule_strings(["income_<=50K > 0.5 and age > 30"], "no", feature_names=names))
      `income_<=50K` > 0.5 and age > 30 => no
      >>> print(*from_rule_strings(["age > 30"], "no", p=[1.0], support=[98]))
      [p=0.99] age > 30 => no
    """
    if isinstance(strings, str):
        raise TypeError(f"strings must be a list, got the string {strings!r}")
    for name, values in (("p", p), ("support", support)):
        if values is not None and len(values) != len(strings):
            raise ValueError(
                f"{name} must hold {len(strings)} numbers, one per rule, got {len(values)}"
            )
    if p is None and support is not None:
        raise ValueError("support is the number of rows behind each p: give p, too")
    head = f.Name(then) if isinstance(then, str) else formula(then)
    known = None if feature_names is None else _Names(feature_names)
    if p is None:
        strengths = [f.Strength()] * len(strings)
    else:
        counts = [None] * len(strings) if support is None else support
        strengths = [
            f.Strength("p", smoothed(f"strings[{i}]", x, n))
            for i, (x, n) in enumerate(zip(p, counts, strict=True))
        ]
    return tuple(
        f.Rule(f.Implies(_body(text, i, known), head), None, strength)
        for i, (text, strength) in enumerate(zip(strings, strengths, strict=True))
    )


def smoothed(where: str, p: Any, support: Any) -> float:
    """A probability strictly between 0 and 1: by its support, or cut off where that is None."""
    p = float(p)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p must lie between 0 and 1, got {p} for {where}")
    if support is None:
        return min(max(p, LEAST_P), 1.0 - LEAST_P)
    if not (support >= 0 and math.isfinite(support)):
        raise ValueError(f"support must be finite and >= 0, got {support} for {where}")
    return (p * float(support) + 1.0) / (float(support) + 2.0)


class _Names:
    """Names of columns, the longest of which is looked for first."""

    def __init__(self, names: Sequence[str]):
        if not len(names):
            raise ValueError("feature_names must be one name or more, got none")
        self.names = dict.fromkeys(map(str, names))
        self.lengths = sorted({len(name) for name in self.names}, reverse=True)

    def at(self, text: str, start: int) -> Iterator[tuple[str, int]]:
        """The names that may stand at a place, and where they end."""
        for length in self.lengths:
            if (name := text[start : start + length]) in self.names:
                yield name, start + length

    def __str__(self) -> str:
        return ", ".join(itertools.islice(self.names, 8)) + ", …" * (len(self.names) > 8)


def _body(text: str, i: int, known: _Names | None) -> f.Formula:
    """The formula of ``strings[i]``."""
    if known is None:
        try:
            found = parse_formula(text)
        except RuleError as error:
            problem = str(error).removeprefix("line 1, ")
        else:
            _check_spaces(text, i, found)
            return found
    else:
        problem = f"expected comparisons of {known} with numbers, got {shortened(text, 200)}"
    whole = _conditions(text, known)
    if whole is None:
        raise RuleError(f"strings[{i}], {problem}")
    return whole[0] if len(whole) == 1 else f.And(tuple(whole))


def _conditions(text: str, known: _Names | None) -> list[f.Formula] | None:
    """Comparisons of columns with numbers, joined by and; None if the text is something else."""
    found: list[f.Formula] = []
    text = text.strip()
    start = 0
    while start < len(text):
        names = known.at(text, start) if known is not None else _unknown(text, start)
        parts = (_comparison(text, *name_and_end) for name_and_end in names)
        part = next((part for part in parts if part is not None), None)
        if part is None:
            return None
        comparison, start = part
        found.append(comparison)
    return found or None


def _comparison(text: str, name: str, end: int) -> tuple[f.Formula, int] | None:
    """The comparison whose name ends at ``end``, and where the next one starts; None if none."""
    test = _TEST.match(text, end) if name else None
    if test is None or not _NUMBER.fullmatch(test[2]) or not re.search("[0-9]", test[2]):
        return None
    joined, value = _JOIN.match(text, test.end()), _value(test[2])
    if value is None or not (joined or test.end() == len(text)):
        return None
    comparison = f.Compare((f.Name(name), f.Number(value)), (test[1],))
    return comparison, joined.end() if joined else len(text)


def _value(text: str) -> int | float | None:
    """A number as rules read it, integers exactly; None if double precision cannot hold it."""
    found = float(text)
    if not math.isfinite(found) or underflows(text):
        return None
    return int(text) if text.lstrip("+-").isdecimal() else found


def _unknown(text: str, start: int) -> Iterator[tuple[str, int]]:
    """The name of a column up to the next operator."""
    match = _UNKNOWN.match(text, start)
    name = "" if match is None else match[0]
    if name.count("(") == name.count(")") and not {"and", "or", "not", "&"} & set(name.split()):
        yield name, start + len(name)


def _check_spaces(text: str, i: int, found: f.Formula) -> None:
    """Raises for arithmetic without spaces, which may be a column's name."""
    for tree in f.trees(found):
        if isinstance(tree, f.Arithmetic) and (name := str(tree).replace(" ", "")) in text:
            raise RuleError(
                f"strings[{i}], {shortened(name, 40)} may be arithmetic or the name of a column: "
                f"pass feature_names, or write `{shortened(name, 40)}` for a name and "
                f"{shortened(str(tree), 40)} for arithmetic"
            )

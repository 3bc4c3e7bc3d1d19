"""Decision trees as scikit-learn's ``export_text`` prints them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from distill_jax._arguments import checked
from distill_jax.rules.exchange._leaves import check_smoothing, leaf_rule, leaf_strength
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language.errors import RuleError, error_at

_LINE = re.compile(r"((?:\| *)*)\|-+ (.+)")
_SPLIT = re.compile(r"(.+?) (<=|> ) ([+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|[+-]?inf|nan)")
_LEAF = re.compile(r"\s*(?:weights: \[([-+0-9.,e ]*)\] )?class: (.*)")


class _Split(NamedTuple):
    """A condition on the way to a leaf: ``name <= threshold`` if ``low``, else ``name >``."""

    name: str
    threshold: float
    low: bool


class _Line(NamedTuple):
    """A line of the text.

    Attributes:
      number: From 1.
      source: All of it.
      depth: How many bars it begins with.
      content: What stands behind them.
      splits: Whether the line after it is deeper, so that it is a split.
    """

    number: int
    source: str
    depth: int
    content: str
    splits: bool

    def error(self, message: str) -> RuleError:
        return error_at(message, self.source, self.number, self.source.find(self.content))


@checked
def from_tree_text(
    text: str, classes: Mapping[str, str] | None = None, *, smoothing: float = 1.0
) -> tuple[f.Rule, ...]:
    """One rule per leaf of a classification tree that scikit-learn's ``export_text`` has printed.

    What the text lacks cannot be kept: thresholds are rounded to ``decimals`` (2 by default), so
    rows near one may go the other way than in the tree; and strengths need ``show_weights=True``.
    A tree of several outputs is printed as if it had the first alone. ``from_tree`` takes the
    fitted tree itself, and loses nothing.

    Args:
      text: The printed tree, in full: ``export_text(tree, feature_names=…, max_depth=…,
        decimals=…, show_weights=True)``.
      classes: What printed classes are called in rules, by the printed name; None for that name.
      smoothing: Count added to each class, > 0, as in ``from_tree``.

    Returns:
      Rules ``low < x <= high and y > 2 => class``, named ``leaf_1``, ``leaf_2``, …, in the order of
      the text. With weights, their strengths are those of ``from_tree``; without, they have none.

    Raises:
      RuleError: with the line, for text that is no such tree, truncated branches, a regression
        tree, or thresholds that are rounded until nothing lies between them.

    Example:
      >>> from sklearn.tree import DecisionTreeClassifier, export_text
      >>> tree = DecisionTreeClassifier().fit([[0.0], [1.0], [3.0]], [0, 0, 1])
      >>> text = export_text(tree, feature_names=["x"], show_weights=True)
      >>> for rule in from_tree_text(text, {"0": "low", "1": "high"}):
      ...     print(rule)
      [w=1.0986] leaf_1: x <= 2 => low
      [w=0.6931] leaf_2: x > 2 => high
    """
    check_smoothing(smoothing)
    rules: list[f.Rule] = []
    path: list[_Split] = []
    deeper = True  # whether the next line belongs below the last, or is its other side
    line = None
    for line in _lines(text):
        split = _SPLIT.fullmatch(line.content) if line.splits else None
        if split is None:
            if not deeper or line.depth != len(path) + 1:
                raise line.error("expected the other side of a split, x > 3, or a deeper line")
            rules.append(_leaf(line, path, classes or {}, smoothing, len(rules) + 1))
            deeper = False
            continue
        name, low, threshold = split[1], split[2] == "<=", float(split[3])
        if not math.isfinite(threshold):
            raise line.error(f"a threshold must be finite, got {split[3]}")
        if low:
            if not deeper or line.depth != len(path) + 1:
                raise line.error("expected the other side of a split, x > 3, or a deeper line")
            path.append(_Split(name, threshold, True))
        else:
            known = path[line.depth - 1] if line.depth <= len(path) else None
            if (
                deeper
                or known != _Split(name, threshold, True)
                or any(x.low for x in path[line.depth :])
            ):
                raise line.error(f"expected {name} <= {split[3]} before this, at the same depth")
            path[line.depth - 1 :] = [_Split(name, threshold, False)]
        deeper = True
    if line is None:
        raise RuleError("the text holds no tree, as export_text prints one")
    if deeper or any(x.low for x in path):
        raise line.error("the tree ends here, before the other side of a split")
    return tuple(rules)


def _lines(text: str) -> Iterator[_Line]:
    found: list[_Line] = []
    for number, source in enumerate(re.split("\r\n|\n|\r", text), 1):
        if not source.strip():
            continue
        match = _LINE.fullmatch(source.strip())
        if match is None:
            message = "expected a line of export_text, such as |--- x <= 3.00"
            raise error_at(message, source, number, 0)
        found.append(_Line(number, source, match[1].count("|") + 1, match[2], False))
    depths = [line.depth for line in found] + [0]
    for line, after in zip(found, depths[1:], strict=True):
        yield line._replace(splits=after > line.depth)


def _leaf(
    line: _Line, path: list[_Split], classes: Mapping[str, str], smoothing: float, number: int
) -> f.Rule:
    content = line.content
    if content.startswith("truncated branch"):
        raise line.error(
            "a branch is missing: print the whole tree, export_text(tree, max_depth="
            "tree.get_depth())"
        )
    if content.strip().startswith("value:"):
        raise line.error("this is a regression tree, whose leaves hold no class")
    match = _LEAF.fullmatch(content)
    if match is None:
        raise line.error("expected a split, x <= 3.00 with deeper lines below, or class: name")
    limits: dict[str, tuple[float, float]] = {}
    for name, threshold, low in path:
        least, most = limits.get(name, (-math.inf, math.inf))
        ends = (least, min(most, threshold)) if low else (max(least, threshold), most)
        if ends[0] >= ends[1]:
            raise line.error(
                f"no value of {name} leads here, as thresholds are rounded: print more decimals, "
                "export_text(tree, decimals=6)"
            )
        limits[name] = ends
    strength = f.Strength()
    if match[1]:
        try:
            counts = [float(x) for x in match[1].split(",")]
        except ValueError:
            raise line.error(f"weights must be numbers, got {match[1][:60]}") from None
        if len(counts) > 1:
            strength = leaf_strength(counts, smoothing)
    return leaf_rule(limits, classes.get(match[2], match[2]), f"leaf_{number}", strength)

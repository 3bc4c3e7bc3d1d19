"""Tables of conditions with what each predicts, as imodels gives them."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from distill_jax._arguments import checked
from distill_jax.rules.binding._tables import column_names
from distill_jax.rules.binding.binding import RuleWarning
from distill_jax.rules.exchange.mined import from_rule_strings, smoothed
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language.building import Built, formula

ALWAYS = "else"
"""What imodels writes for a condition that always holds, or holds where none before did."""


@checked
def from_rule_frame(
    frame: Any,
    then: str | Built | f.Formula,
    *,
    prediction: Literal["probability", "log-odds"] | None = None,
    scale: float = 1.0,
    feature_names: Sequence[str] | None = None,
    group: str = "list",
) -> tuple[f.Rule, ...]:
    """Rules from a table of conditions, such as ``get_rules()`` of imodels 3.

    Which columns there are besides ``rule`` says what model they come from:

    =================  =========================================================================
    columns            rules
    =================  =========================================================================
    ``coef``           RuleFit: ``[w=scale*coef] condition => then``. Rows with 0 are left out.
    ``weight``         boosted trees, which vote: ``[w=scale*weight] condition => then`` where the
                       ``prediction`` is above one half, ``=> not then`` otherwise.
    ``prediction``     others, by the argument ``prediction``, since their tables do not tell:
                       ``"probability"`` of ``then`` for single trees, rule lists and sets of
                       rules, ``[p=...] condition => then``; ``"log-odds"``, with ``scale``, for
                       sums, ``[w=scale*prediction] condition => then``.
    =================  =========================================================================

    A table of probabilities whose last row is ``else`` is a rule list: its rules are a group
    ``[first=list]``, of which only the first that applies fires. With a column ``num_pts``,
    probabilities are smoothed as in ``from_rule_strings``.

    What is not kept: an intercept is not in the table, and a row ``else`` of a sum is one, which is
    left out with a warning. The rules of RuleFit are ``scale=1`` as log-odds, but its own
    ``predict_proba`` takes the softmax of 1 − c and c, where c is their sum with the intercept, and
    so doubles them; ``scale=2`` does so, too. FIGS adds up shares of a probability, for which
    log-odds stand near one half alone, with ``"log-odds"`` and ``scale=4``. Forests average
    probabilities, which log-odds cannot do: a table of several trees has no ``"probability"``.
    Greedy rule lists predict by ``>=`` where their strings say ``>``; the rules say what the
    strings do.

    Args:
      frame: A pandas data frame, or a mapping of columns, with ``rule`` and one of the above, and
        ``type`` (``"rule"`` or ``"linear"``) if there are linear terms.
      then: The head of each rule: the name of a class or label, or a formula.
      prediction: What the column ``prediction`` holds, if there is neither ``coef`` nor ``weight``.
      scale: Log-odds per unit of a coefficient, weight or prediction.
      feature_names: As in ``from_rule_strings``.
      group: The name of the group that a rule list becomes.

    Returns:
      One rule per row, but for those that are left out.

    Raises:
      RuleError: for a row whose ``rule`` is not a condition.
      ValueError: for a table without these columns, numbers that are not finite or no
        probabilities, a linear term with a coefficient other than 0, which is no rule, or an
        ``else`` that is not the last row of a rule list.

    Warns:
      RuleWarning: for rows that are left out since they are constants.

    Example:
      >>> frame = {"rule": ["age > 60", "age <= 30"], "coef": [0.8, 0.0]}
      >>> print(*from_rule_frame(frame, "sick"))
      [w=0.8] age > 60 => sick
      >>> frame = {"rule": ["age > 60", "else"], "prediction": [0.8, 0.1]}
      >>> for rule in from_rule_frame(frame, "sick", prediction="probability"):
      ...     print(rule)
      [p=0.8, first=list] age > 60 => sick
      [p=0.1, first=list] else => sick
    """
    table = _Frame(frame)
    head = f.Name(then) if isinstance(then, str) else formula(then)
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    if table.kind == "prediction" and prediction is None:
        raise ValueError(
            "prediction must say what the column 'prediction' holds: 'probability' of then, for "
            "trees, rule lists and rule sets, or 'log-odds', for sums such as FIGS's"
        )
    if table.kind == "prediction" and prediction == "probability":
        return _by_probability(table, head, feature_names, group)
    return _by_weight(table, head, feature_names, scale)


class _Row(NamedTuple):
    """A row: its index, its condition, its number, and its vote if there is one."""

    index: int
    text: str
    number: float
    vote: float


class _Frame:
    """The columns of a table that matter.

    Attributes:
      kind: Which column holds the numbers: "coef", "weight" or "prediction".
      rows: The rows, without linear terms whose coefficient is 0.
      trees: How many trees they come from.
      support: How many examples each row was estimated from, or None.
    """

    def __init__(self, frame: Any):
        try:
            names = set(column_names(frame))
            self.kind = next(x for x in ("coef", "weight", "prediction") if x in names)
            texts = [str(x) for x in frame["rule"]]
            values = [float(x) for x in frame[self.kind]]
            votes = [float(x) for x in frame["prediction"]] if self.kind == "weight" else values
            terms = list(frame["type"]) if "type" in names else ["rule"] * len(texts)
            trees = list(frame["tree"]) if "tree" in names else []
            points = [float(x) for x in frame["num_pts"]] if "num_pts" in names else None
        except (
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
            StopIteration,
        ) as error:
            raise ValueError(
                "frame must have the columns 'rule' and 'coef', 'weight' or 'prediction' "
                f"(numbers), as get_rules() of imodels, got {type(frame).__name__}: {error!r}"
            ) from None
        lengths = {len(x) for x in (texts, values, votes, terms)}
        if len(lengths) > 1:
            raise ValueError(
                f"the columns of frame must have one length, got {sorted(lengths)} rows"
            )
        self.trees, self.support = len(set(trees)), points
        self.rows: list[_Row] = []
        for i, (text, kind, value) in enumerate(zip(texts, terms, values, strict=True)):
            if not (math.isfinite(value) and math.isfinite(votes[i])):
                raise ValueError(f"{self.kind} must be finite, got {value} in row {i}")
            if kind != "rule" and value != 0:
                raise ValueError(
                    f"row {i} is a {kind} term of {text!r}, which no rule can stand for: fit with "
                    'include_linear=False, or pass frame[frame["type"] == "rule"]'
                )
            if kind == "rule":
                self.rows.append(_Row(i, text, value, votes[i]))


def _by_probability(
    table: _Frame, head: f.Formula, feature_names: Sequence[str] | None, group: str
) -> tuple[f.Rule, ...]:
    """Rules with the probability of their head; a group if they are a rule list."""
    if table.trees > 1:
        raise ValueError(
            f"the table has the rules of {table.trees} trees, whose predictions their model "
            "averages or adds: as probabilities of rules they would add up as log-odds. Import a "
            "single tree, frame[frame['tree'] == 0], or pass prediction='log-odds' and a scale"
        )
    last = len(table.rows) - 1
    wrong = [x.index for k, x in enumerate(table.rows) if x.text == ALWAYS and k != last]
    if wrong:
        raise ValueError(f"else must be the last row of a rule list, got it in row {wrong[0]}")
    listed = bool(table.rows) and table.rows[last].text == ALWAYS
    conditions = [x.text for x in table.rows[: last + 1 - listed]]
    rules = list(from_rule_strings(conditions, head, feature_names=feature_names))
    if listed:
        made = f.Implies(f.Else(), head) if conditions else head  # a tree without a split
        rules.append(f.Rule(made))
    found = []
    for rule, x in zip(rules, table.rows, strict=True):
        if not 0.0 <= x.number <= 1.0:
            raise ValueError(f"prediction must be a probability, got {x.number} in row {x.index}")
        count = None if table.support is None else table.support[x.index]
        count = None if count is None or math.isnan(count) else count
        strength = f.Strength("p", smoothed(f"frame row {x.index}", x.number, count))
        own = group if listed and conditions else None
        found.append(dataclasses.replace(rule, strength=strength, group=own))
    return tuple(found)


def _by_weight(
    table: _Frame, head: f.Formula, feature_names: Sequence[str] | None, scale: float
) -> tuple[f.Rule, ...]:
    """Rules whose numbers add up."""
    kept = [x for x in table.rows if x.number != 0 and x.text != ALWAYS]
    constant = [x.index for x in table.rows if x.number != 0 and x.text == ALWAYS]
    if constant:
        warnings.warn(
            f"the rows {constant} of frame are constants (else), not rules, and were left out",
            RuleWarning,
            stacklevel=4,
        )
    found = []
    rules = from_rule_strings([x.text for x in kept], head, feature_names=feature_names)
    for rule, x in zip(rules, kept, strict=True):
        weight = scale * x.number
        if not math.isfinite(weight):
            raise ValueError(f"scale * {table.kind} must be finite, got {weight} in row {x.index}")
        made = rule.formula
        if table.kind == "weight" and x.vote <= 0.5 and isinstance(made, f.Implies):
            made = f.Implies(made.body, f.Not(made.head))
        found.append(dataclasses.replace(rule, formula=made, strength=f.Strength("w", weight)))
    return tuple(found)

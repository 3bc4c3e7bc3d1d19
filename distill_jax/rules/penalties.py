r"""Rules as penalties: what a violated rule adds to the objective.

An example's penalty is a sum over the rules, each with its weight:

- ``"linear"``: the violation, the probability that the rule does not hold. Its gradient fades where
  the model is sure of a violation.
- ``"log"``: −log of the truth (the semantic loss). Its gradient is largest there. Infinite, with
  gradient 0, where nothing that the model thinks possible satisfies the rule.
- ``"squared"``: the violation squared, which cares most for the worst.

By default a rule's weight is its strength, and

- a hard rule has ``HARD_WEIGHT``, since a penalty cannot forbid; see ``enforce`` and ``project``;
- a rule marked ``[learn]`` has weight 1, like one with nothing written: a penalty has nothing to
  learn from but itself, and would learn 0. ``teach`` learns strengths from labels, and
  ``dual_ascent`` finds the weights that keep to a budget;
- a rule with a negative strength is refused: as a penalty it would reward violations, without
  bound. ``teach`` and ``project`` can hold it.

``columns`` come from ``encode``; ``views`` are the student's logits (or ``Outputs``) on other views
of the examples, by name. No gradient passes to them.

References:
  Xu et al., `A Semantic Loss Function for Deep Learning with Symbolic Knowledge
  <https://arxiv.org/abs/1711.11157>`_, 2018; van Krieken et al., `Analyzing Differentiable Fuzzy
  Logic Operators <https://arxiv.org/abs/2002.06100>`_, 2022.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from distill_jax import _checks
from distill_jax.objectives import Context, Term, term
from distill_jax.rules import _inputs
from distill_jax.rules._inputs import Views
from distill_jax.rules.book import Book
from distill_jax.rules.kernels import registers
from distill_jax.rules.logic import violation, weighted_violation
from distill_jax.types import Params, State

HARD_WEIGHT = 10.0
"""The weight of a hard rule in a penalty, as log-odds: 22,000 to 1."""

LEAST_TRUTH = 1e-7
"""What the logarithm takes for a smaller truth in the logics that compute truth as 1 − violation:
their rounding. There is no gradient below it."""

Kind = Literal["linear", "log", "squared"]
KINDS = ("linear", "log", "squared")


def penalty(
    student_logits: Float[Array, "batch classes"],
    columns: Float[Any, "batch columns"],
    views: Views,
    *,
    rules: Book,
    kind: Kind = "linear",
    weights: Float[Any, " rules"] | None = None,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """What the rules add to the objective, example by example.

    Args:
      student_logits: Of exclusive classes or of labels, ``[batch, classes]``.
      columns: From ``encode``; NaN for a missing value.
      views: The student's logits on other views; {} where the rules use none.
      rules: The book.
      kind: See the module.
      weights: In place of the rules' strengths, ``[rules]``, >= 0; see the module.
      where: Rows to count; the others get value 0 and gradient 0, whatever they hold.

    Returns:
      ``[batch]``, not reduced, float32 or better. Gradients reach the logits, the weights and,
      through soft comparisons, the columns.

    Raises:
      ValueError: for other shapes, a missing view, or a weight below 0 that is known beforehand (a
        traced strength below 0 counts as 0).

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> schema = Schema((Column("age"),), ("well", "sick"))
      >>> book = bind("[w=2] age > 60 => sick", schema)
      >>> print(penalty(jnp.zeros((2, 2)), jnp.array([[70.0], [50.0]]), {}, rules=book))
      [1. 0.]
    """
    _kind(kind)
    own = _weights(rules, weights)
    if kind == "log":
        each = _each(student_logits, columns, views, rules, kind, where)
        return _inputs.masked(_weighted(each, own), where)
    logits, columns, views = _inputs.clean(rules, student_logits, columns, views, where)
    rows = weighted_violation(
        rules,
        columns,
        _inputs.probabilities(rules, logits),
        own[0],
        views=_inputs.seen(rules, views),
        squared=kind == "squared",
    )
    return _inputs.masked(rows, where)


def batch_penalty(
    student_logits: Float[Array, "batch classes"],
    columns: Float[Any, "batch columns"],
    views: Views,
    *,
    rules: Book,
    weights: Float[Any, " rules"] | None = None,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """−log of the mean truth over the batch, the same in each row; it couples examples.

    What the code of Xu et al. optimises on sushi and grids (``complex_constraints/*_net.py`` of
    ``UCLA-StarAI/Semantic-Loss``), in place of the paper's mean of −log: examples that violate a
    rule hopelessly weigh little in it. Never above ``penalty(..., kind="log")``.
    """
    each = -_each(student_logits, columns, views, rules, "log", where)
    keep = jnp.ones(each.shape[:1], bool) if where is None else jnp.asarray(where)
    number = jnp.maximum(keep.sum(dtype=each.dtype), 1.0)
    mean = _log_sum_exp(each, jnp.broadcast_to(keep[:, None], each.shape), axis=0) - jnp.log(number)
    mean = jnp.where(keep.any(), mean, 0.0)
    value = _weighted(-mean[None, :], _weights(rules, weights))
    return _inputs.masked(jnp.broadcast_to(value, keep.shape), where)


def encourage(
    name: str,
    weight: Any,
    book: Book,
    *,
    kind: Kind = "linear",
    weights: Any = None,
    coupled: bool = False,
    where: str | Callable | None = None,
    reads: Mapping[str, Any] | None = None,
) -> Term:
    """A term that penalises violations.

    Args:
      name: The term's name.
      weight: Its factor: a number, a traced value, or a schedule ``step -> value``.
      book: The rules.
      kind: ``"linear"``, ``"log"`` or ``"squared"``; see the module.
      weights: In place of the rules' strengths: ``[rules]``, >= 0, or a schedule
        ``step -> [rules]``.
      coupled: With ``kind="log"``: −log of the mean truth over the batch, in place of the mean of
        −log; see ``batch_penalty``.
      where: Rows that count, as in ``term``.
      reads: Where ``columns`` come from, if not from the batch's column of that name:
        ``{"columns": "inputs"}`` where the model's inputs are the encoded columns.

    Raises:
      ValueError: for an unknown kind, weights that do not fit the rules, or a negative strength.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> book = bind("age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> encourage("rules", 0.5, book, reads={"columns": "inputs"}).name
      'rules'
    """
    _kind(kind)
    if coupled and kind != "log":
        raise ValueError(f'coupled is for kind "log", got {kind!r}')
    if not callable(weights):
        _weights(book, weights)
    options: dict[str, Any] = dict(rules=book, weights=weights)
    loss = batch_penalty if coupled else penalty
    if not coupled:
        options["kind"] = kind
    return term(name, weight, loss, where=where, reads=reads, coupled=coupled, **options)


def dual_ascent(
    name: str,
    weight: Any,
    book: Book,
    *,
    budget: Any,
    step_size: Any,
    where: str | Callable | None = None,
    reads: Mapping[str, Any] | None = None,
) -> Term:
    r"""A term that finds by itself how much each rule must weigh to keep to a budget.

    The penalty is Σ multiplier · violation. After each step a rule's multiplier moves by
    ``step_size`` times what its mean violation in the batch exceeds the budget by, and stays >= 0:
    it grows while the rule is violated too often, and returns to 0 once it is not. (Gradient ascent
    on the multipliers of the Lagrangian of "mean violation at most the budget".)

    The multipliers are the term's state, ``{"multipliers": [rules]}``, from 0. No gradient passes
    to them. Since they look at the mean over a batch, the term cannot be computed on a part of one.

    Args:
      name: The term's name.
      weight: A factor for the penalty; 1 unless there is a reason.
      book: The rules. Their strengths are not looked at.
      budget: The mean violation, over all rows that count, that is allowed: a number, ``[rules]``,
        or a schedule. 0 is never reached exactly: the multipliers then only grow.
      step_size: How fast multipliers move, > 0.
      where: Rows that count, as in ``term``; the others are left out of the mean.
      reads: As in ``encourage``.

    Raises:
      ValueError: for a budget outside [0, 1] or of another shape, or a step size that is not
        positive.

    References:
      Nandwani et al., `A Primal-Dual Formulation for Deep Learning with Constraints
      <https://papers.nips.cc/paper/2019/hash/cf708fc1decf0337aded484f8f4519ae-Abstract.html>`_,
      2019.
    """
    if not callable(budget):
        if jnp.ndim(budget) != 0:
            _checks.shape((len(book),), budget=budget)
        _checks.between(0.0, 1.0, budget=budget)
    if not callable(step_size):
        _checks.scalar(step_size=step_size)
        _checks.positive(step_size=step_size)
    loss = _DualAscent(_inputs.Reader(name, _given, tuple((reads or {}).items())))
    options: dict[str, Any] = dict(rules=book, budget=budget, step_size=step_size)
    return term(name, weight, loss, where=where, init=_Start(len(book)), coupled=True, **options)


def log_truth(
    book: Book,
    columns: Float[Any, "batch columns"],
    logits: Float[Any, "batch classes"],
    *,
    views: Views | None = None,
) -> Float[Array, "batch rules"]:
    """The logarithm of ``truth``, from logits, without underflow.

    Over exclusive classes, and over label sets in product logic, a truth of 1e-40 has a finite
    logarithm and the right gradient, and a truth of 1 − 1e-20 does not round to 1 on the way; it is
    ``-inf``, with gradient 0, only where the rule cannot hold at all. Over exclusive classes it
    takes memory for rows × rules × classes, unlike ``violation``. The other logics compute
    truth as 1 − violation, and have the logarithm of that, at least ``LEAST_TRUTH``.

    Args:
      book: The rules.
      columns: From ``encode``.
      logits: Of exclusive classes or of labels. ``-inf`` is a class or label that is surely
        absent.
      views: Logits on other views, where the rules use them. Over exclusive classes their
        probabilities are taken as they are, and may underflow.
    """
    logits, columns, views = _inputs.clean(book, logits, columns, views)
    if book.schema.exclusive:
        return _log_truth_of_classes(book, columns, logits, views)
    if book.info.logic == "product":
        return _log_truth_of_labels(book, columns, logits, views)
    violated = violation(
        book, columns, _inputs.probabilities(book, logits), views=_inputs.seen(book, views)
    )
    return jnp.log(jnp.maximum(1.0 - violated, LEAST_TRUTH))


def _each(
    student_logits: Any, columns: Any, views: Any, rules: Book, kind: str, where: Any
) -> Float[Array, "batch rules"]:
    logits, columns, views = _inputs.clean(rules, student_logits, columns, views, where)
    if kind == "log":
        return -log_truth(rules, columns, logits, views=views)
    probabilities = _inputs.probabilities(rules, logits)
    violated = violation(rules, columns, probabilities, views=_inputs.seen(rules, views))
    return violated if kind == "linear" else violated * violated


def _weighted(each: Array, weights: Array) -> Array:
    """The sum over rules; a rule of weight 0 has no say, not even an infinite one."""
    weights = jnp.broadcast_to(weights, each.shape)
    silent = (weights == 0) & jnp.isposinf(each)
    return (weights * jnp.where(silent, 0.0, each)).sum(-1)


def _weights(book: Book, weights: Any) -> Float[Array, "1 rules"]:
    if weights is not None:
        _checks.shape((len(book),), weights=weights)
        _checks.at_least(0.0, weights=weights)
        return _inputs.wide(weights)[None, :]
    known = _checks.known(book.strengths)
    if known is not None and (known < 0).any():
        first = int(np.argmax(known < 0))
        raise ValueError(
            f"a penalty would reward violations of a rule with a negative strength, here "
            f"{known[first]:g}, in: {book.rules[first]}; hold it with teach or project, write down "
            "its opposite, or pass weights"
        )
    made = jnp.where(book.learn, 1.0, jnp.maximum(book.strengths, 0.0))
    return jnp.where(book.hard, HARD_WEIGHT, made)[None, :]


def _kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")


# Logarithms


def _log_truth_of_classes(
    book: Book, columns: Array, logits: Array, views: Mapping[str, Array]
) -> Array:
    """By a sum over the classes that satisfy a rule, or, where that is most of them, by log1p of
    the others, so that neither end loses digits."""
    classes = logits.shape[1]
    shown = _inputs.seen(book, views)

    def by(one: Array) -> Array:  # violation is linear in probabilities
        return violation(book, columns, jnp.broadcast_to(one, logits.shape), views=shown)

    violates = jax.vmap(by, out_axes=2)(jnp.eye(classes, dtype=logits.dtype)[:, None, :])
    log_p = jax.nn.log_softmax(logits, axis=-1)
    possible = ~jnp.isneginf(log_p)
    p = jnp.where(possible, jnp.exp(jnp.where(possible, log_p, 0.0)), 0.0)
    violated = (p[:, None, :] * violates).sum(2)
    satisfies = jnp.clip(1.0 - violates, 0.0)
    allowed = (satisfies > 0) & possible[:, None, :]
    terms = jnp.where(possible, log_p, 0.0)[:, None, :] + jnp.log(
        jnp.where(allowed, satisfies, 1.0)
    )
    summed = _log_sum_exp(terms, allowed, axis=2)
    few = violated < 0.5
    return jnp.where(few, jnp.log1p(-jnp.where(few, violated, 0.0)), summed)


def _log_truth_of_labels(
    book: Book, columns: Array, logits: Array, views: Mapping[str, Array]
) -> Array:
    """The circuit of product logic over pairs (log t, log(1 − t)), without a subtraction: 1 − a b
    is (1 − a) + a (1 − b)."""
    circuit = book.circuit
    held = _log_literals(circuit, columns)
    everything = jnp.concatenate([logits, *(views[v] for v in book.schema.views)], axis=1)
    of_label = everything.T[circuit.label]
    of_label = jnp.where(circuit.negated[:, None], -of_label, of_label)
    ends = jnp.broadcast_to(jnp.array([[-jnp.inf], [0.0]], logits.dtype), (2, logits.shape[0]))
    yes = jnp.concatenate([ends, held[0], _inputs.log_sigmoid(of_label)])
    no = jnp.concatenate([ends[::-1], held[1], _inputs.log_sigmoid(-of_label)])
    for level in circuit.levels:
        and_yes, and_no = _log_and(yes[level.ands], no[level.ands])
        or_no, or_yes = _log_and(no[level.ors], yes[level.ors])
        yes = jnp.concatenate([yes, and_yes, or_yes])
        no = jnp.concatenate([no, and_no, or_no])
    return no[book.violated].T


def _log_literals(circuit: Any, columns: Array) -> tuple[Array, Array]:
    """Literals on features as pairs; a value that is missing lies in no interval."""
    values = registers(circuit, columns)[circuit.register]
    low, high, width = (x[:, None] for x in (circuit.low, circuit.high, circuit.width))
    inside = ((low <= values) & (values <= high)) ^ circuit.inverted[:, None]
    soft, known = width > 0, ~jnp.isnan(values)
    safe, scale = jnp.where(known, values, 0.0), jnp.where(soft, width, 1.0)
    above = jnp.where(jnp.isfinite(low), safe - jnp.where(jnp.isfinite(low), low, 0.0), jnp.inf)
    below = jnp.where(jnp.isfinite(high), jnp.where(jnp.isfinite(high), high, 0.0) - safe, jnp.inf)
    ends = jnp.stack([above / scale, below / scale], axis=1)
    pair = _log_and(_inputs.log_sigmoid(ends), _inputs.log_sigmoid(-ends))
    crisp = jnp.where(inside, 0.0, -jnp.inf), jnp.where(inside, -jnp.inf, 0.0)
    yes, no = (
        jnp.where(soft, jnp.where(known, p, end), c)
        for p, end, c in zip(pair, (-jnp.inf, 0.0), crisp, strict=True)
    )
    return yes, no


def _log_and(yes: Array, no: Array) -> tuple[Array, Array]:
    """Of parts ``[n, parts, batch]``: the first that fails does so after all before it hold."""
    before = jnp.cumsum(yes, axis=1)
    before = jnp.concatenate([jnp.zeros_like(yes[:, :1]), before[:, :-1]], axis=1)
    all_hold = yes.sum(1)
    terms = no + before
    fails = _log_sum_exp(terms, ~jnp.isneginf(terms), axis=1)
    rare = all_hold < -1.0  # then log(1 − t) is near 0, and a sum of exponentials has few digits
    return all_hold, jnp.where(rare, jnp.log1p(-jnp.exp(jnp.where(rare, all_hold, -1.0))), fails)


def _log_sum_exp(x: Array, allowed: Array, axis: int) -> Array:
    """Over the terms that are allowed and above 0; -inf with gradient 0 where there are none."""
    allowed = allowed & ~jnp.isneginf(x)
    safe = jnp.where(allowed, x, 0.0)
    top = jnp.where(allowed, x, -jnp.inf).max(axis, keepdims=True)
    top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0.0, top))
    total = jnp.where(allowed, jnp.exp(jnp.where(allowed, safe - top, 0.0)), 0.0).sum(axis)
    any_allowed = allowed.any(axis)
    value = jnp.log(jnp.where(any_allowed, total, 1.0)) + jnp.squeeze(top, axis)
    return jnp.where(any_allowed, value, -jnp.inf)


# Dual ascent


@dataclasses.dataclass(frozen=True)
class _Start:
    rules: int

    def __call__(self, key: Array, context: Context) -> tuple[Params, State]:
        return {}, {"multipliers": jnp.zeros(self.rules)}


@dataclasses.dataclass(frozen=True)
class _DualAscent:
    reader: _inputs.Reader

    def __call__(
        self,
        params: Params,
        state: State,
        context: Context,
        *,
        rules: Book,
        budget: Any,
        step_size: Any,
        where: Any = None,
    ) -> tuple[Array, State]:
        student_logits, columns, views = self.reader(context)
        each = _each(student_logits, columns, views, rules, "linear", where)
        multipliers = jax.lax.stop_gradient(state["multipliers"])
        rows = _inputs.masked(_weighted(each, multipliers[None, :]), where)
        keep = jnp.ones(each.shape[:1], bool) if where is None else jnp.asarray(where)
        number = keep.sum(dtype=each.dtype)
        mean = jnp.where(keep[:, None], each, 0.0).sum(0) / jnp.maximum(number, 1.0)
        excess = jnp.where(number > 0, jax.lax.stop_gradient(mean) - budget, 0.0)
        return rows, {"multipliers": jnp.maximum(multipliers + step_size * excess, 0.0)}


def _given(student_logits: Any, columns: Any, views: Any) -> None:
    """What dual ascent reads."""

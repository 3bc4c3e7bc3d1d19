r"""Hard rules that a model satisfies by construction, through its last layer.

Exclusive classes: classes that the hard rules forbid on an example get the logit ``-inf``, and
hence probability 0. The loss stays finite for labels that are allowed, so that the model can be
trained with the constraint. If the model itself gives ``-inf`` to every class that is allowed,
these share the probability equally: a forbidden class is never predicted.

Label sets: a hard rule must mean one or more implications whose head is a label, and whose body
joins labels and conditions on columns by ``and``. It may be written in any way that means this,
such as ``a or b => c``, ``any_of(a, b) => c``, ``not a or c``, or ``a <=> b``, which is two
implications. Rules that exclude labels (``not (a and b)``), or that demand one of several
(``a => b or c``), are refused, unless ``order`` says which labels to trust: they do not say which
logit to lower or to raise. Without ``order`` each label's logit becomes the maximum of its own and
those of the bodies that imply it,

.. math:: z'_b = \max\Big(z_b, \max_{a_1 \wedge \dots \wedge a_n \Rightarrow b}
    \min(z'_{a_1}, \dots, z'_{a_n})\Big),

so that a head is predicted at every threshold at which its body is. For a hierarchy
(``genus/species => genus``) this is the max-constraint module of C-HMCNN. A label that a condition
on columns implies by itself gets the logit ``SURE``.

With ``order``, any hard rules over label sets are enforced: labels are corrected in that order,
each by those before it, so that the first change least. What is predicted, at the threshold of
probability one half, satisfies every rule; see ``_resolution`` for the formula.

References:
  Giunchiglia and Lukasiewicz, `Coherent Hierarchical Multi-Label Classification Networks
  <https://arxiv.org/abs/2010.10151>`_, 2020, sections 3 and 4; the same, `Multi-Label
  Classification Neural Networks with Hard Logical Constraints
  <https://arxiv.org/abs/2103.13427>`_, 2021, for bodies of several labels.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.rules.binding._ground import Grounder
from distill_jax.rules.binding.book import Book, Info
from distill_jax.rules.circuits._building import Builder, Interval
from distill_jax.rules.circuits._circuit import FALSE, TRUE, Circuit
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._messages import rule_error
from distill_jax.rules.language._spelling import quoted
from distill_jax.rules.language.errors import RuleError
from distill_jax.rules.levels import _resolution
from distill_jax.rules.levels.projection import hold
from distill_jax.rules.logic import _inputs, _predictions
from distill_jax.rules.logic.evaluation import fires
from distill_jax.types import Model, Outputs, Params, State

SURE = 1e4
"""The logit of a label that a condition on columns implies: probability 1 in any precision."""

MOST_CASES = 100_000
"""Maximum number of implications between labels that one hard rule may stand for."""


@checked
def enforce(
    model: Model,
    book: Book,
    *,
    columns: Callable[[Any], Any] = _inputs.identity,
    order: Sequence[str] | None = None,
) -> Model:
    """A model whose predictions satisfy the book's hard rules by construction.

    It has the parameters and the state of ``model``. Rules that are not hard are ignored.

    Over exclusive classes, hard rules are ignored on an example where they forbid every class. The
    loss of a label that hard rules forbid is infinite: mask such rows in the loss, with a ``where``
    made from ``forbidden``, or correct their labels. Over label sets, either train ``model`` itself
    with ``max_constraint_loss``, as in the paper, and enforce the rules on the trained model, or
    train the enforced model with any loss.

    Args:
      model: A model of the book's classes, in the same order.
      book: A book with at least one hard rule.
      columns: A function from the model's inputs to the encoded columns ``[batch, columns]``; by
        default the inputs themselves, in which case the model must accept NaN if values may be
        missing. Define the function once, at module level, so that equal models compile once.
      order: For label sets, all labels in the order in which they are corrected, such as the
        ``ordering`` that ``from_requirements`` reads. Needed for rules that exclude labels, or
        demand one of several: the labels to trust most come first.

    Returns:
      A model with the logits ``[batch, classes]`` constrained as the module describes. Models made
      from equal arguments are equal, and compile once.

    Raises:
      ValueError: if the classes differ, if no rule is hard, or if ``model`` has ``outputs`` of
        another kind: ``"softmax"`` for exclusive classes, ``"multi_label"`` for label sets; or if
        ``order`` is given for exclusive classes, or does not name each label once.
      RuleError: for a hard rule over label sets that does not mean implications as the module
        describes, with the reason. With ``order`` only for one that depends on another view, or on
        no label; if no set of labels satisfies all; or if the clauses become too many.

    Example:
      >>> from distill_jax.models import logistic_regression
      >>> from distill_jax.rules import Column, Schema, bind
      >>> schema = Schema((Column("age"),), ("well", "sick"))
      >>> model = enforce(logistic_regression(2), bind("[hard] age > 60 => sick", schema))
      >>> inputs = jnp.array([[70.0], [50.0]])
      >>> jnp.exp(model.predict(*model.init(jax.random.key(0), inputs), inputs).logits[:, 0]) > 0
      Array([False,  True], dtype=bool)
    """
    classes = book.schema.classes
    _checks.class_order(classes, model.classes, "model")
    if not any(rule.strength.kind == "hard" for rule in book.rules):
        raise ValueError("enforce needs a hard rule, and the book has none: write [hard] before it")
    if order is not None:
        order = _checks.names("order", order)
        if book.schema.exclusive:
            raise ValueError("order is for label sets, the book is about exclusive classes")
        if sorted(order) != sorted(classes):
            raise ValueError(
                f"order must name each label once, of {list(classes)}, got {list(order)}"
            )
        _ordered(book.info, order)  # raises for rules that cannot be enforced
    elif not book.schema.exclusive:
        clauses(book)  # raises as well
    if model.outputs != book.outputs:
        raise ValueError(
            f"model has outputs={model.outputs!r}, the book is about outputs={book.outputs!r}: "
            f"make the model with outputs={book.outputs!r}"
        )
    return dataclasses.replace(
        model,
        apply=_Enforced(model.apply, book, columns, order),
        classes=classes,
        exact_inputs=True,
    )


def max_constraint(
    book: Book, columns: Float[Any, "batch columns"] | None, logits: Float[Array, "batch labels"]
) -> Float[Array, "batch labels"]:
    """Logits of labels that satisfy the hard implications; see the module.

    Args:
      book: Rules over label sets.
      columns: From ``encode``; None if no hard rule depends on columns.
      logits: ``[batch, labels]``, or any increasing function of the probabilities.

    Returns:
      ``[batch, labels]``, nowhere less than ``logits``.

    Raises:
      RuleError: for a hard rule that is not an implication between labels.
      ValueError: if a hard rule depends on columns and ``columns`` is None.
    """
    found = clauses(book)
    if not found.rule.size:
        return logits
    guards = _guards(book, found, columns, logits)
    batch = logits.shape[0]
    ends = jnp.broadcast_to(jnp.array([[SURE, -jnp.inf]], logits.dtype), (batch, 2))

    def round_(_: Any, logits: Array) -> Array:
        bodies = jnp.concatenate([logits, ends[:, :1]], axis=1)[:, found.bodies].min(2)
        bodies = jnp.where(guards, bodies, -jnp.inf)
        bodies = jnp.concatenate([bodies, ends[:, 1:]], axis=1)
        return jnp.maximum(logits, bodies[:, found.of_label].max(2))

    return jax.lax.fori_loop(0, found.rounds, round_, logits, unroll=found.rounds <= 8)


@checked
def max_constraint_loss(
    student_logits: Float[Array, "batch labels"],
    targets: Any,
    *,
    rules: Book,
    columns: Float[Any, "batch columns"] | None = None,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""The max-constraint loss of C-HMCNN: cross-entropy for labels under hard implications.

    .. math:: -\sum_b \Big( y_b \ln \max_{a \Rightarrow b} y_a h_a
        + (1 - y_b) \ln (1 - \max_{a \Rightarrow b} h_a) \Big)

    where h are the sigmoids of the unconstrained logits, and each label implies itself. Plain
    cross-entropy on the constrained logits would, for a present label, raise the logit of an absent
    label that implies it, if that one happens to be larger.

    Args:
      student_logits: Logits of the model without its constraint, ``[batch, labels]``.
      targets: Which labels are present, ``[batch, labels]``: booleans, or numbers in [0, 1].
      rules: A book over label sets, with hard implications.
      columns: From ``encode``, ``[batch, columns]``; needed if hard rules depend on columns.
      where: Rows that count, ``[batch]``; masked rows contribute neither loss nor gradient.

    Returns:
      The loss of each example in nats, ``[batch]``: the sum over labels, as in the paper; the
      authors' code takes the mean over labels. Infinite for a present label with the logit ``-inf``
      if no present label with a finite logit implies it.

    Raises:
      RuleError: for a hard rule that is not an implication between labels.
      ValueError: for shapes that do not match, or if columns are needed and not given.

    Example:
      >>> from distill_jax.rules import Schema, bind
      >>> schema = Schema((), ("cat", "animal"), exclusive=False)
      >>> book = bind("[hard] cat => animal", schema)
      >>> logits = jnp.array([[0.0, -2.0]])  # constrained: the animal's logit is 0, too
      >>> print(max_constraint_loss(logits, jnp.array([[True, True]]), rules=book))
      [1.3862944]

    References:
      Giunchiglia and Lukasiewicz, 2020, section 3.2, and ``train.py`` of ``EGiunchiglia/C-HMCNN``.
    """
    _checks.floating(student_logits=student_logits)
    _checks.same_shape(student_logits=student_logits, targets=targets)
    logits, y = _inputs.float32_or_wider(student_logits), jnp.asarray(targets)
    y = y.astype(logits.dtype)
    if where is not None:
        _checks.boolean(where=where)
        _checks.shape(logits.shape[:1], where=where)
        keep = jnp.asarray(where)[:, None]
        logits, y = jnp.where(keep, logits, 0.0), jnp.where(keep, y, 0.0)
        columns = None if columns is None else jnp.where(keep, columns, 0.0)
    present = y > 0
    log_p = _predictions.log_sigmoid(logits) + jnp.log(jnp.where(present, y, 1.0))
    log_p = max_constraint(rules, columns, jnp.where(present, log_p, -jnp.inf))
    log_p = jnp.minimum(log_p, 0.0)  # SURE is a logit, and this is a log-probability
    absent = -_predictions.log_sigmoid(-max_constraint(rules, columns, logits))
    missed = jnp.where(present, -y * jnp.where(present, log_p, 0.0), 0.0)
    wrong = jnp.where(y < 1, (1.0 - y) * jnp.where(y < 1, absent, 0.0), 0.0)
    return _inputs.masked((missed + wrong).sum(1), where)


class Clauses(NamedTuple):
    """Hard implications between labels, as arrays.

    Attributes:
      bodies: The labels of each clause's body, padded with the number of labels,
        ``[clauses, parts]``.
      rule: The rule that each clause comes from, ``[clauses]``.
      guard: Where each clause applies: a column of ``guards``, or their number for everywhere,
        ``[clauses]``.
      guards: Nodes of ``circuit``, the conditions on columns, ``[guards]``.
      circuit: A circuit over the book's columns.
      of_label: The clauses that imply each label, padded with the number of clauses,
        ``[labels, most]``.
      rounds: How many times to apply all clauses until the logits no longer change.
    """

    bodies: Integer[np.ndarray, "clauses parts"]
    rule: Integer[np.ndarray, " clauses"]
    guard: Integer[np.ndarray, " clauses"]
    guards: Integer[np.ndarray, " guards"]
    circuit: Circuit
    of_label: Integer[np.ndarray, "labels most"]
    rounds: int


def clauses(book: Book) -> Clauses:
    """The hard rules of a book over label sets, as implications.

    Rules are read by their meaning, not by how they are written: ``a or b => c``,
    ``any_of(a, b) => c`` and ``(not a or c) and (not b or c)`` give the same clauses.

    Raises:
      RuleError: for a hard rule that is not a set of such implications, with its text and the
        reason.
    """
    return _clauses(book.info)


@functools.lru_cache(maxsize=64)
def _clauses(info: Info) -> Clauses:
    grounder = Grounder(info.schema, info.rules, info.definitions, {}, info)
    number = len(info.schema.classes)
    found = [
        (r, case)
        for r, rule in enumerate(info.rules)
        if rule.strength.kind == "hard"
        for case in _implications(grounder, rule)
    ]
    bodies = np.full((len(found), max(1, *(len(c.on) for _, c in found), 1)), number, np.int32)
    by_head: list[list[int]] = [[] for _ in range(number)]
    edges = []
    for i, (_, case) in enumerate(found):
        (head,), body = case.off, sorted(case.on)
        bodies[i, : len(body)] = body
        by_head[head].append(i)
        edges.append((body, head))
    of_label = np.full((number, max(1, *map(len, by_head))), len(found), np.int32)
    for i, row in enumerate(by_head):
        of_label[i, : len(row)] = row
    nodes = [grounder.builder.all(case.conditions) for _, case in found]
    places = {node: i for i, node in enumerate(dict.fromkeys(n for n in nodes if n != TRUE))}
    circuit, guards = grounder.circuit(list(places))
    return Clauses(
        bodies,
        np.asarray([r for r, _ in found], np.int32),
        np.asarray([places.get(node, len(places)) for node in nodes], np.int32),
        guards,
        circuit,
        of_label,
        _rounds(edges, number),
    )


class _Case(NamedTuple):
    """A way to violate a rule: where all conditions hold, labels ``on`` hold, and ``off`` do not.

    Attributes:
      conditions: Nodes over columns.
      on, off: Indices of labels.
    """

    conditions: frozenset[int] = frozenset()
    on: frozenset[int] = frozenset()
    off: frozenset[int] = frozenset()

    def __or__(self, other: _Case) -> _Case:  # type: ignore[override]
        return _Case(*(a | b for a, b in zip(self, other, strict=True)))


def _implications(grounder: Grounder, rule: f.Rule) -> list[_Case]:
    """The ways to violate a rule, each the negation of an implication whose head is one label.

    Raises:
      RuleError: if one of them is not.
    """
    found = _violations(grounder, rule)
    labels = grounder.schema.classes
    for case in found:
        why = _why_not(case, labels)
        if why:
            raise rule_error(
                rule,
                "over label sets, hard rules are enforced as implications whose head is a label, "
                f"whose logit is raised to that of the body; this rule {why}. Pass order to "
                "enforce, use encourage for it, or give it a finite strength",
            )
    return found


def _violations(grounder: Grounder, rule: f.Rule) -> list[_Case]:
    """The ways to violate a rule.

    Raises:
      RuleError: if they are too many.
    """
    node, _ = grounder.violated(rule)
    cases = _Cases(grounder.builder)
    found = cases.of(node)
    if cases.truncated:
        raise rule_error(
            rule,
            f"as implications between labels, this rule has more than {MOST_CASES} clauses, "
            "too many to enforce: write implications, such as a and b => c",
        )
    return found


def _why_not(case: _Case, labels: Sequence[str]) -> str:
    """Why the negation of a case is not an implication to a label; empty if it is."""
    if any(i >= len(labels) for i in case.on | case.off):
        return "depends on another view, whose labels are predictions themselves"
    on, off = ([quoted(labels[i]) for i in sorted(x)] for x in (case.on, case.off))
    if len(off) > 1:
        return (
            f"demands one of {', '.join(off[:5])}{', …' * (len(off) > 5)}, and does not say which "
            "of them to raise"
        )
    if off:
        return ""
    if len(on) > 1:
        return (
            f"excludes {', '.join(on[:5])}{', …' * (len(on) > 5)} from holding together, and does "
            "not say which of them to lower"
        )
    return (
        f"excludes {on[0]}, whose logit would be lowered"
        if on
        else ("cannot be satisfied where its condition holds")
    )


class _Cases:
    """Formulas over labels as disjunctions of cases; those over columns alone stay whole.

    Attributes:
      truncated: Whether a formula had more than ``MOST_CASES``, and the others were left out.
    """

    def __init__(self, builder: Builder):
        self.builder, self.truncated = builder, False
        self._known: dict[int, list[_Case] | None] = {FALSE: [], TRUE: [_Case()]}

    def of(self, node: int) -> list[_Case]:
        """The cases of a node."""
        found = self._of(node)
        return [_Case(frozenset([node]))] if found is None else found

    def _of(self, node: int) -> list[_Case] | None:
        """The cases of a node; None for a formula over columns alone."""
        if node not in self._known:
            self._known[node] = self._cases(node)
        return self._known[node]

    def _cases(self, node: int) -> list[_Case] | None:
        kind, parts = self.builder.children(node)
        if not kind:
            literal = self.builder.nodes[node]
            if isinstance(literal, Interval):
                return None
            _, label, negated = literal
            one = frozenset([label])
            return [_Case(off=one) if negated else _Case(on=one)]
        inner = {part: self._of(part) for part in parts}
        if all(cases is None for cases in inner.values()):
            return None
        if kind == "or":
            found = list(dict.fromkeys(case for part in parts for case in self.of(part)))
        else:
            found = [_Case()]
            for part in parts:
                own = self.of(part)
                self.truncated |= len(found) * len(own) > MOST_CASES
                both = itertools.islice(itertools.product(found, own), MOST_CASES)
                joined = (a | b for a, b in both)
                found = list(dict.fromkeys(c for c in joined if not c.on & c.off))
        self.truncated |= len(found) > MOST_CASES
        return found[:MOST_CASES]


def _rounds(edges: Sequence[tuple[Sequence[int], int]], labels: int) -> int:
    """The number of rounds until nothing changes: the longest chain of implications."""
    settled = np.zeros(labels, int)
    heads = len({head for _, head in edges})
    for _ in range(heads + 1):
        before = settled.copy()
        for body, head in edges:
            settled[head] = max(settled[head], 1 + max((before[a] for a in body), default=0))
        if (settled == before).all():
            return int(settled.max(initial=0))
    return heads  # a cycle: a chain without repetition visits each head at most once


class _Ordered(NamedTuple):
    """Hard rules of any form over label sets, in an order of the labels.

    Attributes:
      bounds: Of each label by those before it.
      guards: Nodes of ``circuit``, the conditions on columns of ``bounds``, ``[conditions]``.
      circuit: A circuit over the book's columns.
    """

    bounds: _resolution.Bounds
    guards: Integer[np.ndarray, " conditions"]
    circuit: Circuit


@functools.lru_cache(maxsize=64)
def _ordered(info: Info, order: tuple[str, ...]) -> _Ordered:
    grounder = Grounder(info.schema, info.rules, info.definitions, {}, info)
    labels = info.schema.classes
    found = []
    for rule in info.rules:
        if rule.strength.kind != "hard":
            continue
        for case in _violations(grounder, rule):
            if any(i >= len(labels) for i in case.on | case.off):
                raise rule_error(
                    rule,
                    "hard rules that depend on another view cannot be enforced, since its labels "
                    "are predictions themselves. Use encourage for this one",
                )
            if not case.on | case.off:
                raise rule_error(rule, f"this rule {_why_not(case, labels)}: it is about no label")
            found.append(_resolution.Violation(*case))
    bounds = _resolution.resolved(found, [labels.index(name) for name in order])
    if isinstance(bounds, int):
        raise RuleError(
            f"resolving the label {quoted(labels[bounds])} leaves more than "
            f"{_resolution.MOST_CLAUSES} clauses over the labels before it: put labels that occur "
            "in many rules first in order, or use encourage for some of the rules"
        )
    nodes = [grounder.builder.all(conditions) for conditions in bounds.conditions]
    circuit, guards = grounder.circuit(nodes)
    return _Ordered(bounds, guards, circuit)


def _in_order(
    book: Book, order: tuple[str, ...], columns: Array, logits: Float[Array, "batch labels"]
) -> Float[Array, "batch labels"]:
    """Logits of labels that satisfy the hard rules, corrected in an order of the labels."""
    found = _ordered(book.info, order)
    holds = jnp.zeros((logits.shape[0], 0), bool)
    if found.bounds.conditions:
        circuit, guards = jax.tree.map(jnp.asarray, (found.circuit, found.guards))
        holds = fires(dataclasses.replace(book, circuit=circuit, fires=guards), columns)
    return _resolution.corrected(found.bounds, holds, logits, SURE)


def _guards(
    book: Book, found: Clauses, columns: Any, logits: Array
) -> Bool[Array, "batch clauses"]:
    """Where the conditions on columns of each clause hold."""
    everywhere = jnp.ones((logits.shape[0], 1), bool)
    if not found.guards.size:
        return jnp.broadcast_to(everywhere, (logits.shape[0], len(found.rule)))
    if columns is None:
        first = book.rules[found.rule[(found.guard < found.guards.size).argmax()]]
        raise ValueError(f"columns are needed, since a hard rule depends on them: {first}")
    circuit, guards = jax.tree.map(jnp.asarray, (found.circuit, found.guards))
    conditions = dataclasses.replace(book, circuit=circuit, fires=guards)
    return jnp.concatenate([fires(conditions, columns), everywhere], axis=1)[:, found.guard]


@dataclasses.dataclass(frozen=True)
class _Enforced:
    """An ``apply`` function that enforces hard rules; equal for equal arguments, so that models
    made from them share compiled programs."""

    apply: Callable[..., tuple[Outputs, State]]
    book: Book
    columns: Callable[[Any], Any]
    order: tuple[str, ...] | None

    def __call__(
        self, params: Params, state: State, inputs: Any, *, key: Any = None, train: bool = False
    ) -> tuple[Outputs, State]:
        outputs, state = self.apply(params, state, inputs, key=key, train=train)
        logits, columns = outputs.logits, _inputs.float32_or_wider(self.columns(inputs))
        _checks.shape((columns.shape[0], len(self.book.schema.classes)), logits=logits)
        if self.order is not None:
            logits = _in_order(self.book, self.order, columns, logits)
        else:
            constrain = hold if self.book.schema.exclusive else max_constraint
            logits = constrain(self.book, columns, logits)
        return outputs._replace(logits=logits), state

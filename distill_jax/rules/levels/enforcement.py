r"""Hard rules that a model satisfies by construction, through its last layer.

Exclusive classes: classes that the hard rules forbid on an example get the logit ``-inf``, and
hence probability 0. The loss stays finite for labels that are allowed, so that the model can be
trained with the constraint.

Label sets: a hard rule must be an implication whose head is a label (or several, joined by
``and``), and whose body joins labels and conditions on columns by ``and``; a body of labels alone
may use ``or``, and ``a <=> b`` is read as two implications. Each label's logit becomes the maximum
of its own and those of the bodies that imply it,

.. math:: z'_b = \max\Big(z_b, \max_{a_1 \wedge \dots \wedge a_n \Rightarrow b}
    \min(z'_{a_1}, \dots, z'_{a_n})\Big),

so that a head is predicted at every threshold at which its body is. For a hierarchy
(``genus/species => genus``) this is the max-constraint module of C-HMCNN. A label that a condition
on columns implies by itself gets the logit ``SURE``.

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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from distill_jax import _checks
from distill_jax.rules.binding.book import Book, Info
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._messages import rule_error
from distill_jax.rules.language.errors import RuleError
from distill_jax.rules.levels.projection import hold
from distill_jax.rules.logic import _inputs, _predictions
from distill_jax.rules.logic.evaluation import fires
from distill_jax.types import Model, Outputs, Params, State

SURE = 1e4
"""The logit of a label that a condition on columns implies: probability 1 in any precision."""


def enforce(model: Model, book: Book, *, columns: Callable[[Any], Any] = _inputs.identity) -> Model:
    """A model whose predictions satisfy the book's hard rules by construction.

    It has the parameters and the state of ``model``. Rules that are not hard are ignored.

    Over exclusive classes, hard rules are ignored on an example where they leave no class. The loss
    of a label that hard rules forbid is infinite: mask such rows in the loss, with a ``where`` made
    from ``forbidden``, or correct their labels. Over label sets, either train ``model`` itself with
    ``max_constraint_loss``, as in the paper, and enforce the rules on the trained model, or train
    the enforced model with any loss.

    Args:
      model: A model of the book's classes, in the same order.
      book: A book with at least one hard rule.
      columns: A function from the model's inputs to the encoded columns ``[batch, columns]``; by
        default the inputs themselves, in which case the model must accept NaN if values may be
        missing. Define the function once, at module level, so that equal models compile once.

    Returns:
      A model with the logits ``[batch, classes]`` constrained as the module describes. Models made
      from equal arguments are equal, and compile once.

    Raises:
      ValueError: if the classes differ, if no rule is hard, or if ``model`` has ``outputs`` of
        another kind: ``"softmax"`` for exclusive classes, ``"multi_label"`` for label sets.
      RuleError: for a hard rule over label sets that is not an implication as the module describes.

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
    if not book.schema.exclusive:
        clauses(book)  # raises for rules that cannot be enforced
    if model.outputs != book.outputs:
        raise ValueError(
            f"model has outputs={model.outputs!r}, the book is about outputs={book.outputs!r}: "
            f"make the model with outputs={book.outputs!r}"
        )
    return dataclasses.replace(
        model, apply=_Enforced(model.apply, book, columns), classes=classes, exact_inputs=True
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
      guarded: Whether the clause depends on columns, ``[clauses]``.
      of_label: The clauses that imply each label, padded with the number of clauses,
        ``[labels, most]``.
      rounds: How many times to apply all clauses until the logits no longer change.
    """

    bodies: Integer[np.ndarray, "clauses parts"]
    rule: Integer[np.ndarray, " clauses"]
    guarded: Bool[np.ndarray, " clauses"]
    of_label: Integer[np.ndarray, "labels most"]
    rounds: int


def clauses(book: Book) -> Clauses:
    """The hard rules of a book over label sets, as implications.

    Raises:
      RuleError: for a hard rule that is not such an implication, with its text.
    """
    return _clauses(book.info)


@functools.lru_cache(maxsize=64)
def _clauses(info: Info) -> Clauses:
    labels = {name: i for i, name in enumerate(info.schema.classes)}
    found = [
        (r, body, labels[head], guarded)
        for r, rule in enumerate(info.rules)
        if rule.strength.kind == "hard"
        for body, head, guarded in _Horn(rule, info).clauses()
    ]
    widest = max((len(body) for _, body, _, _ in found), default=1)
    bodies = np.full((len(found), max(widest, 1)), len(labels), np.int32)
    by_head: list[list[int]] = [[] for _ in labels]
    for i, (_, body, head, _) in enumerate(found):
        bodies[i, : len(body)] = sorted(labels[name] for name in body)
        by_head[head].append(i)
    of_label = np.full((len(labels), max(1, *map(len, by_head))), len(found), np.int32)
    for i, row in enumerate(by_head):
        of_label[i, : len(row)] = row
    rule = np.asarray([r for r, _, _, _ in found], np.int32)
    guarded = np.asarray([guarded for _, _, _, guarded in found], bool)
    edges = [([labels[name] for name in body], head) for _, body, head, _ in found]
    return Clauses(bodies, rule, guarded, of_label, _rounds(edges, len(labels)))


class _Horn:
    """Reads a hard rule as implications: ``(labels of the body, head, depends on columns)``."""

    def __init__(self, rule: f.Rule, info: Info):
        self.rule, self.labels = rule, set(info.schema.classes)
        self.uncertain = self.labels | {info.schema.target}
        self.clauses_of: dict[str, list[f.Formula]] = {}
        for clause in info.definitions:
            body, head = (
                getattr(clause.formula, "body", None),
                getattr(clause.formula, "head", None),
            )
            if body is not None:
                self.clauses_of.setdefault(str(head).strip("`"), []).append(body)

    def clauses(self) -> list[tuple[frozenset[str], str, bool]]:
        x = self.rule.formula
        if isinstance(x, f.Implies):
            ways = [(x.body, x.head)]
        elif isinstance(x, f.Iff) and not self._on_columns(x):
            ways = [(x.left, x.right), (x.right, x.left)]
        else:
            raise self._refused()
        return [
            (parts, head, self._on_columns(body))
            for body, all_heads in ways
            for parts in self._bodies(body)
            for head in self._heads(all_heads)
            if head not in parts
        ]

    def _heads(self, head: Any) -> list[str]:
        parts = head.parts if isinstance(head, f.And) else (head,)
        names = [part.name for part in parts if self._is_label(part)]
        if len(names) < len(parts):
            raise self._refused()
        return names

    def _bodies(self, body: Any) -> list[frozenset[str]]:
        """The labels of a body: one set per conjunction of its disjunctive normal form."""
        if self._is_label(body):
            return [frozenset([body.name])]
        if not self._on_labels(body):
            return [frozenset()]  # the guard, from ``fires``, is where it holds
        if isinstance(body, f.And):
            ways = [self._bodies(part) for part in body.parts]
            return [frozenset[str]().union(*parts) for parts in itertools.product(*ways)]
        if isinstance(body, f.Or) and not self._on_columns(body):
            return [way for part in body.parts for way in self._bodies(part)]
        raise self._refused()

    def _is_label(self, x: Any) -> TypeGuard[f.Name]:
        return isinstance(x, f.Name) and x.name in self.labels

    def _on_labels(self, tree: Any) -> bool:
        return any(isinstance(x, f.Of) or x.name in self.uncertain for x in self._leaves(tree))

    def _on_columns(self, tree: Any) -> bool:
        return any(
            isinstance(x, f.Name) and x.name not in self.uncertain for x in self._leaves(tree)
        )

    def _leaves(self, tree: Any) -> Iterator[f.Name | f.Of]:
        """Names of columns and labels, and predictions on views, in a formula."""
        if isinstance(tree, f.Name) and tree.name in self.clauses_of:
            tree = tuple(self.clauses_of[tree.name])
        if isinstance(tree, f.Name | f.Of):
            yield tree
        elif isinstance(tree, f.Tree | tuple):
            for part in tree if isinstance(tree, tuple) else vars(tree).values():
                yield from self._leaves(part)

    def _refused(self) -> RuleError:
        return rule_error(
            self.rule,
            "over label sets, only hard implications can be enforced whose body joins labels and "
            "conditions on columns by and, and whose head is labels; use encourage for this rule, "
            "or give it a finite strength",
        )


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


def _guards(
    book: Book, found: Clauses, columns: Any, logits: Array
) -> Bool[Array, "batch clauses"]:
    """Where the conditions on columns of each clause hold."""
    if not found.guarded.any():
        return jnp.ones((logits.shape[0], len(found.rule)), bool)
    if columns is None:
        first = book.rules[found.rule[found.guarded.argmax()]]
        raise ValueError(f"columns are needed, since a hard rule depends on them: {first}")
    return fires(book, columns)[:, found.rule] | ~jnp.asarray(found.guarded)[None, :]


@dataclasses.dataclass(frozen=True)
class _Enforced:
    """An ``apply`` function that enforces hard rules; equal for equal arguments, so that models
    made from them share compiled programs."""

    apply: Callable[..., tuple[Outputs, State]]
    book: Book
    columns: Callable[[Any], Any]

    def __call__(
        self, params: Params, state: State, inputs: Any, *, key: Any = None, train: bool = False
    ) -> tuple[Outputs, State]:
        outputs, state = self.apply(params, state, inputs, key=key, train=train)
        logits, columns = outputs.logits, _inputs.float32_or_wider(self.columns(inputs))
        _checks.shape((columns.shape[0], len(self.book.schema.classes)), logits=logits)
        constrain = hold if self.book.schema.exclusive else max_constraint
        return outputs._replace(logits=constrain(self.book, columns, logits)), state

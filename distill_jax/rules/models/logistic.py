"""Logistic regression, W x + b, initialised from rules.

The features x are any of these, concatenated: the standardised columns, the atoms of the rules as
0 and 1, and the bodies of the rules as 0 and 1. The model takes encoded columns and computes the
features itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.rules.binding.book import Book
from distill_jax.rules.binding.schema import Schema
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._messages import rule_error
from distill_jax.rules.logic import evaluation
from distill_jax.rules.logic._inputs import encoded_columns
from distill_jax.rules.models import _features
from distill_jax.rules.models.drifting import Layout, RuleModel, Unit, rule_model
from distill_jax.rules.models.kbann import bound

Kind = Literal["columns", "atoms", "bodies"]
KINDS = ("columns", "atoms", "bodies")


@checked
def to_logistic_regression(
    rules: Book | str | Sequence[f.Rule],
    schema: Schema | None = None,
    *,
    features: Kind | Sequence[Kind] = KINDS,
    omega: float = 4.0,
) -> RuleModel:
    """Logistic regression whose initial weights are the strengths of rules.

    With ``"bodies"`` among the features, a rule's log-odds are the weight of its body: added to the
    class for ``body => class``, subtracted from it for ``body => not class``, and added to the
    classes that satisfy the head, or subtracted from those that violate it, for other heads. The
    initial logits then equal ``-energies``, up to a constant per example. The weight of a hard rule
    is ``omega``; that of a rule marked ``[learn]`` is 0, as are the weights of atoms and columns.

    Without ``"bodies"``, the atoms represent the rules, at most one rule per class: a conjunction
    of P atoms and any number of negated ones has the weights ±ω and the bias −(P − ½) ω, as in
    ``to_network``, whatever its log-odds.

    With two exclusive classes the model has a single output ``z``, and the logits are 0 and z.

    Args:
      rules: A book, or rules for ``schema``, as text or parsed.
      schema: The columns and classes; leave it out for a book, which has its own.
      features: One or more of ``"columns"``, ``"atoms"``, ``"bodies"``.
      omega: Weight of an atom, where atoms represent the rules, and log-odds of a hard rule, > 0.

    Returns:
      A model of encoded columns ``[batch, columns]``, with logits ``[batch, classes]`` and the
      params ``{"linear": {"kernel": [features, outputs], "bias": [outputs]}}``. ``init`` returns
      the same parameters for every key. Its ``layout`` names the features; see ``drift``. An atom
      over a missing value does not hold, and neither does its negation.

    Raises:
      RuleError: for rules over views; for rules that atoms alone cannot represent; and, over label
        sets, for heads other than conjunctions of labels and negated labels.
      TypeError: for rules without a schema.
      ValueError: if ``schema`` differs from the book's, for unknown features, or for ``omega`` out
        of range.

    Example:
      >>> from distill_jax.rules import Column, Schema
      >>> schema = Schema((Column("age"), Column("smoker", "boolean")), ("well", "sick"))
      >>> model = to_logistic_regression("[w=2] smoker and age > 60 => sick", schema)
      >>> columns = jnp.array([[70.0, 1.0], [50.0, 1.0]])
      >>> params, state = model.init(jax.random.key(0), columns)
      >>> print(model.predict(params, state, columns).logits)
      [[0. 2.]
       [0. 0.]]
      >>> model.layout.sources["linear"]
      ('age', 'smoker', 'smoker', 'age > 60', 'smoker and age > 60 => sick')
    """
    _checks.positive(omega=omega)
    _checks.finite(omega=omega)
    kinds = _kinds(features)
    book = bound(rules, schema, "to_logistic_regression")
    schema = book.schema
    labels = len(schema.classes)
    raw = _features.Raw(schema)
    clauses = _features.clauses_of(book.info.definitions)
    found = [
        pair
        for rule in book.rules
        for pair in _features.atoms_in(rule.formula, schema.classes, schema.target, clauses)
    ]
    atoms = _features.atoms(book, found)
    bodies = _bodies(book, omega)
    names = {"columns": raw.names, "atoms": atoms.names, "bodies": tuple(b.name for b in bodies)}
    sources = tuple(name for kind in kinds for name in names[kind])
    first = {kind: sum(len(names[k]) for k in kinds[:i]) for i, kind in enumerate(kinds)}
    compute: dict[str, Callable[[Array], Array]] = {"columns": raw, "atoms": atoms}
    compute["bodies"] = functools.partial(_body_features, book)
    kernel, bias = np.zeros((len(sources), labels)), np.zeros(labels)
    if "bodies" in kinds:
        for i, body in enumerate(bodies):
            kernel[first["bodies"] + i] = body.strength * body.shares
    elif "atoms" in kinds:
        _check_lone(book, bodies)
        for body in bodies:
            lone = sum(other.rule == body.rule for other in bodies) == 1
            parts = _conjunction_of(book.rules[body.rule], clauses) if lone else None
            if parts is None or not {x for x, _ in parts} <= set(atoms.formulas):
                raise rule_error(
                    book.rules[body.rule],
                    "atoms alone can only represent a conjunction of atoms => class: add 'bodies' "
                    "to features, or use to_network",
                )
            weights, own = _unit(dict(parts), atoms, omega)
            rows = slice(first["atoms"], first["atoms"] + len(atoms.names))
            kernel[rows] += weights[:, None] * body.shares[None, :]
            bias += own * body.shares
    one = schema.exclusive and labels == 2
    if one:  # only the difference of two logits matters
        kernel, bias = kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1]

    def init(key: Array, inputs: Any) -> dict[str, Any]:
        del key
        encoded_columns(book, inputs=inputs)
        start = {"kernel": kernel, "bias": bias}
        return {"linear": {name: jnp.asarray(x, jnp.float32) for name, x in start.items()}}

    def apply(params: dict[str, Any], inputs: Any) -> Array:
        columns = encoded_columns(book, inputs=inputs)
        x = jnp.concatenate([compute[kind](columns) for kind in kinds], axis=1)
        layer = params["linear"]
        return x @ layer["kernel"] + layer["bias"][None, :]

    layout = Layout({"linear": sources}, _units(book, bodies, atoms, clauses, first, one))
    return rule_model(init, apply, book, layout)


class _Body(NamedTuple):
    """A 0/1 feature, the body of a rule, and the classes whose logits it changes.

    Attributes:
      name: Of the rule.
      rule: Its index in the book.
      strength: Its log-odds; ``omega`` for a hard rule.
      shares: 1 for the classes that the strength is added to, −1 for those it is subtracted from,
        else 0, ``[classes]``.
    """

    name: str
    rule: int
    strength: float
    shares: np.ndarray


def _bodies(book: Book, omega: float) -> list[_Body]:
    """The bodies of a book's rules, one per piece of a rule.

    Raises:
      RuleError: for rules over views, and for heads or bodies that a linear model cannot represent.
    """
    strengths = np.where(np.asarray(book.hard), omega, np.asarray(book.strengths))
    if book.schema.exclusive:
        _check_no_views(book)
        shares = [_shares(table) for table in np.asarray(book.pieces.table)]
        which = [int(r) for r in np.asarray(book.pieces.rule)]
    else:
        for clause in book.info.definitions:
            _check_features(clause, book.schema)
        shares = [_label_shares(rule, book.schema) for rule in book.rules]
        which = list(range(len(book)))
    names = book.names
    return [_Body(names[r], r, float(strengths[r]), s) for r, s in zip(which, shares, strict=True)]


def _check_no_views(book: Book) -> None:
    """Raises for a rule that refers to another view."""
    for rule, seen in zip(np.asarray(book.pieces.rule), np.asarray(book.pieces.seen), strict=True):
        if (seen < len(book.schema.classes)).any():
            raise rule_error(
                book.rules[rule],
                "logistic regression takes a single view, and the rule refers to another one",
            )


def _shares(violated: np.ndarray) -> np.ndarray:
    """The shares of the classes, from which of them violate the rule, ``[classes]``.

    The only class that satisfies it gains, or else all that violate it lose: the two are the same
    up to a constant.
    """
    satisfied = 1.0 - violated
    return satisfied if satisfied.sum() == 1 else -violated


def _label_shares(rule: f.Rule, schema: Schema) -> np.ndarray:
    """The shares of the labels: 1 for those in the head, −1 for negated ones, ``[labels]``."""
    shares = np.zeros(len(schema.classes))
    head = rule.formula.head if isinstance(rule.formula, f.Implies) else rule.formula
    for part in head.parts if isinstance(head, f.And) else (head,):
        name, sign = (part.part, -1.0) if isinstance(part, f.Not) else (part, 1.0)
        if not (isinstance(name, f.Name) and name.name in schema.classes):
            raise rule_error(
                rule,
                "over label sets, a head must be labels and negated labels joined by and, got "
                f"{part}",
            )
        shares[schema.classes.index(name.name)] = sign
    _check_features(rule, schema)
    return shares


def _check_features(rule: f.Rule, schema: Schema) -> None:
    """Raises for a rule whose body refers to labels."""
    for tree in f.trees(rule.formula.body) if isinstance(rule.formula, f.Implies) else ():
        if _features.is_label(tree, schema.classes, schema.target):
            raise rule_error(
                rule,
                f"{tree} is predicted, and the inputs of logistic regression are columns only: "
                "enforce this rule with a penalty, as encourage does",
            )


def _body_features(book: Book, columns: Array) -> Array:
    """Which bodies hold, as 0 and 1, ``[batch, bodies]``."""
    if book.schema.exclusive:
        any_class = jnp.zeros((columns.shape[0], len(book.schema.classes)), columns.dtype)
        return evaluation.guards(book, columns, [any_class for _ in book.schema.views]).T
    return evaluation.fires(book, columns).astype(columns.dtype)


def _check_lone(book: Book, bodies: list[_Body]) -> None:
    """Raises if atoms alone would have to represent several rules for one class."""
    taken: dict[int, int] = {}
    for body in bodies:
        for k in np.flatnonzero(body.shares):
            other = taken.setdefault(int(k), body.rule)
            if other != body.rule:
                raise rule_error(
                    book.rules[body.rule],
                    "atoms alone can only represent one rule per class, and there are several for "
                    f"{book.schema.classes[k]!r}: add 'bodies' to features, or use to_network",
                )


def _unit(
    signs: dict[f.Formula, bool], atoms: _features.Atoms, omega: float
) -> tuple[np.ndarray, float]:
    """The weights of atoms, ``[atoms]``, and the bias that make a conjunction."""
    weights = np.zeros(len(atoms.names))
    for formula, positive in signs.items():
        weights[_places(atoms, [(formula, positive)])] = omega if positive else -omega
    return weights, -(sum(signs.values()) - 0.5) * omega


def _conjunction_of(
    rule: f.Rule, clauses: _features.Clauses
) -> list[tuple[f.Formula, bool]] | None:
    """The atoms of a rule's body with their signs; None if it is not a conjunction of atoms."""
    if not isinstance(rule.formula, f.Implies):
        return None
    return _conjunction(rule.formula.body, True, clauses)


def _conjunction(
    x: Any, positive: bool, clauses: _features.Clauses
) -> list[tuple[f.Formula, bool]] | None:
    """The atoms of a formula with their signs; None if it is not a conjunction of atoms."""
    if isinstance(x, f.Not):
        return _conjunction(x.part, not positive, clauses)
    if isinstance(x, f.And if positive else f.Or):
        parts = [_conjunction(part, positive, clauses) for part in x.parts]
        return None if None in parts else [pair for part in parts for pair in part or ()]
    if isinstance(x, f.Connective):
        return None
    if isinstance(x, f.Name) and x.name in clauses:
        own = clauses[x.name]
        if positive and len(own) > 1:
            return None
        bodies = [clause.formula.body for clause in own if isinstance(clause.formula, f.Implies)]
        parts = [_conjunction(body, positive, clauses) for body in bodies]
        return None if None in parts else [pair for part in parts for pair in part or ()]
    return [(x, positive)]


def _units(
    book: Book,
    bodies: list[_Body],
    atoms: _features.Atoms,
    clauses: _features.Clauses,
    first: dict[str, int],
    one: bool,
) -> tuple[Unit, ...]:
    """For each rule and each class that it changes, the rows of the kernel that belong to it."""
    classes, units = book.schema.classes, []
    pieces: dict[int, list[int]] = {}
    for i, body in enumerate(bodies):
        pieces.setdefault(body.rule, []).append(i)
    for r, rule in enumerate(book.rules):
        mine = pieces.get(r, [])
        rows = [first["bodies"] + i for i in mine] if "bodies" in first else []
        if "atoms" in first:
            own = _features.atoms_in(rule.formula, classes, book.schema.target, clauses)
            rows += [first["atoms"] + i for i in _places(atoms, own)]
        changed = {int(k) for i in mine for k in np.flatnonzero(bodies[i].shares)}
        for k in [0] if one else sorted(changed):
            name = rule.name or str(rule.formula)
            units.append(
                Unit(name if one else f"{name} ({classes[k]})", str(rule), "linear", k, tuple(rows))
            )
    return tuple(units)


def _places(atoms: _features.Atoms, found: Any) -> list[int]:
    """The indices of the features of atoms: a negated one also has an "unknown" feature."""
    places: dict[int, None] = {}
    for formula, positive in found:
        place = atoms.place[formula]
        places[place] = None
        if not positive:
            places[len(atoms.formulas) + atoms.negated.index(place)] = None
    return list(places)


def _kinds(features: Any) -> tuple[str, ...]:
    """The kinds of features, in the order of ``KINDS``."""
    kinds = (features,) if isinstance(features, str) else tuple(features)
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(KINDS):
        raise ValueError(f"features must be one or more of {KINDS}, each once, got {kinds}")
    return tuple(kind for kind in KINDS if kind in kinds)

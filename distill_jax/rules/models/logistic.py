"""Rules as logistic regression: W x + b, with the start that the rules give.

What x is, is part of the model: the columns standardised, the atoms of the rules as 0 and 1, and
the rules' bodies as 0 and 1, any of the three side by side. The model takes encoded columns and
computes the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax import _checks
from distill_jax.models.functions import from_function
from distill_jax.rules.binding.book import Book
from distill_jax.rules.binding.schema import Schema
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._messages import rule_error
from distill_jax.rules.logic import evaluation
from distill_jax.rules.logic._inputs import encoded_columns
from distill_jax.rules.models import _features
from distill_jax.rules.models.drifting import Layout, RuleModel, Unit
from distill_jax.rules.models.kbann import bound

Kind = Literal["columns", "atoms", "bodies"]
KINDS = ("columns", "atoms", "bodies")


def to_logistic_regression(
    rules: Book | str | Sequence[f.Rule],
    schema: Schema | None = None,
    *,
    features: Kind | Sequence[Kind] = KINDS,
    omega: float = 4.0,
) -> RuleModel:
    """Logistic regression that starts where the rules are.

    With ``"bodies"`` among the features, a rule's log-odds are the weight of its body: for
    ``body => class`` on that class, for ``body => not class`` taken from it, for other heads on
    the classes that satisfy it. The logits are then, up to a shift, minus ``energies``. A hard rule
    weighs ``omega``, one to be learned 0, and so do atoms and columns at the start. Without
    ``"bodies"``, the atoms carry the rule: one rule a class, a conjunction of P atoms and N negated
    ones, is a unit with the weights ±ω and the bias −(P − ½) ω, whatever its log-odds.

    Two classes are one output ``z``, read as the logits 0 and z.

    Args:
      rules: A book, or rules for ``schema``, as text or parsed.
      schema: Columns and classes; a book has one.
      features: Which of ``"columns"``, ``"atoms"``, ``"bodies"`` the model sees; one or more.
      omega: Weight of an atom, where they carry the rule, and log-odds of a hard rule, > 0.

    Returns:
      A model with the params ``{"linear": {"kernel": [features, outputs], "bias": [outputs]}}``.
      ``init`` gives the rules' start, whatever its key. Its ``layout`` names features; see
      ``drift``. An atom over a missing value does not hold, and neither does its negation.

    Raises:
      RuleError: for rules over views; for rules that atoms alone cannot carry; and, over label
        sets, for heads that are no conjunction of labels and negated labels.

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
    if not schema.exclusive and labels == 1:
        raise ValueError(
            "one label has no logits of its own: say exclusive=True and name two classes"
        )
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
    see: dict[str, Callable[[Array], Array]] = {"columns": raw, "atoms": atoms}
    see["bodies"] = functools.partial(_held, book)
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
                    "atoms alone carry a conjunction of atoms => class: take features with "
                    "'bodies', or to_network",
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
        seen = jnp.concatenate([see[kind](columns) for kind in kinds], axis=1)
        layer = params["linear"]
        return seen @ layer["kernel"] + layer["bias"][None, :]

    model = from_function(init, apply, classes=schema.classes, missing=True)
    layout = Layout({"linear": sources}, _units(book, bodies, atoms, clauses, first, one))
    return RuleModel(model.init, model.apply, schema.classes, missing=True, layout=layout)


class _Body(NamedTuple):
    """A 0/1 feature that speaks for some classes.

    ``shares`` are 1 for the classes it adds to and −1 for those it takes from, ``[classes]``.
    """

    name: str
    rule: int
    strength: float
    shares: np.ndarray


def _bodies(book: Book, omega: float) -> list[_Body]:
    strengths = np.where(np.asarray(book.hard), omega, np.asarray(book.strengths))
    if book.schema.exclusive:
        _no_views(book)
        shares = [_shares(table) for table in np.asarray(book.pieces.table)]
        which = [int(r) for r in np.asarray(book.pieces.rule)]
    else:
        for clause in book.info.definitions:
            _check_features(clause, book.schema)
        shares = [_labels(rule, book.schema) for rule in book.rules]
        which = list(range(len(book)))
    names = book.names
    return [_Body(names[r], r, float(strengths[r]), s) for r, s in zip(which, shares, strict=True)]


def _no_views(book: Book) -> None:
    """Raises for a rule that speaks of another view."""
    for rule, seen in zip(np.asarray(book.pieces.rule), np.asarray(book.pieces.seen), strict=True):
        if (seen < len(book.schema.classes)).any():
            raise rule_error(
                book.rules[rule], "logistic regression sees one view, and the rule speaks of others"
            )


def _shares(violated: np.ndarray) -> np.ndarray:
    """Of the classes that a rule adds to or takes from. Equal up to a shift, the fewer are named:
    all that violate it lose, or the only one that satisfies it gains."""
    satisfied = 1.0 - violated
    return satisfied if satisfied.sum() == 1 else -violated


def _labels(rule: f.Rule, schema: Schema) -> np.ndarray:
    shares = np.zeros(len(schema.classes))
    head = rule.formula.head if isinstance(rule.formula, f.Implies) else rule.formula
    for part in head.parts if isinstance(head, f.And) else (head,):
        name, sign = (part.part, -1.0) if isinstance(part, f.Not) else (part, 1.0)
        if not (isinstance(name, f.Name) and name.name in schema.classes):
            raise rule_error(
                rule, f"over label sets a head is labels and negated labels, joined by and: {part}"
            )
        shares[schema.classes.index(name.name)] = sign
    _check_features(rule, schema)
    return shares


def _check_features(rule: f.Rule, schema: Schema) -> None:
    """Raises where a body speaks of labels."""
    for tree in f.trees(rule.formula.body) if isinstance(rule.formula, f.Implies) else ():
        if _features.is_label(tree, schema.classes, schema.target):
            raise rule_error(
                rule,
                f"{tree} is predicted, and logistic regression sees features alone: hold this rule "
                "with a penalty",
            )


def _held(book: Book, columns: Array) -> Array:
    """The bodies' features, ``[batch, bodies]``."""
    if book.schema.exclusive:
        any_class = jnp.zeros((columns.shape[0], len(book.schema.classes)), columns.dtype)
        return evaluation.guards(book, columns, [any_class for _ in book.schema.views]).T
    return evaluation.fires(book, columns).astype(columns.dtype)


def _check_lone(book: Book, bodies: list[_Body]) -> None:
    """Raises where atoms alone would have to carry two rules about one class."""
    taken: dict[int, int] = {}
    for body in bodies:
        for k in np.flatnonzero(body.shares):
            other = taken.setdefault(int(k), body.rule)
            if other != body.rule:
                raise rule_error(
                    book.rules[body.rule],
                    "atoms alone carry one rule a class, and there are several for "
                    f"{book.schema.classes[k]!r}: take features with 'bodies', or to_network",
                )


def _unit(
    signs: dict[f.Formula, bool], atoms: _features.Atoms, omega: float
) -> tuple[np.ndarray, float]:
    """Weights over atoms, and the bias, of a conjunction."""
    weights = np.zeros(len(atoms.names))
    for formula, positive in signs.items():
        weights[_places(atoms, [(formula, positive)])] = omega if positive else -omega
    return weights, -(sum(signs.values()) - 0.5) * omega


def _conjunction_of(
    rule: f.Rule, clauses: _features.Clauses
) -> list[tuple[f.Formula, bool]] | None:
    if not isinstance(rule.formula, f.Implies):
        return None
    return _conjunction(rule.formula.body, True, clauses)


def _conjunction(
    x: Any, positive: bool, clauses: _features.Clauses
) -> list[tuple[f.Formula, bool]] | None:
    """The atoms of a conjunction with their signs; None if it is none."""
    if isinstance(x, f.Not):
        return _conjunction(x.part, not positive, clauses)
    if isinstance(x, f.And if positive else f.Or):
        parts = [_conjunction(part, positive, clauses) for part in x.parts]
        return None if None in parts else [pair for part in parts for pair in part or ()]
    if isinstance(x, f.And | f.Or | f.Implies | f.Iff | f.Count):
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
    """A rule for each class that it speaks of, and the atoms and bodies that are its own."""
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
        spoken = {int(k) for i in mine for k in np.flatnonzero(bodies[i].shares)}
        for k in [0] if one else sorted(spoken):
            name = rule.name or str(rule.formula)
            units.append(
                Unit(name if one else f"{name} ({classes[k]})", str(rule), "linear", k, tuple(rows))
            )
    return tuple(units)


def _places(atoms: _features.Atoms, found: Any) -> list[int]:
    places: dict[int, None] = {}
    for formula, positive in found:
        place = atoms.place[formula]
        places[place] = None
        if not positive:
            places[len(atoms.formulas) + atoms.negated.index(place)] = None
    return list(places)


def _kinds(features: Any) -> tuple[str, ...]:
    kinds = (features,) if isinstance(features, str) else tuple(features)
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(KINDS):
        raise ValueError(f"features must be one or more of {KINDS}, each once, got {kinds}")
    return tuple(kind for kind in KINDS if kind in kinds)

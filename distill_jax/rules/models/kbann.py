"""Horn clauses as a network: knowledge-based artificial neural networks (KBANN).

Every clause becomes a sigmoid unit that says "and", every predicate with several clauses one that
says "or" over them. Towell and Shavlik's translation, with weight ω:

- and: +ω from each antecedent, −ω from each negated one, bias −(P − ½) ω for P not negated;
- or: +ω from each, bias −½ ω; −ω and a bias higher by ω for each that is negated.

Units lie in layers, each above all that it depends on. A layer sees all units of the layer below,
and all inputs if a clause in it speaks of one; the links that no clause asks for start near zero.
A sigmoid unit is only nearly 0 or 1, so deep theories need a larger ω than 4 to be reproduced
exactly; for training, 4 leaves gradients alive.

References:
  Towell, Shavlik, Knowledge-Based Artificial Neural Networks, Artificial Intelligence 70, 1994;
  Mitchell, Machine Learning, 1997, section 12.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax import _checks
from distill_jax.models.functions import from_function
from distill_jax.rules.binding.binding import bind
from distill_jax.rules.binding.book import Book
from distill_jax.rules.binding.schema import Schema, nearest
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._messages import rule_error
from distill_jax.rules.logic._inputs import encoded_columns
from distill_jax.rules.models import _features
from distill_jax.rules.models.drifting import Layout, RuleModel, Unit


def to_network(
    theory: str | Sequence[f.Rule] | Book,
    schema: Schema | None = None,
    *,
    omega: float = 4.0,
    noise: float = 0.01,
) -> RuleModel:
    """The network that a theory of Horn clauses describes, to be trained from there.

    The model takes encoded columns, ``encode_columns(schema, table)`` (or ``encode(book, table)``,
    if clauses look into text); what units see are numbers standardised, categories one by one, and
    each other atom of the theory as 0 or 1. An atom over a missing value does not hold, and neither
    does its negation; ``not`` before a predicate means that no clause shows it.

    Two classes of which one has clauses are one output ``z``, read as the logits 0 and z. Otherwise
    each class or label is a unit, and one without clauses starts at 0.

    Args:
      theory: Horn clauses ``head :- a, not b.``, or rules ``body => class`` without a strength, as
        text, parsed, or bound.
      schema: Columns and classes; a book has one.
      omega: Weight of a link that the theory asks for, > 0.
      noise: All weights start with a uniform draw from ±noise added, with the key of ``init``.

    Returns:
      A model with the params ``{"level1": {"kernel": [sources, units], "bias": [units]}, …}``; what
      rows and columns are stands in its ``layout``. See ``drift``.

    Raises:
      RuleError: for clauses that go in a circle, predicates that nothing defines or nothing uses,
        classes without any clause, empty bodies, and rules that are no clauses.

    Example:
      >>> from distill_jax.rules import Column, Schema
      >>> schema = Schema(tuple(Column(x, "boolean") for x in "abc"), ("no", "yes"))
      >>> model = to_network("yes :- p, not c.   p :- a.   p :- b.", schema, omega=20.0)
      >>> inputs = jnp.array([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
      >>> params, state = model.init(jax.random.key(0), inputs)
      >>> print(model.predict(params, state, inputs).logits.argmax(-1))
      [1 0 0]
      >>> [unit.name for unit in model.layout.units]
      ['p', 'yes']
    """
    _checks.positive(omega=omega)
    _checks.finite(omega=omega, noise=noise)
    _checks.at_least(0.0, noise=noise)
    book = bound(theory, schema, "to_network")
    schema = book.schema
    if not schema.exclusive and len(schema.classes) == 1:
        raise ValueError(
            "one label has no logits of its own: say exclusive=True and name two classes"
        )
    graph = _Graph(book)
    levels = graph.levels()
    outputs = graph.outputs(levels)
    start = {level.name: _start(level, omega) for level in levels}

    def init(key: Array, inputs: Any) -> dict[str, Any]:
        encoded_columns(book, inputs=inputs)
        params = {}
        for i, (name, (kernel, bias)) in enumerate(start.items()):
            shift = jax.random.uniform(
                jax.random.fold_in(key, i), kernel.shape, minval=-1.0, maxval=1.0
            )
            params[name] = {"kernel": kernel + noise * shift, "bias": jnp.asarray(bias)}
        return params

    def apply(params: dict[str, Any], inputs: Any) -> Array:
        blocks = [graph.inputs(encoded_columns(book, inputs=inputs))]
        nets = []
        for level in levels:
            kernel, first = params[level.name]["kernel"], 0
            net = params[level.name]["bias"][None, :]
            for block, columns in level.blocks:
                seen = blocks[block] if columns is None else blocks[block][:, columns]
                net = net + seen @ kernel[first : first + seen.shape[1]]
                first += seen.shape[1]
            nets.append(net)
            blocks.append(jax.nn.sigmoid(net))
        logits = [
            jnp.zeros(blocks[0].shape[0]) if place is None else nets[place[0]][:, place[1]]
            for place in outputs
        ]
        return jnp.stack(logits, axis=1)

    model = from_function(init, apply, classes=schema.classes, missing=True)
    return RuleModel(
        model.init, model.apply, schema.classes, missing=True, layout=graph.layout(levels)
    )


def bound(theory: Any, schema: Schema | None, who: str) -> Book:
    """A book as it is, or rules bound to a schema."""
    if isinstance(theory, Book):
        if schema is not None and schema != theory.schema:
            raise ValueError(f"{who} takes a book with its own schema: leave schema out")
        return theory
    if schema is None:
        raise TypeError(f"{who} needs a schema for rules that are not bound to one")
    return bind(theory, schema)


@dataclasses.dataclass(frozen=True)
class _Unit:
    """An and or an or over inputs (by place, with sign) and other units (by name, with sign)."""

    name: str
    text: str
    kind: str
    inputs: dict[int, int]
    units: dict[str, int]
    unknown: tuple[int, ...] = ()  # inputs that say that a negated one is unknown


class _Level(NamedTuple):
    """Units that see whole blocks (0 are the inputs, n the units of level n) or parts of them."""

    name: str
    units: list[_Unit]
    blocks: list[tuple[int, np.ndarray | None]]
    rows: dict[Any, int]  # of the kernel, by input's place or unit's name
    sources: tuple[str, ...]


class _Graph:
    """The units of a theory, by name."""

    def __init__(self, book: Book):
        self.book, self.schema = book, book.schema
        for rule in book.rules:
            _check_clause(rule, self.schema)
        self.clauses = _features.clauses_of((*book.info.definitions, *book.rules))
        self.raw = _features.Raw(self.schema)
        known = {name: i for i, name in enumerate(self.raw.names)}
        self.units: dict[str, _Unit] = {}
        self._open: list[str] = []
        found = []
        for rule in (*book.info.definitions, *book.rules):
            assert isinstance(rule.formula, f.Implies)
            for tree, positive in self._atoms(rule, rule.formula.body):
                found.append((tree, positive))
        self.atoms = _features.atoms(book, found)
        # What is a feature already needs no second one.
        extra = [i for i, name in enumerate(self.atoms.names) if name not in known]
        self._extra = np.asarray(extra, np.int32)
        self.names = (*self.raw.names, *(self.atoms.names[i] for i in extra))
        self.places = {name: i for i, name in enumerate(self.names)}
        names: list[Any] = [tree for x in self._bodies() for tree in f.trees(x)]
        used = {x.name for x in names if isinstance(x, f.Name)}
        for head, clauses in self.clauses.items():
            if head not in self.schema.classes and head not in used:
                advice = nearest(head, [*self.schema.classes, *sorted(used & set(self.clauses))])
                raise rule_error(
                    clauses[0], f"{head!r} is no class, and no clause uses it; {advice}", head
                )
        for head in self.schema.classes:
            if head in self.clauses:
                self.predicate(head)

    def inputs(self, columns: Array) -> Array:
        """What the units see of the columns."""
        raw = self.raw(columns)
        if not len(self._extra):
            return raw
        return jnp.concatenate([raw, self.atoms(columns)[:, self._extra]], axis=1)

    def _bodies(self) -> list[f.Formula]:
        return [
            clause.formula.body
            for clauses in self.clauses.values()
            for clause in clauses
            if isinstance(clause.formula, f.Implies)
        ]

    def _is_predicate(self, x: Any) -> bool:
        return isinstance(x, f.Name) and (x.name in self.clauses or x.name in self.schema.classes)

    def _atoms(self, rule: f.Rule, x: Any, positive: bool = True) -> Any:
        if isinstance(x, f.Not):
            yield from self._atoms(rule, x.part, not positive)
        elif isinstance(x, f.And | f.Or):
            for part in x.parts:  # under its own unit, a part's sign is its own
                yield from self._atoms(rule, part)
        elif not self._is_predicate(x):
            labels = (self.schema.classes, self.schema.target)
            for tree in f.trees(x):
                if self._is_predicate(tree) or _features.is_label(tree, *labels):
                    raise rule_error(
                        rule, f"{x} is no literal: write what is over {tree} with and, or, not"
                    )
            yield x, positive

    def predicate(self, name: str) -> str:
        """Makes the unit of a predicate and all below it; gives its name."""
        if name in self.units:
            return name
        if name in self._open:
            cycle = [*self._open[self._open.index(name) :], name]
            raise rule_error(
                self.clauses[name][0], "clauses may not go in a circle: " + " :- ".join(cycle), name
            )
        self._open.append(name)
        clauses = self.clauses[name]
        if len(clauses) == 1:
            self._unit(name, clauses[0], clauses[0].formula.body)  # type: ignore[union-attr]
        else:
            parts = []
            for i, clause in enumerate(clauses):
                assert isinstance(clause.formula, f.Implies)
                body = clause.formula.body
                if isinstance(body, f.And | f.Or):
                    own = clause.name or f"{name}/{i + 1}"
                    parts.append((self._unit(own, clause, body), 1))
                else:  # one literal goes into the or itself
                    parts.append(self._literal(clause, body))
            self._join(name, f"{name}: any of {len(clauses)}", "or", parts, clauses[0])
        self._open.pop()
        return name

    def _unit(self, name: str, rule: f.Rule, x: Any, text: str | None = None) -> str:
        parts = x.parts if isinstance(x, f.And | f.Or) else (x,)
        kind = "or" if isinstance(x, f.Or) else "and"
        made = [self._literal(rule, part) for part in parts]
        return self._join(name, str(rule) if text is None else text, kind, made, rule)

    def _literal(self, rule: f.Rule, x: Any) -> tuple[Any, int]:
        """An input's place or a unit's name, and 1 or −1 if it is negated."""
        sign = 1
        while isinstance(x, f.Not):
            x, sign = x.part, -sign
        if isinstance(x, f.And | f.Or):
            return self._unit(str(x), rule, x, str(x)), sign
        if self._is_predicate(x):
            assert isinstance(x, f.Name)
            if x.name not in self.clauses:
                raise rule_error(
                    rule, f"class {x.name!r} stands in a body, and no clause defines it", x.name
                )
            return self.predicate(x.name), sign
        return self.places[str(x)], sign

    def _join(
        self, name: str, text: str, kind: str, parts: list[tuple[Any, int]], rule: f.Rule
    ) -> str:
        inputs: dict[int, int] = {}
        units: dict[str, int] = {}
        for ref, sign in parts:
            into: dict[Any, int] = units if isinstance(ref, str) else inputs
            if into.setdefault(ref, sign) != sign:
                what = ref if isinstance(ref, str) else self.names[ref]
                never = "never holds" if kind == "and" else "always holds"
                raise rule_error(rule, f"{what} and its negation stand side by side: it {never}")
        unknown = tuple(
            self.places[f"unknown: {self.names[place]}"] for place, s in inputs.items() if s < 0
        )
        made = _Unit(name, text, kind, inputs, units, unknown)
        while name in self.units and self.units[name] != made:
            name += "'"  # two clauses that the user gave one name
            made = dataclasses.replace(made, name=name)
        self.units[name] = made
        return name

    def levels(self) -> list[_Level]:
        """Layers of units, from the inputs up."""
        depth: dict[str, int] = {}
        for name, unit in self.units.items():  # made after all that it depends on
            depth[name] = 1 + max((depth[other] for other in unit.units), default=0)
        top = max(depth.values())
        one_output = self.schema.exclusive and len(self.schema.classes) == 2
        for name in [] if one_output else [x for x in self.schema.classes if x not in self.clauses]:
            self.units[name] = _Unit(name, f"{name}: no clause", "or", {}, {})
            depth[name] = top
        found: list[_Level] = []
        for d in range(1, top + 1):
            units = [self.units[name] for name in depth if depth[name] == d]
            needed = {other for unit in units for other in unit.units}
            blocks: list[tuple[int, np.ndarray | None]] = []
            keys: list[Any] = []
            if d == 1 or any(unit.inputs for unit in units):
                blocks.append((0, None))
                keys += range(len(self.names))
            for block, level in enumerate(found, 1):
                own = [unit.name for unit in level.units]
                take = [i for i, name in enumerate(own) if name in needed or block == d - 1]
                if take:
                    whole = len(take) == len(own)
                    blocks.append((block, None if whole else np.asarray(take, np.int32)))
                    keys += [own[i] for i in take]
            sources = tuple(key if isinstance(key, str) else self.names[key] for key in keys)
            rows = {key: i for i, key in enumerate(keys)}
            found.append(_Level(f"level{d}", units, blocks, rows, sources))
        return found

    def outputs(self, levels: list[_Level]) -> list[tuple[int, int] | None]:
        """Level and unit of each class's logit; None for one that stays 0."""
        places = {
            unit.name: (i, j)
            for i, level in enumerate(levels)
            for j, unit in enumerate(level.units)
        }
        return [places.get(name) for name in self.schema.classes]

    def layout(self, levels: list[_Level]) -> Layout:
        units = [
            Unit(unit.name, unit.text, level.name, j, tuple(_links(level, unit)))
            for level in levels
            for j, unit in enumerate(level.units)
        ]
        return Layout({level.name: level.sources for level in levels}, tuple(units))


def _links(level: _Level, unit: _Unit) -> dict[int, int]:
    """Rows of the level's kernel that the theory asks for, with their signs."""
    signs: dict[Any, int] = {**unit.inputs, **dict.fromkeys(unit.unknown, -1), **unit.units}
    return {level.rows[key]: sign for key, sign in signs.items()}


def _start(level: _Level, omega: float) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of the theory's own links."""
    kernel = np.zeros((len(level.sources), len(level.units)), np.float32)
    bias = np.zeros(len(level.units), np.float32)
    for j, unit in enumerate(level.units):
        for row, sign in _links(level, unit).items():
            kernel[row, j] = sign * omega
        signs = [*unit.inputs.values(), *unit.units.values()]
        if signs and unit.kind == "and":
            bias[j] = -(signs.count(1) - 0.5) * omega
        elif signs:
            bias[j] = (signs.count(-1) - 0.5) * omega
    return kernel, bias


def _check_clause(rule: f.Rule, schema: Schema) -> None:
    formula = rule.formula
    is_clause = isinstance(formula, f.Implies) and isinstance(formula.head, f.Name)
    if not is_clause or formula.head.name not in schema.classes:  # type: ignore[union-attr]
        raise rule_error(
            rule,
            "to_network takes clauses, head :- a, b, or rules body => class; "
            "to_logistic_regression takes others",
        )
    if rule.strength.kind:
        raise rule_error(
            rule,
            "a clause has no strength, since all links start at omega: leave it out, or use "
            "to_logistic_regression",
        )

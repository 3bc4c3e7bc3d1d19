"""Horn clauses as a network: knowledge-based artificial neural networks (KBANN).

Every clause becomes a sigmoid unit that computes a conjunction, and every predicate with several
clauses one that computes the disjunction of them. Towell and Shavlik's translation, with weight ω:

- conjunction of P positive and any number of negated antecedents: weight +ω from each positive one,
  −ω from each negated one, bias −(P − ½) ω;
- disjunction of positive and N negated parts: the same weights, bias (N − ½) ω.

Each unit is placed in the lowest layer above all units that it depends on. A layer is connected to
all units of the layer below, and to all inputs if one of its clauses mentions an input; connections
that no clause requires start near zero. A sigmoid unit is only approximately 0 or 1, so deep
theories need a larger ω than the default 4 to be reproduced exactly; for training, 4 keeps the
gradients from vanishing.

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
from distill_jax._arguments import checked
from distill_jax.rules.binding.binding import bind
from distill_jax.rules.binding.book import Book
from distill_jax.rules.binding.schema import Schema, nearest
from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._messages import rule_error
from distill_jax.rules.logic._inputs import encoded_columns
from distill_jax.rules.models import _features
from distill_jax.rules.models.drifting import Layout, RuleModel, Unit, rule_model


@checked
def to_network(
    theory: str | Sequence[f.Rule] | Book,
    schema: Schema | None = None,
    *,
    omega: float = 4.0,
    noise: float = 0.01,
) -> RuleModel:
    """A network initialised from a theory of Horn clauses, to be trained further (KBANN).

    The model's inputs are encoded columns ``[batch, columns]``, from ``encode_columns(schema,
    table)``, or from ``encode(book, table)`` for the exact values of what clauses compare, which is
    needed if clauses match text or do arithmetic. The network computes its own features from them:
    numbers are standardised, categories are one-hot, and every other atom of the theory is 0 or 1.
    An atom over a missing value does not hold, and neither does its negation. ``not`` before a
    predicate is negation as failure: it holds if no clause for the predicate does.

    With two exclusive classes of which one has clauses, the network has a single output ``z``, and
    the logits are 0 and z. Otherwise each class or label has a unit; the weights and the bias of
    one without clauses start at 0 (plus noise on the weights).

    Args:
      theory: Horn clauses ``head :- a, not b.``, or rules ``body => class`` without a strength: as
        text, as parsed rules, or as a book.
      schema: The columns and classes; leave it out for a book, which has its own.
      omega: Weight of a connection that the theory requires, > 0.
      noise: Every weight starts with a uniform draw from [−noise, noise] added to it; ``init``
        takes the key.

    Returns:
      A model with the params ``{"level1": {"kernel": [sources, units], "bias": [units]}, …}`` and
      logits ``[batch, classes]``. Its ``layout`` names the rows and columns of each kernel; see
      ``drift``.

    Raises:
      RuleError: for cyclic clauses, predicates that are undefined or unused, classes in a body
        without a clause of their own, empty bodies, and rules that are not clauses.
      TypeError: for rules without a schema.
      ValueError: if ``schema`` differs from the book's, or for an ``omega`` or
        ``noise`` out of range.

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
                source = blocks[block] if columns is None else blocks[block][:, columns]
                net = net + source @ kernel[first : first + source.shape[1]]
                first += source.shape[1]
            nets.append(net)
            blocks.append(jax.nn.sigmoid(net))
        logits = [
            jnp.zeros(blocks[0].shape[0]) if place is None else nets[place[0]][:, place[1]]
            for place in outputs
        ]
        return jnp.stack(logits, axis=1)

    return rule_model(init, apply, book, graph.layout(levels))


def bound(theory: Any, schema: Schema | None, who: str) -> Book:
    """The book itself, or rules bound to ``schema``.

    Raises:
      TypeError: for rules without a schema.
      ValueError: for a book with another schema.
    """
    if isinstance(theory, Book):
        if schema is not None and schema != theory.schema:
            raise ValueError(f"{who} uses the schema of its book: leave schema out")
        return theory
    if schema is None:
        kind = "a text" if isinstance(theory, str) else f"a {type(theory).__name__}"
        raise TypeError(
            f"{who} needs a schema, unless its rules are a book: got {kind} without one"
        )
    return bind(theory, schema)


@dataclasses.dataclass(frozen=True)
class _Unit:
    """A conjunction or disjunction of inputs (by index) and other units (by name), with signs.

    Attributes:
      name: Of a predicate or a clause, or the text of a nested formula.
      text: The rule that it was made from.
      kind: ``"and"`` or ``"or"``.
      inputs: The sign of each input, by its index: 1, or −1 if it is negated.
      units: The sign of each other unit, by its name.
      unknown: The inputs that say that a negated input is unknown.
    """

    name: str
    text: str
    kind: str
    inputs: dict[int, int]
    units: dict[str, int]
    unknown: tuple[int, ...] = ()


class _Level(NamedTuple):
    """A layer of units.

    Attributes:
      name: Its key in the params.
      units: One per column of its kernel.
      blocks: What it is connected to: a block (0 is the inputs, n the units of level n), and which
        columns of it, None for all.
      rows: The kernel's row of each input, by its index, and of each unit, by its name.
      sources: The names of the kernel's rows.
    """

    name: str
    units: list[_Unit]
    blocks: list[tuple[int, np.ndarray | None]]
    rows: dict[Any, int]
    sources: tuple[str, ...]


class _Graph:
    """The units of a theory, by name, and the input features that they need."""

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
        # Atoms that equal a column's feature, such as a boolean column, are not added again.
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
                    clauses[0],
                    f"{head!r} is not a class, and no clause uses it; {advice}",
                    head,
                )
        for head in self.schema.classes:
            if head in self.clauses:
                self.predicate(head)

    def inputs(self, columns: Array) -> Array:
        """The input features of encoded columns, ``[batch, features]``."""
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
            for part in x.parts:  # a nested formula gets its own unit, which starts a new sign
                yield from self._atoms(rule, part)
        elif not self._is_predicate(x):
            labels = (self.schema.classes, self.schema.target)
            for tree in f.trees(x):
                if self._is_predicate(tree) or _features.is_label(tree, *labels):
                    raise rule_error(
                        rule,
                        f"{x} is not a literal: write formulas over {tree} with and, or, not",
                    )
            yield x, positive

    def predicate(self, name: str) -> str:
        """Makes the unit of a predicate and all units that it depends on; returns its name."""
        if name in self.units:
            return name
        if name in self._open:
            cycle = [*self._open[self._open.index(name) :], name]
            raise rule_error(
                self.clauses[name][0], "clauses must not be cyclic: " + " :- ".join(cycle), name
            )
        self._open.append(name)
        clauses = self.clauses[name]
        if len(clauses) == 1:
            body = clauses[0].formula.body  # type: ignore[union-attr]
            self._unit(name, clauses[0], body, predicate=True)
        else:
            parts = []
            for i, clause in enumerate(clauses):
                assert isinstance(clause.formula, f.Implies)
                body = clause.formula.body
                if isinstance(body, f.And | f.Or):
                    own = clause.name or f"{name}/{i + 1}"
                    parts.append((self._unit(own, clause, body), 1))
                else:  # a single literal is an input of the disjunction itself
                    parts.append(self._literal(clause, body))
            self._join(name, f"{name}: any of {len(clauses)}", "or", parts, clauses[0], True)
        self._open.pop()
        return name

    def _unit(
        self, name: str, rule: f.Rule, x: Any, text: str | None = None, predicate: bool = False
    ) -> str:
        parts = x.parts if isinstance(x, f.And | f.Or) else (x,)
        kind = "or" if isinstance(x, f.Or) else "and"
        made = [self._literal(rule, part) for part in parts]
        text = str(rule) if text is None else text
        return self._join(name, text, kind, made, rule, predicate)

    def _literal(self, rule: f.Rule, x: Any) -> tuple[Any, int]:
        """An input's index or a unit's name, and the sign: 1, or −1 if it is negated."""
        sign = 1
        while isinstance(x, f.Not):
            x, sign = x.part, -sign
        if isinstance(x, f.And | f.Or):
            return self._unit(str(x), rule, x, str(x)), sign
        if self._is_predicate(x):
            assert isinstance(x, f.Name)
            if x.name not in self.clauses:
                raise rule_error(
                    rule, f"class {x.name!r} is used in a body, but no clause defines it", x.name
                )
            return self.predicate(x.name), sign
        return self.places[str(x)], sign

    def _join(
        self,
        name: str,
        text: str,
        kind: str,
        parts: list[tuple[Any, int]],
        rule: f.Rule,
        predicate: bool = False,
    ) -> str:
        inputs: dict[int, int] = {}
        units: dict[str, int] = {}
        for ref, sign in parts:
            into: dict[Any, int] = units if isinstance(ref, str) else inputs
            if into.setdefault(ref, sign) != sign:
                what = ref if isinstance(ref, str) else self.names[ref]
                trivial = "never hold" if kind == "and" else "always hold"
                raise rule_error(rule, f"{what} {kind} its negation {trivial}: remove one of them")
        unknown = tuple(
            self.places[f"unknown: {self.names[place]}"] for place, s in inputs.items() if s < 0
        )
        made = _Unit(name, text, kind, inputs, units, unknown)
        # A predicate keeps its name. The name of a clause, or the text of a nested formula, may be
        # that of a predicate, or of another clause.
        while not predicate and (
            self._is_predicate(f.Name(name)) or self.units.get(name, made) != made
        ):
            name += "'"
            made = dataclasses.replace(made, name=name)
        self.units[name] = made
        return name

    def levels(self) -> list[_Level]:
        """The layers of units, from the inputs up."""
        depth: dict[str, int] = {}
        for name, unit in self.units.items():  # units come after all that they depend on
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
        """The level and column of the unit of each class's logit; None for a logit fixed at 0."""
        places = {
            unit.name: (i, j)
            for i, level in enumerate(levels)
            for j, unit in enumerate(level.units)
        }
        return [places.get(name) for name in self.schema.classes]

    def layout(self, levels: list[_Level]) -> Layout:
        """The names of the kernels' rows, and the rules of their columns."""
        units = [
            Unit(unit.name, unit.text, level.name, j, tuple(_links(level, unit)))
            for level in levels
            for j, unit in enumerate(level.units)
        ]
        return Layout({level.name: level.sources for level in levels}, tuple(units))


def _links(level: _Level, unit: _Unit) -> dict[int, int]:
    """The signs of the connections that the theory requires, by row of the level's kernel."""
    signs: dict[Any, int] = {**unit.inputs, **dict.fromkeys(unit.unknown, -1), **unit.units}
    return {level.rows[key]: sign for key, sign in signs.items()}


def _start(level: _Level, omega: float) -> tuple[np.ndarray, np.ndarray]:
    """The kernel and bias that the theory requires, before noise."""
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
    """Raises for a rule that is neither a clause nor ``body => class``, or has a strength."""
    formula = rule.formula
    is_clause = isinstance(formula, f.Implies) and isinstance(formula.head, f.Name)
    if not is_clause or formula.head.name not in schema.classes:  # type: ignore[union-attr]
        raise rule_error(
            rule,
            "to_network takes clauses, head :- a, b., or rules body => class; use "
            "to_logistic_regression for other rules",
        )
    if rule.strength.kind:
        raise rule_error(
            rule,
            "a clause has no strength, since all weights start at omega: leave it out, or use "
            "to_logistic_regression",
        )

"""Functions as traced programs, split into pieces whose order the compiler has to keep."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from distill_jax import _checks


def described(x: Any, *leading: int, shape: tuple[int, ...] | None = None) -> Any:
    """The shape and dtype of an array as JAX would hold it: 64 bits of NumPy's in 32, mostly.

    Args:
      x: An array.
      *leading: Axes to put before its own.
      shape: In place of its own shape.
    """
    dtype = jax.dtypes.canonicalize_dtype(x.dtype) if isinstance(x.dtype, np.dtype) else x.dtype
    return jax.ShapeDtypeStruct((*leading, *(x.shape if shape is None else shape)), dtype)


class Program(NamedTuple):
    """A function as a list of equations.

    Attributes:
      equations: In the order in which they run.
      takes: The variables of the flat arguments.
      gives: The variables of the flat results, or literals.
      constants: The values of further variables.
      structure: Of the result.
      source: What was traced.
    """

    equations: list[Any]
    takes: list[Any]
    gives: list[Any]
    constants: dict[Any, Any]
    structure: Any
    source: Any


class Piece(NamedTuple):
    """Equations that run together: ``gives = run(*takes)``, by variable."""

    equations: list[Any]
    run: Callable[..., Sequence[Array]]
    takes: list[Any]
    gives: list[Any]


def trace(function: Callable[..., Any], leaves: Sequence[Any], batch: int) -> Program:
    """Traces ``function(*leaves)``, whose first ``batch`` leaves come from a batch.

    Equations that do not depend on the batch (casts of params, masks of dropout) are moved to where
    their results are first used, so that these need not be held from the start.
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*leaves)
    source = traced.jaxpr
    return Program(
        equations=_late(source.eqns, source.invars[:batch]),
        takes=list(source.invars),
        gives=list(source.outvars),
        constants=dict(zip(source.constvars, traced.consts, strict=True)),
        structure=jax.tree.structure(shapes),
        source=source,
    )


def pieces(program: Program, edges: Sequence[int]) -> list[Piece]:
    """The program split at ``edges``, indices of equations from 0 to their number.

    Variables are in the order of the program, so that every process compiles the same pieces.
    """
    found = []
    later = set(variables(program.gives))
    for start, end in reversed(list(zip(edges[:-1], edges[1:], strict=True))):
        equations = program.equations[start:end]
        makes = dict.fromkeys(v for e in equations for v in e.outvars)
        uses = dict.fromkeys(v for e in equations for v in variables(e.invars))
        takes = [v for v in uses if v not in makes]
        gives = [v for v in makes if v in later]
        part = program.source.replace(
            constvars=[],
            invars=takes,
            outvars=gives,
            eqns=equations,
            effects=frozenset().union(*(e.effects for e in equations)),
            debug_info=program.source.debug_info.with_unknown_names(),
        )
        run = core.jaxpr_as_fun(core.ClosedJaxpr(part, []))
        found.append(Piece(equations, run, takes, gives))
        later |= set(takes)
    return found[::-1]


def result(program: Program, known: dict[Any, Any]) -> Any:
    """What the function returns, given the values of all variables."""
    made = [v.val if isinstance(v, core.Literal) else known[v] for v in program.gives]
    return jax.tree.unflatten(program.structure, made)


def variables(atoms: Sequence[Any]) -> list[Any]:
    """The atoms that are not literals."""
    return [v for v in atoms if not isinstance(v, core.Literal)]


def inner_jaxprs(program: Any) -> Iterator[Any]:
    """A jaxpr and all those inside it, open and closed ones, each once."""
    seen: set[int] = set()
    ahead = [program]
    while ahead:
        jaxpr = ahead.pop()
        if id(jaxpr) in seen:
            continue
        seen.add(id(jaxpr))
        yield jaxpr
        for equation in jaxpr.eqns:
            parts = jax.tree.leaves(list(equation.params.values()))
            ahead += [x for x in parts if isinstance(x, core.ClosedJaxpr | core.Jaxpr)]


def has_convolution(program: Any) -> bool:
    """Whether a jaxpr holds a convolution, which XLA's CPU backend runs slowly inside a loop."""
    return any(
        equation.primitive.name == "conv_general_dilated"
        for jaxpr in inner_jaxprs(program)
        for equation in jaxpr.eqns
    )


def pairs_rows(program: Any, rows: int) -> bool:
    """Whether a jaxpr makes an array with two axes of ``rows``, one for each pair of them."""
    return any(
        getattr(variable.aval, "shape", ()).count(rows) > 1
        for jaxpr in inner_jaxprs(program)
        for equation in jaxpr.eqns
        for variable in equation.outvars
    )


def after(values: Any, arrived: Any) -> Any:
    """The same values, available only once all of ``arrived`` is.

    The compiler then neither computes earlier than needed, nor merges what is computed twice on
    purpose.
    """
    found = [x for x in jax.tree.leaves(arrived) if _is_number(x) and x.size]
    if not found:
        return values
    late, found = jax.lax.optimization_barrier((values, found))
    if jax.default_backend() == "cpu":
        # XLA's CPU backend drops barriers before it schedules. No number is above inf, nor is NaN,
        # so nothing is ever replaced, but the compiler cannot know that. All of them are compared,
        # since some may be constants.
        firsts = [jnp.ravel(x)[0].astype(_checks.wide_dtype(x)) for x in found]
        never = functools.reduce(operator.or_, [x > jnp.inf for x in firsts])
        late = jax.tree.map(functools.partial(_unless, never), late)
    # In a shard_map, what is the same on all devices has to stay so, and does not wait.
    return jax.tree.map(lambda x, y: y if jax.typeof(x) == jax.typeof(y) else x, values, late)


def vary_alike(tree: Any) -> Any:
    """Under ``shard_map``, what is the same on all devices becomes each device's own.

    Done here, outside of the ``custom_vjp``, so that the gradient of what is shared is summed.
    """

    def axes(x: Any) -> frozenset[Any]:
        kind = jax.typeof(x)
        if hasattr(kind, "vma"):  # before jax 0.10
            return kind.vma
        return getattr(getattr(kind, "manual_axis_type", None), "varying", frozenset())

    everywhere = frozenset[Any]().union(*(axes(x) for x in jax.tree.leaves(tree)))

    def vary(x: Any) -> Any:
        missing = tuple(sorted(everywhere - axes(x), key=str))
        if not missing:
            return x
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(x, missing, to="varying")
        return getattr(jax.lax, "pvary")(x, missing)  # noqa: B009 - before jax 0.9

    return jax.tree.map(vary, tree)


def _unless(never: Array, x: Array) -> Array:
    if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jnp.where(never, jnp.zeros_like(x), x)
    bits = _unless(never, jax.random.key_data(x))
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(x))


def _is_number(x: Any) -> bool:
    # Neither keys, nor the cotangents of integers, nor complex numbers, which have no order.
    return jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)


def _late(equations: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    depends = set(inputs)
    for equation in equations:
        if equation.effects or not depends.isdisjoint(variables(equation.invars)):
            depends |= set(equation.outvars)
    due: dict[Any, int] = {}
    place = [0] * len(equations)
    for i in reversed(range(len(equations))):
        equation = equations[i]
        free = depends.isdisjoint(equation.outvars)
        uses = [due[v] for v in equation.outvars if v in due] if free else []
        place[i] = min(uses, default=i)
        for v in variables(equation.invars):
            due[v] = min(due.get(v, place[i]), place[i])
    order = sorted(range(len(equations)), key=lambda i: place[i])  # stable: makers come first
    return [equations[i] for i in order]

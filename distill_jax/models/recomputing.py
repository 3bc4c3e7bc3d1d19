"""Rematerialisation: a forward pass that is recomputed in the backward pass, piece by piece.

``jax.checkpoint`` around a whole forward pass saves no memory: the backward pass first recomputes
all of it, and then holds all that it would have held. The pass has to be cut into pieces, so that
only what passes from one piece to the next is kept. Here the cuts are found in the traced program,
so that any model can be cut, whatever library it was written with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax import _checks, _programs
from distill_jax._arguments import checked
from distill_jax._programs import variables
from distill_jax.types import Model, Outputs, Params, State


@checked
def remat(model: Model, *, pieces: int | None = None) -> Model:
    """The same model, which keeps less memory between its forward and its backward pass.

    In training mode the forward pass is cut into pieces. What passes between pieces is kept;
    everything else is recomputed, one piece at a time, when the backward pass reaches it. Values
    and gradients are those of ``model``; random numbers are drawn again from the same keys.
    Evaluation mode is unchanged.

    Memory falls from all that the layers keep to about what one piece keeps, plus what passes
    between pieces. The temporary memory of a compiled gradient, measured on two CPU cores
    (``python benchmarks/memory.py``):

    - 12 transformer blocks of width 128 with dropout, 8 sequences of 128: 256 to 35 MB, in the
      same time;
    - ResNet-20, 64 images of 32 x 32: 151 to 55 MB, 1.1 times slower;
    - 16 layers of 512 with GELU and dropout, 2,048 rows: 336 to 151 MB, of which the forward pass
      alone takes 147, 1.2 times slower.

    The price is one more forward pass, a third more arithmetic where matrix products dominate. It
    pays where activations outweigh params: deep models, long sequences, large batches. It does not
    help small models, nor where params, gradients and optimizer state fill the memory; and tracing
    takes longer.

    A single operation of the traced program is not cut: a scan over layers, or a function under a
    ``jit`` of its own. There, checkpoint the layer itself with ``nnx.remat``, ``nn.remat`` or
    ``jax.checkpoint`` instead. Those work inside any model, and inside this one.

    Args:
      model: Any model. Compose as ``remat(cast(model, dtype))``.
      pieces: About how many; None chooses by the sizes of arrays.

    Returns:
      A model with the params, state, logits and features of ``model``. Equal arguments give equal
      models, which share one compiled program. In training mode it has no forward-mode derivative
      (``jax.jvp``, ``jax.jacfwd``).

    Raises:
      ValueError: if ``pieces`` is below 1.
      TypeError: if ``pieces`` is not an integer.

    Example:
      >>> from distill_jax.models import mlp
      >>> model, inputs = mlp([8] * 9, 3), jnp.ones((2, 4))
      >>> params, state = model.init(jax.random.key(0), inputs)
      >>> def loss(params, model):
      ...     return model.apply(params, state, inputs, train=True)[0].logits[0, 0]
      >>> gradient, same = jax.grad(loss)(params, model), jax.grad(loss)(params, remat(model))
      >>> bool(jnp.allclose(gradient["head"]["kernel"], same["head"]["kernel"]))
      True

    References:
      Chen et al., `Training Deep Nets with Sublinear Memory Cost
      <https://arxiv.org/abs/1604.06174>`_, 2016.
    """
    if pieces is not None:
        pieces = _checks.count("pieces", pieces)
    return dataclasses.replace(model, apply=_Remat(model.apply, pieces))


@dataclasses.dataclass(frozen=True)
class _Remat:
    apply: Callable[..., tuple[Outputs, State]]
    pieces: int | None

    def __call__(
        self,
        params: Params,
        state: State,
        inputs: Any,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Outputs, State]:
        if not train:
            return self.apply(params, state, inputs, key=key, train=False)

        def forward(inputs: Any, params: Params, state: State, key: Array | None):
            return self.apply(params, state, inputs, key=key, train=True)

        return _in_pieces(forward, self.pieces, inputs, params, state, key)


def _in_pieces(forward: Callable[..., Any], number: int | None, inputs: Any, *others: Any) -> Any:
    leaves, structure = jax.tree.flatten((inputs, *others))
    leaves = [jnp.asarray(x) for x in leaves]

    def flat(*leaves):
        return forward(*jax.tree.unflatten(structure, leaves))

    program = _programs.trace(flat, leaves, batch=len(jax.tree.leaves(inputs)))
    known = program.constants | dict(zip(program.takes, leaves, strict=True))
    *pieces, last = _programs.pieces(program, _edges(program.equations, program.gives, number))
    for piece in pieces:
        made = _recomputed(piece.run, [known[v] for v in piece.takes])
        known |= zip(piece.gives, made, strict=True)
    # The backward pass begins with the last piece, which needs what it keeps at once.
    known |= zip(last.gives, last.run(*[known[v] for v in last.takes]), strict=True)
    return _programs.result(program, known)


def _recomputed(run: Callable[..., Sequence[Array]], values: list[Any]) -> Sequence[Array]:
    """``run(*values)``, keeping only ``values`` for the backward pass."""
    differentiable = [jnp.issubdtype(x.dtype, jnp.inexact) for x in values]

    def forward(floats, others):
        floats, others = iter(floats), iter(others)
        return run(*[next(floats) if d else next(others) for d in differentiable])

    def backward(kept, cotangents):
        floats, others = _programs.after(kept, cotangents)
        _, pull = jax.vjp(lambda *floats: forward(floats, others), *floats)
        return pull(cotangents), None

    recomputed = jax.custom_vjp(forward)
    recomputed.defvjp(lambda floats, others: (forward(floats, others), (floats, others)), backward)
    pairs = list(zip(values, differentiable, strict=True))
    return recomputed(tuple(x for x, d in pairs if d), tuple(x for x, d in pairs if not d))


def _edges(equations: Sequence[Any], outvars: Sequence[Any], pieces: int | None) -> list[int]:
    """Where to cut, so that the bytes kept between pieces plus those that the largest piece makes
    are fewest."""
    end = len(equations)
    last: dict[Any, int] = {}
    for i, equation in enumerate(equations):
        last |= dict.fromkeys(variables(equation.invars), i)
    given = set(variables(outvars))
    made = np.array([sum(map(_bytes, e.outvars)) for e in equations], float)
    # The model's outputs are kept or not, wherever the cuts are: they do not count.
    held = [[v for v in e.outvars if v not in given] for e in equations]
    needed = np.array([max((last.get(v, i) for v in vs), default=i) for i, vs in enumerate(held)])
    size = np.array([sum(map(_bytes, vs)) for vs in held], float)
    so_far = np.concatenate([[0.0], np.cumsum(made)])
    best, found = np.inf, [0, end]
    most = max(1, min(end, 64))
    tries = (pieces,) if pieces else sorted({round(2 ** (i / 2)) for i in range(13)} - {0})
    for parts in tries:
        edges, kept = _cut(so_far, needed, size, so_far[-1] / min(parts, most))
        widest = float(np.diff(so_far[edges]).max()) if end else 0.0
        if kept + widest < best:
            best, found = kept + widest, edges
    return found


def _cut(
    so_far: np.ndarray, needed: np.ndarray, size: np.ndarray, widest: float
) -> tuple[list[int], float]:
    """Edges of pieces that make at most ``widest`` bytes (or are one equation), so that the fewest
    bytes are kept between them; and how many those are."""
    end = len(needed)
    cost, back = np.zeros(end + 1), np.zeros(end + 1, int)
    for j in range(1, end + 1):
        i = min(int(np.searchsorted(so_far, so_far[j] - widest * (1 + 1e-9))), j - 1)
        # Bytes that the equations i ... j - 1 make and that are needed from j on.
        crosses = np.where(needed[i:j] >= j, size[i:j], 0.0)[::-1].cumsum()[::-1]
        totals = cost[i:j] + crosses
        best = len(totals) - 1 - int(np.argmin(totals[::-1]))
        back[j], cost[j] = i + best, totals[best]
    edges = [end]
    while edges[-1]:
        edges.append(int(back[edges[-1]]))
    return edges[::-1], float(cost[end])


def _bytes(variable: Any) -> int:
    aval = variable.aval
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 4)
    return int(np.prod(getattr(aval, "shape", ()), dtype=float) * itemsize)

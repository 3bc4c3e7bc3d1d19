"""Memory for time: a forward pass that is computed again in the backward pass, piece by piece.

Around a forward pass as a whole, ``jax.checkpoint`` lowers nothing: the backward pass first
computes all of it again, and then holds what it would have held. It has to be cut into pieces, of
which only what passes from one to the next is kept. Here the cuts are found in the traced program,
so that any model can be cut, whatever it was written with.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax import _programs
from distill_jax._programs import variables
from distill_jax.types import Model, Outputs, Params, State


def remat(model: Model, *, pieces: int | None = None) -> Model:
    """The same model, which keeps less memory between its forward and its backward pass.

    In training mode the forward pass is cut into pieces. What passes between them is kept, all
    else is computed again, a piece at a time, when the backward pass comes to it. Values and
    gradients are those of the model itself; random numbers are drawn again from the same keys.
    Evaluation mode is left alone.

    Memory falls from all that the layers keep to about what one piece keeps, plus what passes
    between any two. The temporary memory of a compiled gradient, measured on two CPU cores
    (``python benchmarks/memory.py``):

    - 12 transformer blocks of width 128 with dropout, 8 sequences of 128: 256 to 35 MB, in the
      same time;
    - ResNet-20, 64 images of 32 x 32: 151 to 55 MB, 1.1 times slower;
    - 16 layers of 512 with GELU and dropout, 2,048 rows: 336 to 151 MB, of which the forward pass
      alone takes 147, 1.2 times slower.

    The forward pass is computed once more, a third more arithmetic: that is the price where
    products dominate. It helps where activations outweigh params: deep models, long sequences,
    large batches. It does not help small ones, nor where params, gradients and optimizer state are
    what fills the memory, and tracing takes longer.

    What one operation of the traced program does is not cut: a scan over layers, or a function
    under its own ``jit``. There, checkpoint the layer itself, with ``nnx.remat``, ``nn.remat`` or
    ``jax.checkpoint``, and leave this out. Those work inside of any model, and inside of this.

    Args:
      model: Any model. Compose as ``remat(compute_in(model, dtype))``.
      pieces: About how many; None chooses by the sizes of arrays.

    Returns:
      A model with the params and state of ``model``. Made twice alike, it is compiled once. It has
      no forward-mode derivative in training mode (``jax.jvp``, ``jax.jacfwd``).

    Raises:
      ValueError: if ``pieces`` is below 1.

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
    if pieces is not None and operator.index(pieces) < 1:
        raise ValueError(f"pieces must be 1 or more, got {pieces}")
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
        made = _again(piece.run, [known[v] for v in piece.takes])
        known |= zip(piece.gives, made, strict=True)
    # The backward pass begins with the last piece: what that keeps is needed at once.
    known |= zip(last.gives, last.run(*[known[v] for v in last.takes]), strict=True)
    return _programs.result(program, known)


def _again(run: Callable[..., Sequence[Array]], values: list[Any]) -> Sequence[Array]:
    """``run(*values)``, of which nothing but ``values`` is kept for the backward pass."""
    smooth = [jnp.issubdtype(x.dtype, jnp.inexact) for x in values]

    def forward(moving, fixed):
        moving, fixed = iter(moving), iter(fixed)
        return run(*[next(moving) if s else next(fixed) for s in smooth])

    def backward(kept, cotangents):
        moving, fixed = _programs.after(kept, cotangents)
        _, pull = jax.vjp(lambda *moving: forward(moving, fixed), *moving)
        return pull(cotangents), None

    again = jax.custom_vjp(forward)
    again.defvjp(lambda moving, fixed: (forward(moving, fixed), (moving, fixed)), backward)
    moving = tuple(x for x, s in zip(values, smooth, strict=True) if s)
    return again(moving, tuple(x for x, s in zip(values, smooth, strict=True) if not s))


def _edges(equations: Sequence[Any], outvars: Sequence[Any], pieces: int | None) -> list[int]:
    """Where to cut: the least of what is kept between pieces and what the widest piece makes."""
    end = len(equations)
    last: dict[Any, int] = {}
    for i, equation in enumerate(equations):
        last |= dict.fromkeys(variables(equation.invars), i)
    given = set(variables(outvars))
    made = np.array([sum(map(_bytes, e.outvars)) for e in equations], float)
    # What goes out of the model is held, or not, wherever the cuts are.
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
    """Edges of pieces that make ``widest`` bytes at most (or are one equation), so that least is
    kept between them; and how much that is."""
    end = len(needed)
    cost, back = np.zeros(end + 1), np.zeros(end + 1, int)
    for j in range(1, end + 1):
        i = min(int(np.searchsorted(so_far, so_far[j] - widest * (1 + 1e-9))), j - 1)
        # What equations i ... j - 1 make that is needed from j on.
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

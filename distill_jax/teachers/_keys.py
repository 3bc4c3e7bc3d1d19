"""Where a teacher that draws random numbers finds its key: in its state.

So whatever is made of a teacher (an ensemble, a teacher in eight bits, one corrected by rules)
passes the key on with the state, and need not know that it draws.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
from jaxtyping import Array

from distill_jax.types import State


@functools.partial(jax.tree_util.register_dataclass, data_fields=["key"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
    """A part of the state of a teacher that draws; its key is None until the teacher is called."""

    key: Any = None

    def keys(self, number: int) -> Array:
        """As many keys; raises ValueError where the teacher was called without one."""
        if self.key is None:
            raise ValueError(
                "key is None, and the teacher draws random numbers: call teacher(inputs, key=key), "
                "or, where no key can be passed, compute its logits beforehand, as the column "
                "teacher_logits, with precompute(teacher, inputs, key=key)"
            )
        return jax.random.split(self.key, number)


def draw(state: State) -> bool:
    """Whether a teacher with this state draws."""
    return any(map(_is_draws, jax.tree.leaves(state, is_leaf=_is_draws)))


def keyed(state: State, key: Array) -> State:
    """The state with a key of its own for each part that draws."""
    number = itertools.count()
    return _map(lambda x: Draws(jax.random.fold_in(key, next(number))), state)


def folded(state: State, number: Any) -> State:
    """The state with other keys for each number; without keys, the same."""
    return _map(lambda x: x if x.key is None else Draws(jax.random.fold_in(x.key, number)), state)


def _map(change: Any, state: State) -> State:
    return jax.tree.map(lambda x: change(x) if _is_draws(x) else x, state, is_leaf=_is_draws)


def _is_draws(x: Any) -> bool:
    return isinstance(x, Draws)

"""Terms with their weights, summed into one scalar."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from distill_jax import _batches, _checks
from distill_jax import data as data_
from distill_jax._arguments import checked
from distill_jax.objectives import _columns
from distill_jax.objectives._guarding import weighted
from distill_jax.objectives.context import Context
from distill_jax.objectives.terms import Term
from distill_jax.types import Batch, OutputKind


class Part(NamedTuple):
    """A term's sum over the rows that count, before its own weight, and what it is divided by:
    the number of those rows, or the sum of their weights."""

    sum: Float[Array, ""]
    count: Float[Array, ""]

    @property
    def mean(self) -> Float[Array, ""]:
        return _divided(self.sum, self.count)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Objective:
    """A weighted sum of terms; made by ``weighted_sum``."""

    terms: tuple[Term, ...]

    def counts(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Rows that count for each term, or their weights. For a batch in pieces, sum these."""
        return {t.name: t.count(batch) for t in self.terms}

    def init(self, key: Array, context: Context) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
        """Parameters and state of the terms that own any, by name.

        Of ``context`` only shapes and dtypes matter.
        """
        pairs = {
            t.name: t.start(jax.random.fold_in(key, i), context)
            for i, t in enumerate(self.terms)
            if t.init is not None
        }
        return {n: p for n, (p, _) in pairs.items()}, {n: s for n, (_, s) in pairs.items()}

    def __call__(
        self,
        params: Mapping[str, PyTree],
        state: Mapping[str, PyTree],
        context: Context,
        denominators: Mapping[str, Float[Array, ""]] | None = None,
    ) -> tuple[Float[Array, ""], tuple[dict[str, Part], dict[str, PyTree]]]:
        """The scalar, and what went into it.

        Through the scalar, a term of weight 0 sends no gradient to any parameter, whatever its
        slopes are, and the slope with respect to that weight is the term's mean. (Derivatives of a
        gradient with respect to a weight, for hyper-gradients, are 0 where it is 0: begin above
        it.) Nor do its parts send a gradient then. Its state is updated as at any other weight.

        Args:
          params: The terms' own parameters, by term.
          state: The terms' own state, by term.
          context: What the losses look at. No gradient passes to its teachers.
          denominators: What to divide the sums by; the batch's own counts where None. When
            ``context`` holds a piece of a batch, the counts of the whole batch.

        Returns:
          ``(scalar, (parts, state))``: parts by term, as sum and count of this batch.

        Raises:
          ValueError: at trace time, if a term lacks what its loss reads, its rows and mask differ
            in shape, or a coupled term is given a piece of a batch.
        """
        context = context._replace(teachers=jax.lax.stop_gradient(dict(context.teachers)))
        counts = self.counts(context.batch)
        divisors = counts if denominators is None else denominators
        if missing := counts.keys() - divisors.keys():
            raise ValueError(f"denominators must have a count for each term, not {sorted(missing)}")
        total, parts, new_state = jnp.zeros(()), {}, dict(state)
        for t in self.terms:
            if t.coupled and denominators is not None:
                raise ValueError(
                    f"term {t.name!r} couples the examples of a batch, so it cannot be computed "
                    "on a piece of one: pass the whole batch, without denominators"
                )
            rows, own = t.rows(params.get(t.name), state.get(t.name), context)
            if t.init is not None:
                new_state[t.name] = own
            wide = rows.dtype if rows.dtype.itemsize >= 4 else jnp.float32
            # Counts are known before the rows, whose further axes all count alike.
            entries = t.entries(rows.shape, context.batch)
            count, divisor = counts[t.name], divisors[t.name]
            if entries != 1:
                count, divisor = count * entries, divisor * entries
            parts[t.name] = Part(rows.sum(dtype=wide), count)
            mean = _divided(parts[t.name].sum, divisor)
            weight = t.weight_at(context.step)
            total += weighted(jnp.asarray(weight, total.dtype), jnp.asarray(mean, total.dtype))
        return total, (parts, new_state)

    def check(self, data: Batch, num_classes: int, outputs: OutputKind = "softmax") -> None:
        """Looks once, on the host, at what compiled code cannot raise for.

        Each column that a term reads must be finite, and labels in range, in the rows that the
        term counts; the other rows may hold anything.

        Args:
          data: All rows, or a batch, as the host has them; traced columns pass.
          num_classes: The student's number of outputs.
          outputs: What they mean.
        """
        seen = set()  # columns that several terms read with the same mask are looked at once
        for t in self.terms:
            _columns.check_weights(t, data)
            for parameter in t.parameters.all:
                name = dict(t.reads).get(parameter, parameter)
                column = _batches.found(data, name) if isinstance(name, str) else None
                look = name, parameter, t.where, t.sample_weight
                if column is None or look in seen:
                    continue  # not a column; one that is missing is an error of the first trace
                seen.add(look)
                mask = t.mask(data)
                if parameter == "labels":
                    mask = _columns.labels_that_count(t, data, column, mask)
                for path, x in _batches.named(name, column):
                    _columns.check_begins(t, data, mask, path, x)
                    checked = {path: x} if mask is None else _by_entry(path, x, mask)
                    may_miss = (path,) if parameter == "columns" else ()
                    data_.check(checked, values=(path,), missing=may_miss, outputs=outputs)
                if parameter in getattr(t.loss, "probabilities", ()):
                    _columns.check_probabilities(f"{name!r} of term {t.name!r}", column, mask)
                if parameter == "labels":
                    _checks.integer_or_boolean(**{name: column})
                    values = _checks.known(column)
                    kept = np.ones(column.shape[:1], bool) if mask is None else _checks.known(mask)
                    number = _columns.label_values(t, num_classes, outputs)
                    if values is not None and kept is not None and number is not None:
                        _checks.labels_below(number, **{name: values[kept]})

    def check_masks(self, data: Batch) -> None:
        """Raises ValueError for a term that counts no row of the data, though its weight is not 0.

        Args:
          data: All rows; traced masks and weights pass.
        """
        for t in self.terms:
            mask = t.mask(data)
            known = None if mask is None else _checks.known(mask)
            weight = None if callable(t.weight) else _checks.known(t.weight)
            if known is not None and not known.any() and (weight is None or weight != 0):
                what = "the column 'where' is False"
                if t.where is not None:
                    what = "its where= is False"
                elif t.sample_weight is not None and "where" not in data:
                    what = "its sample_weight is 0"
                raise ValueError(
                    f"term {t.name!r} counts none of the {len(known)} rows of the data: {what} "
                    "in all. Fix the mask, leave the term out, or set its weight to 0"
                )


def _divided(total: Array, count: Any) -> Array:
    count = jnp.asarray(count, total.dtype)
    return total / jnp.where(count > 0, count, 1.0)  # a sum of weights may be small


def _by_entry(name: str, column: Any, mask: Any) -> dict[str, Any]:
    """A column and its mask, each entry of which is a row: masked entries may hold anything."""
    return {name: column.reshape(-1, *column.shape[mask.ndim :]), "where": mask.reshape(-1)}


@checked
def weighted_sum(*terms: Term) -> Objective:
    """Joins terms into one objective.

    Args:
      *terms: One or more, each with a name of its own.

    Returns:
      An objective: ``objective(params, state, context, denominators=None)`` gives the scalar, the
      sum over terms of weight times mean, and each term's sum and count.

    Raises:
      ValueError: if there is no term, or two have one name.

    Example:
      >>> from distill_jax.losses import cross_entropy
      >>> from distill_jax.objectives import term
      >>> from distill_jax.types import Outputs
      >>> objective = weighted_sum(term("labels", 1.0, cross_entropy))
      >>> context = Context(Outputs(jnp.zeros((4, 2))), batch={"labels": jnp.array([0, 1, 1, 0])})
      >>> value, (parts, _) = objective({}, {}, context)
      >>> print(f"{value:.4f} over {parts['labels'].count:.0f} rows")
      0.6931 over 4 rows
    """
    if not terms:
        raise ValueError("weighted_sum needs one term or more")
    names = [t.name for t in terms]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"terms must have names of their own, got {name!r} twice")
    return Objective(tuple(terms))

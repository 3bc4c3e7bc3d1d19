"""A student that is taught by its own predictions as the rules correct them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax import _checks
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import Context, Term, term
from distill_jax.rules.binding.book import Book
from distill_jax.rules.language import formulas as f
from distill_jax.rules.levels.projection import project
from distill_jax.rules.logic import _inputs
from distill_jax.rules.logic._inputs import Views
from distill_jax.types import Params, State


def posterior_kl(
    student_logits: Float[Array, "batch classes"],
    columns: Float[Any, "batch columns"],
    views: Views,
    *,
    rules: Book,
    strengths: Float[Any, " rules"] | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """KL divergence from the student's own distribution, as the rules correct it, to the student.

    No gradient passes to the corrected distribution. 0 where the rules change nothing.

    Args:
      student_logits: ``[batch, classes]``.
      columns: From ``encode``.
      views: The student's logits on other views; {} where the rules use none.
      rules: The book.
      strengths: In place of the book's own, ``[rules]``.
      temperature: Softens both sides, as in ``soft_targets``.
      where: Rows to count; the others get loss 0 and gradient 0.

    Returns:
      Nats, ``[batch]``.
    """
    _inputs.check_exclusive(rules, "posterior_kl")
    logits, columns, views = _inputs.prepared(rules, student_logits, columns, views, where)
    taught = project(rules, columns, logits, strengths=strengths, views=views)
    taught = jax.lax.stop_gradient(taught)
    return soft_targets(logits, taught, temperature=temperature, where=where)


def teach(
    name: str,
    weight: Any,
    book: Book,
    *,
    learn: bool = False,
    strengths: Any = None,
    temperature: Any = 1.0,
    labelled: str | None = None,
    where: str | Callable | None = None,
    reads: Mapping[str, Any] | None = None,
) -> Term:
    """A term that makes the student imitate itself as the rules correct it.

    The corrected student is made anew in each step from the current one. Put a term for the labels
    beside it: ``pi = imitation(...)``, then ``teach("rules", pi, book)`` and
    ``term("labels", remainder(pi), cross_entropy)``.

    With ``learn``, the term owns the strengths of the rules marked ``[learn]``: its parameter
    ``{"strengths": [rules]}`` starts at 0 and is added to the book's own. They are trained to make
    the labels likely under the corrected distribution: its cross-entropy with the labels is added
    to the imitation. The student gets its gradient from the imitation alone, the strengths theirs
    from the labels alone. ``weight`` multiplies both, so strengths wait while it is 0. Labels that
    hard rules forbid say nothing here. Afterwards, ``learned(book, params)`` puts the strengths
    into the book.

    Args:
      name: The term's name.
      weight: A number, a traced value, or a schedule, ``imitation`` for example.
      book: Rules over exclusive classes.
      learn: Whether to train the strengths of rules marked ``[learn]``.
      strengths: In place of the book's own: ``[rules]``, or a schedule ``step -> [rules]``.
      temperature: Softens both sides, as in ``soft_targets``; a number or a schedule.
      labelled: With ``learn``, the batch's boolean column that says which rows have a label; all
        where None.
      where: Rows that count, as in ``term``.
      reads: Where ``columns`` come from, if not from the batch's column of that name:
        ``{"columns": "inputs"}`` where the model's inputs are the encoded columns. Also
        ``views``, ``student_logits``, and, with ``learn``, ``labels``.

    Raises:
      ValueError: for label sets, or ``learn`` without a rule to learn.
    """
    _inputs.check_exclusive(book, "teach")
    if not callable(strengths) and strengths is not None:
        _checks.shape((len(book),), strengths=strengths)
        _checks.finite(strengths=strengths)
    if not callable(temperature):
        _checks.positive(temperature=temperature)
    options: dict[str, Any] = dict(rules=book, strengths=strengths, temperature=temperature)
    if not learn:
        return term(name, weight, posterior_kl, where=where, reads=reads, **options)
    known = _checks.known(book.learn)
    if known is not None and not known.any():
        raise ValueError("learn needs a rule marked [learn], and the book has none")
    if strengths is not None:
        raise ValueError("learn starts from the book's own strengths: leave strengths out")
    return term(
        name,
        weight,
        _Learned(labelled),
        where=where,
        reads=reads,
        init=_Start(len(book)),
        rules=book,
        temperature=temperature,
    )


def learned(book: Book, params: Mapping[str, Any]) -> Book:
    """The book with the strengths that a term made by ``teach(..., learn=True)`` has trained.

    Args:
      book: The term's book.
      params: The term's parameters, ``train_state.term_params[name]``.

    Returns:
      A book in which what was ``[learn]`` is ``[w=…]``, so that it prints and saves what has been
      learned. Where the parameters are traced, the arrays alone say so.
    """
    strengths = _strengths(book, params)
    known, learn = _checks.known(strengths), _checks.known(book.learn)
    info = book.info
    if known is not None and learn is not None:
        rules = tuple(
            dataclasses.replace(rule, strength=f.Strength("w", float(w))) if is_learned else rule
            for rule, w, is_learned in zip(book.rules, known, learn, strict=True)
        )
        info = dataclasses.replace(info, rules=rules)
    return dataclasses.replace(
        book, strengths=strengths, learn=jnp.zeros_like(book.learn), info=info
    )


@dataclasses.dataclass(frozen=True)
class Imitation:
    """A schedule ``step -> min(ceiling, 1 - alpha ** t)``; made by ``imitation``."""

    alpha: float
    ceiling: float
    steps_per_epoch: float
    first: int

    def __call__(self, step: Any) -> Any:
        epochs = (jnp.asarray(step, jnp.float32) + self.first) / self.steps_per_epoch
        return jnp.minimum(self.ceiling, 1.0 - self.alpha**epochs)


def imitation(
    alpha: float = 0.95, *, steps_per_epoch: float, ceiling: float = 1.0, first: int = 1
) -> Imitation:
    r"""How much weight the rule teacher has as training goes on, :math:`\min(\pi_0, 1 - \alpha^t)`.

    Labels get the rest, ``remainder`` of it, so that a student that knows nothing yet does not
    imitate itself. The defaults are those of the authors' code, which counts ``t`` in epochs, as a
    fraction within each, from the first batch as batch 1, with no ceiling (``get_pi`` and
    ``pi_params=[0.95, 0]`` in ``logicnn_sentiment.py`` of ``ZhitingHu/logicnn``; their second
    number is 1 − ceiling). The paper's equation has a ceiling below 1, and counts from iteration 0:
    ``imitation(alpha, steps_per_epoch=n, ceiling=0.9, first=0)``.

    Args:
      alpha: In [0, 1]: how fast it rises; 0 is at the ceiling from the start, 1 never rises.
      steps_per_epoch: Steps in one unit of ``t``; 1 where ``t`` counts steps.
      ceiling: :math:`\pi_0` in [0, 1].
      first: What the first step counts as.

    Returns:
      A function ``step -> value``; equal arguments give equal functions.

    Example:
      >>> pi = imitation(0.5, steps_per_epoch=10, ceiling=0.9)
      >>> print(pi(9), pi(99), remainder(pi)(9))
      0.5 0.9 0.5
    """
    _checks.between(0.0, 1.0, alpha=alpha, ceiling=ceiling)
    _checks.positive(steps_per_epoch=steps_per_epoch)
    return Imitation(float(alpha), float(ceiling), float(steps_per_epoch), int(first))


@dataclasses.dataclass(frozen=True)
class Remainder:
    """A schedule ``step -> 1 - schedule(step)``; made by ``remainder``."""

    schedule: Callable[[Any], Any]

    def __call__(self, step: Any) -> Any:
        return 1.0 - self.schedule(step)


def remainder(schedule: Callable[[Any], Any]) -> Remainder:
    """What a schedule leaves to the others: 1 minus it. For the labels beside ``teach``."""
    return Remainder(schedule)


@dataclasses.dataclass(frozen=True)
class _Start:
    rules: int

    def __call__(self, key: Array) -> tuple[Params, State]:
        return {"strengths": jnp.zeros(self.rules)}, {}


@dataclasses.dataclass(frozen=True)
class _Learned:
    """Imitation for the student, and the labels' cross-entropy for the strengths."""

    labelled: str | None

    def __call__(
        self,
        params: Params,
        state: State,
        context: Context,
        student_logits: Any,
        columns: Any,
        views: Any,
        labels: Any,
        *,
        rules: Book,
        temperature: Any = 1.0,
        where: Any = None,
    ) -> tuple[Array, State]:
        logits, columns, views = _inputs.prepared(rules, student_logits, columns, views, where)
        strengths = _strengths(rules, params)
        rows = posterior_kl(
            logits,
            columns,
            views,
            rules=rules,
            strengths=strengths,
            temperature=temperature,
            where=where,
        )
        given = jnp.ones(labels.shape, bool) if where is None else where
        if self.labelled is not None:
            given = given & context.batch[self.labelled]
        logits = jax.lax.stop_gradient(logits)
        taught = project(rules, columns, logits, strengths=strengths, views=views)
        safe = jnp.where(given, labels, 0)[:, None]
        given = given & ~jnp.isneginf(jnp.take_along_axis(taught, safe, axis=1)[:, 0])
        return rows + cross_entropy(taught, labels, where=given), state


def _strengths(book: Book, params: Mapping[str, Any]) -> Array:
    return jnp.where(book.learn, book.strengths + params["strengths"], book.strengths)

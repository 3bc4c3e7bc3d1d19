"""Distillation of the rule-corrected predictions of a student into the student itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import Context, Term, term
from distill_jax.objectives.terms import DivideBy
from distill_jax.rules.binding.book import Book
from distill_jax.rules.language import formulas as f
from distill_jax.rules.levels.projection import project
from distill_jax.rules.logic import _inputs
from distill_jax.rules.logic._inputs import Views
from distill_jax.types import Params, State


@checked
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
    """KL divergence of the student from its own predictions as corrected by the rules.

    The corrected distribution, that of ``project``, is the target; no gradient passes to it. The
    loss is 0 where the rules change nothing.

    Args:
      student_logits: ``[batch, classes]``.
      columns: From ``encode``, ``[batch, columns]``.
      views: The student's logits on other views, ``[batch, classes]`` each, by name; ``{}`` if the
        rules use none.
      rules: The book, over exclusive classes.
      strengths: Log-odds of the rules that replace the book's own, ``[rules]``.
      temperature: Softens both distributions, as in ``soft_targets``.
      where: Rows that count, ``[batch]``; masked rows contribute neither loss nor gradient.

    Returns:
      The divergence of each example, in nats, ``[batch]``.

    Raises:
      ValueError: for label sets, other shapes, or a missing view.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> book = bind("[w=2] age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> columns = jnp.array([[70.0], [50.0]])
      >>> loss = posterior_kl(jnp.zeros((2, 2)), columns, {}, rules=book)
      >>> [f"{x:.3f}" for x in loss]
      ['0.328', '0.000']
    """
    _inputs.check_exclusive(rules, "posterior_kl")
    logits, columns, views = _inputs.prepared(rules, student_logits, columns, views, where)
    taught = project(rules, columns, logits, strengths=strengths, views=views)
    taught = jax.lax.stop_gradient(taught)
    return soft_targets(logits, taught, temperature=temperature, where=where)


@checked
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
    sample_weight: str | None = None,
    divide_by: DivideBy = "weights",
) -> Term:
    """A term that distils the student's rule-corrected predictions into the student.

    The predictions are corrected in each step, from the current student; see ``posterior_kl``.
    Combine it with a term for the labels: ``pi = imitation(...)``, then ``teach("rules", pi,
    book)`` and ``term("labels", remainder(pi), cross_entropy)``.

    With ``learn``, the strengths of the rules marked ``[learn]`` are parameters of the term: its
    params ``{"strengths": [rules]}`` start at 0 and are added to the book's own. They are trained
    to make the labels likely under the corrected distribution: the cross-entropy between the two is
    added to the loss. The student's gradient comes from the imitation alone, that of the strengths
    from the labels alone. ``weight`` multiplies both, so the strengths are not trained while it is
    0. Labels that hard rules forbid are left out of the cross-entropy. After training,
    ``learned(book, params)`` puts the strengths into the book.

    Args:
      name: The term's name.
      weight: A number, a traced value, or a schedule such as ``imitation``.
      book: Rules over exclusive classes.
      learn: Whether to train the strengths of rules marked ``[learn]``.
      strengths: Log-odds that replace the book's own, without ``learn``: ``[rules]``, or a
        schedule ``step -> [rules]``.
      temperature: Softens both distributions, as in ``soft_targets``; a number or a schedule.
      labelled: With ``learn``, the name of the batch's boolean column that marks the rows with a
        label; None if all rows have one.
      where: Rows that count, as in ``term``.
      reads: Where the arguments are read from, as in ``term``: ``{"columns": "inputs"}`` if the
        model's inputs are the encoded columns, which are otherwise the batch's ``columns``. Also
        for ``views``, ``student_logits`` and, with ``learn``, ``labels``.
      sample_weight: A column of weights of the rows, as in ``term``; not those of rules.
      divide_by: With ``sample_weight``, what the sum of rows is divided by, as in ``term``.

    Returns:
      A term for ``Objective``, over exclusive classes.

    Raises:
      ValueError: for label sets, for strengths of another shape, for a temperature that is not
        positive, or for ``learn`` without a rule marked ``[learn]`` or together with ``strengths``.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> book = bind("[w=2] age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> teach("rules", 0.5, book, reads={"columns": "inputs"}).name
      'rules'
    """
    _inputs.check_exclusive(book, "teach")
    if not callable(strengths) and strengths is not None:
        _checks.shape((len(book),), strengths=strengths)
        _checks.finite(strengths=strengths)
    if not callable(temperature):
        _checks.positive(temperature=temperature)
    options: dict[str, Any] = dict(rules=book, strengths=strengths, temperature=temperature)
    weights: dict[str, Any] = dict(sample_weight=sample_weight, divide_by=divide_by)
    if not learn:
        return term(name, weight, posterior_kl, where=where, reads=reads, **options, **weights)
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
        **weights,
    )


@checked
def learned(book: Book, params: Mapping[str, Any]) -> Book:
    """The book with the strengths that a term made by ``teach(..., learn=True)`` has learned.

    Args:
      book: The term's book.
      params: The term's parameters, ``train_state.term_params[name]``: ``{"strengths": [rules]}``.

    Returns:
      A book in which rules marked ``[learn]`` have their learned strength, ``[w=…]``, so that it is
      printed and saved with them. If the parameters are traced, only the book's arrays change, not
      the text of its rules.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> book = bind("[learn] age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
      >>> print(learned(book, {"strengths": jnp.array([1.5])}).rules[0])
      [w=1.5] age > 60 => sick
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


@checked
def imitation(
    alpha: float = 0.95, *, steps_per_epoch: float, ceiling: float = 1.0, first: int = 1
) -> Imitation:
    r"""A schedule for the weight of the rule teacher, :math:`\min(\pi_0, 1 - \alpha^t)`.

    The labels get the remaining weight, ``remainder`` of the schedule, so that an untrained student
    learns from labels first. The defaults are those of Hu et al.'s code: ``t`` is measured in
    epochs, with fractions, the first batch counts as batch 1, and there is no ceiling (``get_pi``
    and ``pi_params=[0.95, 0]`` in ``logicnn_sentiment.py`` of ``ZhitingHu/logicnn``; their second
    number is 1 − ceiling). The paper's equation has a ceiling below 1, and counts from iteration 0:
    ``imitation(alpha, steps_per_epoch=n, ceiling=0.9, first=0)``.

    Args:
      alpha: How slowly the weight rises, in [0, 1]: with 0 it is at the ceiling from the start,
        with 1 it stays at 0.
      steps_per_epoch: Steps in one unit of ``t``; 1 if ``t`` counts steps.
      ceiling: The largest weight :math:`\pi_0`, in [0, 1].
      first: The number of the first step.

    Returns:
      A function ``step -> weight``; equal arguments give equal functions.

    Raises:
      ValueError: for ``alpha`` or ``ceiling`` outside [0, 1], or ``steps_per_epoch`` <= 0.

    References:
      Hu et al., `Harnessing Deep Neural Networks with Logic Rules
      <https://arxiv.org/abs/1603.06318>`_, 2016.

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


@checked
def remainder(schedule: Callable[[Any], Any]) -> Remainder:
    """The schedule ``step -> 1 - schedule(step)``, for a term with the remaining weight.

    Args:
      schedule: A function ``step -> weight``, such as ``imitation``.

    Returns:
      A function ``step -> weight``; equal schedules give equal functions.

    Example:
      >>> remainder(lambda step: 0.25)(0)
      0.75
    """
    return Remainder(schedule)


@dataclasses.dataclass(frozen=True)
class _Start:
    rules: int

    def __call__(self, key: Array) -> tuple[Params, State]:
        return {"strengths": jnp.zeros(self.rules)}, {}


@dataclasses.dataclass(frozen=True)
class _Learned:
    """``posterior_kl`` for the student, plus the cross-entropy with labels for the strengths."""

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
    """The book's strengths, plus the parameters of rules marked ``[learn]``, ``[rules]``."""
    return jnp.where(book.learn, book.strengths + params["strengths"], book.strengths)

r"""How good predictions are, and how close to a teacher's, in one pass over the data.

What is measured depends on what the outputs of a model mean, ``Model.outputs``. Every metric but
those of ranking is a sum divided by a count. :func:`sums` computes the sums of a batch on the
device; they are added in double precision on the host, so that neither the batch size nor the
padding of the last batch changes a result. With a column ``weights``, every mean is weighted;
``count``, ``errors`` and what is called ``count`` elsewhere still count rows.

Classes (``"softmax"``), against ``labels``:

- ``accuracy``, ``errors``, ``count``: the prediction is the class of the largest logit, the first
  of ties. A row that is not a distribution (NaN, ``+inf``, or ``-inf`` everywhere) is an error.
- ``nll``: mean of :math:`-\log q_y` in nats; ``inf`` where the model forbids a label, NaN where a
  row is not a distribution.
- ``ece``: expected calibration error, :math:`\sum_m \frac{n_m}{n} |acc_m - conf_m|` over bins of
  equal width of the largest probability, each closed on the right, :math:`((m-1)/M, m/M]`. Guo et
  al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017,
  section 2. NaN where a row is not a distribution.
- ``f1_macro``: mean of the classes' F1, :math:`2 tp / (2 tp + fp + fn)`, over those classes that
  occur among the labels or the predictions.
- ``auc``, ``average_precision``: areas under the ROC curve and under the precision-recall curve
  (without interpolation) of each class against the rest, averaged over the classes for which they
  are defined: those with a positive row and, for ``auc``, a negative one. NaN where there is none,
  or where a row is not a distribution.
- ``per_class``: ``{"class", "count", "errors"}`` for each class of the labels, with its ``auc`` and
  ``average_precision``.

Labels that do not exclude each other (``"multi_label"``), against ``labels`` of 0 and 1,
``[n, ..., labels]``; a label is predicted where its logit is above 0, and counts where the column
``known`` (``[n, ..., labels]``, if there is one) is True:

- ``subset_accuracy``: share of rows with every label right; ``hamming_loss``: share of labels that
  are wrong; ``nll``: mean over rows of the sum over labels.
- ``f1_micro`` of all labels together, ``f1_macro`` the mean over labels, 0 for a label that neither
  occurs nor is predicted.
- ``auc``, ``average_precision``: as above, of each label.
- ``per_label``: ``{"label", "count", "f1", "auc", "average_precision"}``.

Numbers (``"regression"``), against ``targets``, each metric per output and averaged over outputs:

- ``mae``, ``rmse``; ``r2``, :math:`1 - \sum (y - s)^2 / \sum (y - \bar y)^2`, NaN for targets that
  do not vary.
- Where the model predicts variances, as its feature ``"variance"`` or ``"log_variance"`` of the
  shape of its logits: ``mean_squared_z``, of errors in predicted standard deviations, is 1 for
  variances of the right size, and ``coverage_90``, the share of targets within 1.645 predicted
  standard deviations, is 0.9 for errors that are normal too; ``nll`` is the negative
  log-likelihood of normal distributions, summed over outputs.
- ``per_output``: ``{"output", "mae", "rmse", "r2"}``.

Against a teacher:

- of classes: ``agreement``, the share of rows for which both predict the same class;
  ``top_k_overlap``, the mean share of the teacher's k most likely classes that are among the
  student's k most likely, in any order; of ties, the first; ``kl_to_teacher``, the mean forward KL,
  teacher to student, at temperature 1;
- of labels: ``agreement``, the share of labels; ``kl_to_teacher``, summed over labels;
- of numbers and vectors: ``mae_to_teacher``, ``rmse_to_teacher``, over all outputs together; of
  vectors (``"embedding"``) also ``cosine_to_teacher``, the mean cosine similarity, 0
  for a vector of length 0.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from distill_jax import _batches, _checks
from distill_jax._arguments import checked
from distill_jax.data import check, padded_batches
from distill_jax.data.batching import columns_of, pad
from distill_jax.evaluation import _ranking, _results, _sums
from distill_jax.teachers import Teacher
from distill_jax.training.step._compiled import compiled
from distill_jax.types import Batch, Model, OutputKind, Outputs, Params, State

_COLUMNS: dict[OutputKind, tuple[str, ...]] = {
    "softmax": ("labels",),
    "multi_label": ("labels", "known"),
    "regression": ("targets",),
    "embedding": (),
}
"""What a model is measured against. All have inputs, a mask, weights and a teacher's logits."""

UNROLLED = 8
"""Batches of an evaluation inside another program that run without a loop."""

MOST_RANKED = 2**24
"""Scores of a data set (rows times outputs times models) that are ranked without being asked."""


@checked
def evaluate(
    model: Model,
    params: Params,
    state: State,
    data: Batch,
    *,
    teacher: Teacher | None = None,
    batch_size: int = 512,
    top_k: int = 5,
    bins: int = 15,
    rank: bool | None = None,
) -> dict[str, Any]:
    """All metrics of one model on one data set.

    Args:
      model: Runs in evaluation mode; compiled once per model object. The programs of the last 32
        models are kept.
      params: Its parameters.
      state: Its state.
      data: ``inputs`` (``[n, ...]``, or a tree of such arrays); what the model is compared with,
        without which those metrics are omitted: ``labels`` (``[n, ...]``, integers), for a
        multi-label model 0 or 1 and ``[n, ..., labels]``, for a regression ``targets``
        (``[n, ..., outputs]``, floats; for one output also ``[n, ...]``); ``where`` (``[n]`` or the
        shape of the rows), False for rows that do not count; ``weights`` (the same shapes, >= 0),
        of the rows in every mean; ``teacher_logits`` (``[n, ..., classes]``), used if no teacher is
        given; ``teacher_inputs``, if the teacher has inputs of its own.
      teacher: Compared with the model. Without one, and without ``teacher_logits``, the metrics
        of the teacher are omitted.
      batch_size: Rows per batch; changes memory and speed only.
      top_k: Classes in ``top_k_overlap``, at most all of them; the number used is reported.
      bins: Bins of the calibration error.
      rank: Whether to compute ``auc`` and ``average_precision``, for which all scores are collected
        and sorted on the host. None does so for up to 16 million scores; beyond, both are None.

    Returns:
      Plain Python numbers and lists, named in the module's docstring: ``count``, with weights
      ``weight`` (their sum), and the metrics of the model's kind of outputs.

      Inside another program (``jit``, ``vmap``, a trial of ``training.sweep``) scalar arrays in
      float32, without ``auc`` and ``average_precision``, which are ranked on the host, and in place
      of the list ``per_class`` its columns, ``[classes]``: ``"per_class/count"``,
      ``"per_class/errors"``. Values that are traced are not checked.

    Raises:
      TypeError: if labels are not integers, targets not floats, or ``where`` is not boolean.
      ValueError: if the data are invalid (see ``distill_jax.data.check``), if no row counts, if
        the teacher has another kind of outputs or order of classes, if weights are negative, if an
        option is below 1, if a regression model gets ``labels`` in place of ``targets``, or if
        ``rank`` is True inside another program.

    Example:
      >>> from distill_jax.models import logistic_regression
      >>> model = logistic_regression(2)
      >>> params, state = model.init(jax.random.key(0), jnp.ones((1, 1)))
      >>> params = {"kernel": jnp.array([[1.0]]), "bias": jnp.array([0.0])}
      >>> data = {"inputs": jnp.array([[-1.0], [2.0], [3.0]]), "labels": jnp.array([0, 1, 0])}
      >>> found = evaluate(model, params, state, data)
      >>> found["errors"], round(found["accuracy"], 3)
      (1, 0.667)
    """
    program = functools.partial(_batch_sums, model)
    if _is_traced((params, state, data, teacher)):
        with _checks.variables_of(model, params, state, data.get("inputs")):
            return _traced(model, params, state, data, teacher, batch_size, top_k, bins, rank)
    with _checks.variables_of(model, params, state, data.get("inputs")):
        found = _totals(program, model, params, state, data, teacher, batch_size, top_k, bins, rank)
    return _results.as_numbers(found, model, "weights" in data)


@checked
def evaluate_many(
    model: Model,
    params: Params,
    state: State,
    data: Batch,
    *,
    teacher: Teacher | None = None,
    stacked_teacher: bool = False,
    batch_size: int = 512,
    top_k: int = 5,
    bins: int = 15,
    rank: bool | None = None,
) -> list[dict[str, Any]]:
    """The metrics of several models of one architecture in one pass, such as the seeds of a sweep.

    Args:
      model: As in :func:`evaluate`.
      params: Parameters stacked along a leading axis, ``[models, ...]``.
      state: State stacked likewise.
      data: As in :func:`evaluate`, the same for all.
      teacher: As in :func:`evaluate`.
      stacked_teacher: Whether the teacher's variables are stacked likewise: one teacher per model.
      batch_size: As in :func:`evaluate`.
      top_k: As in :func:`evaluate`.
      bins: As in :func:`evaluate`.
      rank: As in :func:`evaluate`.

    Returns:
      A list with one result of :func:`evaluate` per model.

    Raises:
      ValueError: if params and state are not stacked along one axis; else as in :func:`evaluate`.

    Example:
      >>> from distill_jax.models import logistic_regression
      >>> model = logistic_regression(2)
      >>> data = {"inputs": jnp.array([[-1.0], [2.0]]), "labels": jnp.array([0, 1])}
      >>> params = {"kernel": jnp.array([[[1.0]], [[-1.0]]]), "bias": jnp.zeros((2, 1))}
      >>> [found["accuracy"] for found in evaluate_many(model, params, {}, data)]
      [1.0, 0.0]
    """
    lengths = {np.shape(x)[:1] for x in jax.tree.leaves((params, state))}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(
            "params and state must be stacked along one leading axis, got leading sizes "
            f"{sorted(lengths)}"
        )
    program = functools.partial(_stacked_sums, stacked_teacher, model)
    ((many,),) = lengths
    with _checks.variables_of(model, params, state, data.get("inputs"), axes=1):
        found = _totals(
            program, model, params, state, data, teacher, batch_size, top_k, bins, rank, models=many
        )
    return [_results.as_numbers(found.of(i), model, "weights" in data) for i in range(many)]


@checked
def sums(
    outputs: Outputs,
    batch: Batch,
    teacher_logits: Float[Array, "*batch classes"] | None = None,
    *,
    kind: OutputKind = "softmax",
    top_k: int = 5,
    bins: int = 15,
) -> dict[str, Array]:
    """Sums over the rows of a batch that count; pure, for use under ``jit`` and ``vmap``.

    Args:
      outputs: Of the model, with logits ``[batch, ..., classes]``.
      batch: Its columns ``labels`` (``[batch, ...]``, of a multi-label model
        ``[batch, ..., labels]``), ``known``, ``targets``, ``where`` and ``weights`` are read if it
        has them, as in :func:`evaluate`.
      teacher_logits: ``[batch, ..., classes]``.
      kind: What the logits mean, an :data:`~distill_jax.types.OutputKind`.
      top_k: Classes in the overlap, at most all.
      bins: Bins of the calibration error.

    Returns:
      A dictionary of arrays, scalars unless a shape is given. All are weighted, and float32 or
      better, but for counts of rows, which are int32: ``count``, ``errors``, ``class_count``,
      ``class_errors``, ``label_count``. Always ``count`` and ``weight``. Then,

      - of classes, with labels: ``errors``, ``correct``, ``nll``, ``bin_correct`` and
        ``bin_confidence`` (``[bins]``), ``class_count``, ``class_errors``, ``class_weight``,
        ``class_correct`` and ``class_predicted`` (``[classes]``); with a teacher ``agree``,
        ``overlap`` (``[k]``: how often the teacher's class of that rank is among the student's top
        k) and ``kl``;
      - of labels: ``exact``, ``nll``, and ``label_count``, ``label_weight``, ``label_true``,
        ``label_predicted``, ``label_hits``, ``label_correct`` (``[labels]``); with a teacher
        ``agree`` and ``kl``;
      - of numbers, with targets: ``absolute`` and ``squared`` (``[outputs]``), with predicted
        variances ``z_squared``, ``inside`` (``[outputs]``) and ``nll``; of numbers and vectors with
        a teacher ``absolute_to_teacher``, ``squared_to_teacher`` and, of vectors, ``cosine``.
    """
    bins, top_k = _checks.count("bins", bins), _checks.count("top_k", top_k)
    logits = outputs.logits
    where, weights = _sums.rows_that_count(batch, logits.shape[:-1])
    found = {"count": where.sum(dtype=jnp.int32), "weight": weights.sum()}
    if kind == "softmax" and "labels" in batch:
        found |= _sums.class_sums(outputs, batch, where, weights, bins)
    if kind == "multi_label" and "labels" in batch:
        found |= _sums.answer_sums(outputs, batch, where, weights)
    if kind == "regression" and "targets" in batch:
        found |= _sums.error_sums(outputs, batch, where, weights)
    if teacher_logits is not None:
        _checks.same_shape(student_logits=logits, teacher_logits=teacher_logits)
        found |= _sums.teacher_sums(logits, teacher_logits, where, weights, kind, top_k)
    return found


@compiled(4)
def _batch_sums(
    model: Model,
    top_k: int,
    bins: int,
    rank: bool,
    params: Params,
    state: State,
    batch: Batch,
    teacher: Teacher | None,
) -> tuple[dict[str, Array], Array | None]:
    """The sums of a batch, and its scores if rows are to be ranked."""
    outputs = model.predict(params, state, batch["inputs"])
    taught = (
        batch.get("teacher_logits")
        if teacher is None
        else teacher(batch.get("teacher_inputs", batch["inputs"])).logits
    )
    found = sums(outputs, batch, taught, kind=model.outputs, top_k=top_k, bins=bins)
    return found, _sums.scores(outputs, model.outputs) if rank else None


@compiled(5)
def _stacked_sums(
    stacked_teacher: bool,
    model: Model,
    top_k: int,
    bins: int,
    rank: bool,
    params: Params,
    state: State,
    batch: Batch,
    teacher: Teacher | None,
) -> tuple[dict[str, Array], Array | None]:
    def one(params: Params, state: State, teacher: Teacher | None) -> Any:
        return _batch_sums(model, top_k, bins, rank, params, state, batch, teacher)

    return jax.vmap(one, in_axes=(0, 0, 0 if stacked_teacher else None))(params, state, teacher)


def _is_traced(tree: Any) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def _traced(
    model: Model,
    params: Params,
    state: State,
    data: Mapping[str, Any],
    teacher: Teacher | None,
    batch_size: int,
    top_k: int,
    bins: int,
    rank: bool | None,
) -> dict[str, Array]:
    """The metrics inside another program, as arrays by one name each."""
    batch_size = _checks.count("batch_size", batch_size)
    if rank not in (None, False):
        raise ValueError(
            f"rank must be None or False inside jit, vmap or a sweep's trial, got {rank!r}: scores "
            "are ranked on the host"
        )
    data, _ = _columns(model, data, teacher)
    n = _batches.rows(data)
    batch_size = min(batch_size, n)
    number = -(-n // batch_size)
    whole = pad(jax.tree.map(jnp.asarray, data), number * batch_size)
    batches = jax.tree.map(lambda x: x.reshape(number, batch_size, *x.shape[1:]), whole)

    def step(_: None, batch: Batch) -> tuple[None, dict[str, Array]]:
        return None, _batch_sums(model, top_k, bins, False, params, state, batch, teacher)[0]

    # Convolutions are slow in a scan on a CPU, and a few batches are no long program.
    _, found = jax.lax.scan(step, None, batches, unroll=min(number, UNROLLED))
    totals = {name: x.sum(0) for name, x in found.items()}
    spread = _spread(data, totals["squared"].shape[-1], jnp) if "squared" in totals else None
    values = _results.figures(_results.Found(totals, None, spread), "weights" in data, jnp)
    return _results.flat(values)


def _totals(
    program: Any,
    model: Model,
    params: Params,
    state: State,
    data: Mapping[str, Any],
    teacher: Teacher | None,
    batch_size: int,
    top_k: int,
    bins: int,
    rank: bool | None,
    models: int | None = None,
) -> _results.Found:
    """The sums over all batches, in double precision, and what needs all rows at once."""
    batch_size = _checks.count("batch_size", batch_size)
    top_k, bins = _checks.count("top_k", top_k), _checks.count("bins", bins)
    if rank not in (None, True, False):
        raise TypeError(f"rank must be True, False or None, got {rank!r}")
    data, missing = _columns(model, data, teacher)
    n = _batches.rows(data)
    batch_size = min(batch_size, n)

    def run(batch: Batch, rank: bool) -> Any:
        return program(top_k, bins, rank, params, state, batch, teacher)

    ranks, do_rank = "labels" in data, False
    if ranks:
        first = next(iter(padded_batches(data, batch_size)))
        # The same trace as below, unless there is too much to rank.
        scores = jax.eval_shape(functools.partial(run, rank=True), first)[1]
        _check_labels(model.outputs, data, scores.shape[-1])
        do_rank = scores.size // batch_size * n <= MOST_RANKED if rank is None else rank
    found = [run(batch, rank=do_rank) for batch in padded_batches(data, batch_size)]
    # Fetched together at the end, so that the device never waits for the host.
    found = jax.device_get(found)
    names = found[0][0]
    totals: dict[str, Any] = {
        name: np.sum([x[name] for x, _ in found], axis=0, dtype=np.float64) for name in names
    }
    if not np.all(totals["count"] > 0):
        raise ValueError("data must have a row that counts, got where=False in all rows")
    if not np.all(totals["weight"] > 0):
        raise ValueError("weights must not all be 0 in the rows that count")
    curves = spread = None
    if do_rank:
        scores = np.concatenate([x for _, x in found], axis=0 if models is None else 1)
        each = scores[None, :n] if models is None else scores[:, :n]
        curves = np.stack([_curves(model.outputs, x, data) for x in each])
        curves = curves[0] if models is None else curves
    if "squared" in totals:
        spread = _spread(data, totals["squared"].shape[-1])
    return _results.Found(totals, curves, spread)


def _columns(
    model: Model, data: Mapping[str, Any], teacher: Teacher | None
) -> tuple[dict[str, Any], list[str]]:
    """The columns that are read, checked; and those in which NaN stands for a missing value."""
    if "inputs" not in data:
        raise ValueError(f"data must have a column inputs, got {list(data)}")
    against = _COLUMNS[model.outputs]
    if model.outputs == "regression" and "labels" in data and "targets" not in data:
        raise ValueError(
            "the model has outputs='regression', which are compared with a column 'targets' of "
            f"floats, got {list(data)}: rename the column, or make the model with "
            "outputs='softmax' if it predicts classes"
        )
    if teacher is not None:
        _checks.same_outputs(model.outputs, teacher.outputs, "teacher")
        _checks.class_order(model.classes, teacher.classes, "teacher")
    wanted = ("inputs", "teacher_inputs", *against, "where", "weights", "teacher_logits")
    data = columns_of({name: data[name] for name in wanted if name in data})
    if teacher is not None:
        data.pop("teacher_logits", None)
    missing = ["inputs"] if model.missing else []
    if teacher is not None:  # it reads one of the two columns
        read = "teacher_inputs" if "teacher_inputs" in data else "inputs"
        missing = [name for name in missing if name != read or teacher.missing]
        missing += [read] if teacher.missing and read == "teacher_inputs" else []
    # Labels are looked at once it is known how many outputs there are.
    values = [name for name in data if name != "labels"]
    check(data, values=values, missing=missing, outputs=model.outputs)
    if "known" in data:
        _checks.boolean(known=data["known"])
    if "weights" in data and not _is_traced((data["weights"], data.get("where"))):
        weights = np.asarray(data["weights"])
        counted = np.asarray(data.get("where", np.ones(weights.shape[:1], bool)))
        counted = counted.reshape(len(weights), -1).any(axis=1)
        if weights.dtype == bool or not (weights[counted] >= 0).all():
            raise ValueError(
                "weights must be numbers >= 0, one per row, got "
                f"{weights.dtype} from {weights[counted].min()} to {weights[counted].max()}"
            )
    return data, missing


def _check_labels(kind: OutputKind, data: Mapping[str, Any], outputs: int) -> None:
    if kind == "softmax":
        check(data, values=("labels",), num_classes=outputs)
        return
    labels = np.asarray(data["labels"])
    _checks.fits_device(labels=labels)
    _checks.labels_below(2, labels=labels[_weights(data, labels.shape) > 0])


def _weights(data: Mapping[str, Any], shape: tuple[int, ...], xp: Any = np) -> Any:
    """The weight of each row, or of each label of each row, 0 where it does not count."""
    found = xp.ones(shape)
    for name in ("where", "weights", "known"):
        if name in data:
            x = xp.asarray(data[name], found.dtype)
            factor = x.reshape(x.shape + (1,) * (len(shape) - x.ndim))
            found = xp.where(factor > 0, found * factor, 0.0)
    return found


def _curves(kind: OutputKind, scores: np.ndarray, data: Mapping[str, Any]) -> np.ndarray:
    """The area under the ROC curve and the average precision of each output, ``[outputs, 2]``."""
    labels, outputs = np.asarray(data["labels"]), scores.shape[-1]
    weights = _weights(data, scores.shape if kind == "multi_label" else scores.shape[:-1])
    areas = []
    for k in range(outputs):
        positive = labels[..., k] == 1 if kind == "multi_label" else labels == k
        own = weights[..., k] if kind == "multi_label" else weights
        rows = own > 0
        arrays = scores[..., k][rows], positive[rows], own[rows]
        areas.append([_ranking.auc(*arrays), _ranking.average_precision(*arrays)])
    return np.asarray(areas)


def _spread(data: Mapping[str, Any], outputs: int, xp: Any = np) -> Any:
    """Of each output's targets, the weighted sum of squared distances from their mean.

    On the host in double precision: a sum of squares minus a square has no digits left where the
    mean is large.
    """
    targets = xp.asarray(data["targets"])
    targets = targets.astype(np.float64 if xp is np else _checks.wide_dtype(targets))
    # A single output may have no axis of its own.
    shape = targets.shape if outputs == 1 else targets.shape[:-1]
    weights = _weights(data, shape, xp).reshape(-1, 1)
    counted = weights > 0
    targets = xp.where(counted, targets.reshape(-1, outputs), 0.0)
    mean = (weights * targets).sum(0, keepdims=True) / weights.sum()
    found = xp.where(counted, weights * (targets - mean) ** 2, 0.0).sum(0)
    low, high = (xp.where(counted, targets, x) for x in (xp.inf, -xp.inf))
    return xp.where(low.min(0) < high.max(0), found, 0.0)  # the mean may be rounded

"""Numerical comparison of the losses with widely used formulas.

    python examples/correctness.py --json correctness.json

Each row is a case that was found in a library in wide use: the true value in float64, the value of
distill_jax, and the value of the other formula. The other formulas are written out below in a few
lines each, following the documentation or the source of the named project; Optax is called itself,
and so is Keras where it is installed. Projects change: read a row as "this formula gives that", and
test your own the same way.

The verdict holds for the numbers in its row. Takes less than 20 seconds on a CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import log_softmax, softmax

from distill_jax import losses, report

forward_kl = jax.jit(losses.forward_kl)
soft_targets = jax.jit(losses.soft_targets)

Case = tuple[float, float, float]  # truth, ours, the other formula's
CASES: list[tuple[str, str, str, Callable[[], Case]]] = []


def case(what: str, measured: str, whose: str) -> Callable[[Callable[[], Case]], Callable]:
    def register(function: Callable[[], Case]) -> Callable[[], Case]:
        CASES.append((what, measured, whose, function))
        return function

    return register


def logits(seed: int, shape: tuple[int, ...] = (8, 10), scale: float = 2.0) -> tuple[Any, Any]:
    student, teacher = scale * np.random.default_rng(seed).standard_normal((2, *shape))
    return student.astype(np.float32), teacher.astype(np.float32)


def kl64(teacher: Any, student: Any) -> np.ndarray:
    """KL(teacher || student) per row, ``[...]``, in float64: the true value in most cases."""
    p, q = (log_softmax(np.asarray(x, np.float64), axis=-1) for x in (teacher, student))
    return (np.exp(p) * np.where(np.isneginf(p), 0.0, p - q)).sum(-1)


def same(x: np.ndarray, y: np.ndarray) -> float:
    """Cosine similarity of two gradients."""
    return float((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))


# Scale, reduction and direction.


def clipped_kl(y_true: Any, y_pred: Any) -> Any:
    # Meant for probabilities: both sides are clipped to [1e-7, 1] before the logarithm.
    y_true, y_pred = jnp.clip(y_true, 1e-7, 1.0), jnp.clip(y_pred, 1e-7, 1.0)
    return (y_true * jnp.log(y_true / y_pred)).sum(-1)


@case("logits given to a KL that wants probabilities", "mean KL at T=3", "Keras kl_divergence")
def raw_logits() -> Case:
    student, teacher = logits(0)
    ours = soft_targets(*map(jnp.asarray, (student, teacher)), temperature=3.0)
    other = clipped_kl(teacher / 3, student / 3)
    return 9 * kl64(teacher / 3, student / 3).mean(), float(ours.mean()), float(other.mean())


@case("the same, its gradient", "cosine with the true gradient", "Keras kl_divergence")
def raw_logits_gradient() -> Case:
    student, teacher = map(jnp.asarray, logits(0))
    truth = softmax(np.asarray(student, float) / 3, -1) - softmax(
        np.asarray(teacher, float) / 3, -1
    )
    ours = jax.grad(lambda s: soft_targets(s, teacher, temperature=3.0).sum())(student)
    other = jax.grad(lambda s: clipped_kl(teacher / 3, s / 3).sum())(student)
    return 1.0, same(np.asarray(ours), truth), same(np.asarray(other), truth)


if importlib.util.find_spec("keras"):

    @case("the same, called", "loss at T=3", "Keras LogitsDistillation, as installed")
    def keras_called() -> Case:
        os.environ.setdefault("KERAS_BACKEND", "jax")
        import keras

        student, teacher = logits(0)
        distillation = keras.distillation.LogitsDistillation(temperature=3.0)
        ours = soft_targets(*map(jnp.asarray, (student, teacher)), temperature=3.0)
        other = distillation.compute_loss(teacher, student)
        return 9 * kl64(teacher / 3, student / 3).mean(), float(ours.mean()), float(other)


@case("mean over batch times classes", "mean KL, 10 classes", "PyTorch KLDivLoss, its default")
def mean_of_everything() -> Case:
    student, teacher = logits(1)
    p, q = (log_softmax(x.astype(np.float64), -1) for x in (teacher, student))
    other = (np.exp(p) * (p - q)).mean()  # reduction="mean": over all elements
    ours = forward_kl(jnp.asarray(student), jnp.asarray(teacher)).mean()
    return kl64(teacher, student).mean(), float(ours), float(other)


@case("softened without T²", "size of the gradient at T=20, that at T=1 being 1", "textbook KL")
def temperature_squared() -> Case:
    student, teacher = logits(2, scale=0.1)

    def true_size(t: float) -> float:
        gap = softmax(student.astype(float) / t, -1) - softmax(teacher.astype(float) / t, -1)
        return float(np.linalg.norm(t * gap))

    def size(loss: Callable, t: float) -> float:
        s, teacher_logits = jnp.asarray(student), jnp.asarray(teacher)
        return float(jnp.linalg.norm(jax.grad(lambda s: loss(s, teacher_logits, t).sum())(s)))

    def ours(s: Any, teacher: Any, t: float) -> Any:
        return soft_targets(s, teacher, temperature=t)

    def other(s: Any, teacher: Any, t: float) -> Any:
        return forward_kl(s / t, teacher / t)

    truth = true_size(20.0) / true_size(1.0)
    return truth, *(size(loss, 20.0) / size(loss, 1.0) for loss in (ours, other))


@case("cross-entropy named KL", "loss where student equals teacher", "torchtune ForwardKLLoss")
def not_zero_at_the_optimum() -> Case:
    _, teacher = map(jnp.asarray, logits(3))
    other = -(jax.nn.softmax(teacher) * jax.nn.log_softmax(teacher)).sum(-1).mean()
    return 0.0, float(forward_kl(teacher, teacher).mean()), float(other)


def jsd64(student: Any, teacher: Any, beta: float) -> np.ndarray:
    """GKD's: ``beta KL(p || m) + (1 - beta) KL(q || m)``, ``m = beta p + (1 - beta) q``."""
    p, q = (softmax(np.asarray(x, np.float64), -1) for x in (teacher, student))
    m = beta * p + (1 - beta) * q
    return (beta * p * np.log(p / m) + (1 - beta) * q * np.log(q / m)).sum(-1)


@case("Jensen-Shannon that weights the other side", "GKD's JSD, 0.9", "DistiLLM js_distance")
def beta_of_the_other_side() -> Case:
    # Its lam weights the student; GKD's beta weights the teacher.
    student, teacher = logits(4)
    student /= 10  # a flat student and a sharp teacher
    ours = losses.jensen_shannon(jnp.asarray(student), jnp.asarray(teacher), beta=0.9).mean()
    other = jsd64(student, teacher, beta=1 - 0.9).mean()
    return jsd64(student, teacher, beta=0.9).mean(), float(ours), float(other)


@case("forward KL put in at beta 0", "jump from beta 0.0001 to 0", "TRL generalized_jsd_loss")
def jump_at_the_end() -> Case:
    # By definition the value goes to 0 with beta; the branch for beta == 0 returns the KL instead.
    # We have both, each continuous: jensen_shannon goes to 0, scaled_jensen_shannon to the KL.
    student, teacher = logits(5)
    near = jsd64(student, teacher, beta=1e-4).mean()
    pair = jnp.asarray(student), jnp.asarray(teacher)
    ours = [float(losses.jensen_shannon(*pair, beta=b).mean()) for b in (0.0, 1e-4)]
    return 0.0 - near, ours[0] - ours[1], float(kl64(teacher, student).mean() - near)


@case(
    "mean over all positions, padding too",
    "share of gradient² on padding",
    "reduction of Tunix's loss",
)
def padding_counts() -> Case:
    student, teacher = map(jnp.asarray, logits(6, (8, 10)))
    real = jnp.arange(8) < 1

    def share(loss: Callable) -> float:
        square = np.asarray(jax.grad(loss)(student)) ** 2
        return float(square[1:].sum() / square.sum())

    ours = share(lambda s: forward_kl(s, teacher, where=real).sum() / real.sum())
    return 0.0, ours, share(lambda s: forward_kl(s, teacher).mean())


@case(
    "sum without the mask, count with it",
    "mean KL over real tokens",
    "reduction of Liger's cosine loss",
)
def mask_in_half() -> Case:
    student, teacher = logits(7)
    real = np.arange(8) < 2
    pair = jnp.asarray(student), jnp.asarray(teacher)
    ours = forward_kl(*pair, where=jnp.asarray(real)).sum() / real.sum()
    other = forward_kl(*pair).sum() / real.sum()
    return kl64(teacher, student)[real].mean(), float(ours), float(other)


@case(
    "mean of means over microbatches of uneven length",
    "error of the gradient, relative",
    "EasyDeL, MaxText",
)
def mean_of_means() -> Case:
    student, teacher = map(jnp.asarray, logits(8))
    real = jnp.asarray([1, 1, 1, 1, 1, 0, 0, 0]) > 0  # four tokens, then one
    halves = slice(0, 4), slice(4, 8)

    def ours(s: Any) -> Any:  # sums over the count of the whole
        return sum(forward_kl(s[h], teacher[h], where=real[h]).sum() for h in halves) / 5

    def other(s: Any) -> Any:
        means = [forward_kl(s[h], teacher[h], where=real[h]).sum() / real[h].sum() for h in halves]
        return sum(means) / 2

    p, q = (softmax(np.asarray(x, np.float64), -1) for x in (teacher, student))
    truth = np.where(np.asarray(real)[:, None], (q - p) / 5, 0.0)

    def error(loss: Callable) -> float:
        return float(np.linalg.norm(jax.grad(loss)(student) - truth) / np.linalg.norm(truth))

    return 0.0, error(ours), error(other)


@case("[4, 10] against [4, 1, 10]", "losses for 4 examples", "Optax kl_divergence, called")
def quiet_broadcast() -> Case:
    student, teacher = map(jnp.asarray, logits(9, (4, 10)))
    with jax.numpy_rank_promotion("allow"):  # the default of JAX
        other = optax.losses.kl_divergence(
            jax.nn.log_softmax(student), jax.nn.softmax(teacher[:, None])
        )
    try:
        count = forward_kl(student, teacher[:, None]).size
    except (TypeError, ValueError):  # the message names the argument, and the caller fixes it
        count = forward_kl(student, teacher).size
    return 4, count, other.size


# Precision.


def nearly_equal(classes: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(10)
    teacher = (2 * rng.standard_normal(classes)).astype(np.float32)
    return teacher + (9e-4 * rng.standard_normal(classes)).astype(np.float32), teacher


@case("cross-entropy minus entropy", "KL near equality, 131,072 classes", "EasyDeL")
def difference_of_large_numbers() -> Case:
    student, teacher = nearly_equal(131_072)
    s, t = jnp.asarray(student), jnp.asarray(teacher)
    p, log_p, log_q = jax.nn.softmax(t), jax.nn.log_softmax(t), jax.nn.log_softmax(s)
    other = -(p * log_q).sum() + (p * log_p).sum()
    return float(kl64(teacher, student)), float(forward_kl(s, t)), float(other)


@case("p times log-ratio", "KL near equality, 131,072 classes", "Optax kl_divergence, called")
def log_ratio() -> Case:
    student, teacher = nearly_equal(131_072)
    s, t = jnp.asarray(student), jnp.asarray(teacher)
    other = optax.losses.kl_divergence(jax.nn.log_softmax(s), jax.nn.softmax(t))
    return float(kl64(teacher, student)), float(forward_kl(s, t)), float(other)


@case("bfloat16 kept inside the softmax", "KL of bfloat16 logits", "arithmetic in the input's type")
def half_precision() -> Case:
    rng = np.random.default_rng(11)
    teacher = jnp.asarray(2 * rng.standard_normal((8, 1000)), jnp.bfloat16)
    student = teacher + jnp.asarray(0.1 * rng.standard_normal((8, 1000)), jnp.bfloat16)
    p, log_p, log_q = (
        jax.nn.softmax(teacher),
        jax.nn.log_softmax(teacher),
        jax.nn.log_softmax(student),
    )
    other = (p * (log_p - log_q)).sum(-1).mean()
    truth = kl64(np.asarray(teacher, np.float64), np.asarray(student, np.float64)).mean()
    return truth, float(forward_kl(student, teacher).mean()), float(other)


@case(
    "a class that the teacher forbids, as log-target -inf",
    "KL",
    "Optax kl_divergence_with_log_targets, called",
)
def forbidden_class() -> Case:
    student, teacher = logits(12)
    teacher[:, 3] = -np.inf
    s, t = jnp.asarray(student), jnp.asarray(teacher)
    other = optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(s), jax.nn.log_softmax(t)
    )
    return kl64(teacher, student).mean(), float(forward_kl(s, t).mean()), float(other.mean())


@case("a target of 0", "gradient to the teacher, its sum", "Optax kl_divergence, called")
def gradient_at_zero() -> Case:
    # Probabilities sum to 1 for all logits, so the gradient with respect to the logits sums to 0.
    student, teacher = map(jnp.asarray, logits(13))
    teacher = teacher.at[:, 3].set(-jnp.inf)

    def other(t: Any) -> Any:
        return optax.losses.kl_divergence(jax.nn.log_softmax(student), jax.nn.softmax(t)).sum()

    ours = jax.grad(lambda t: forward_kl(student, t).sum())(teacher)
    return 0.0, float(ours.sum()), float(jax.grad(other)(teacher).sum())


@case("NaN in padding, left out by where", "size of the gradient", "Optax kl_divergence, called")
def masked_nan() -> Case:
    student, teacher = logits(14)
    real = np.arange(8) < 6
    p, q = (softmax(x.astype(np.float64), -1)[real] for x in (teacher, student))
    student[~real] = np.nan
    s, t = jnp.asarray(student), jnp.asarray(teacher)

    def other(s: Any) -> Any:
        rows = optax.losses.kl_divergence(jax.nn.log_softmax(s), jax.nn.softmax(t))
        return jnp.where(real, rows, 0.0).sum()

    ours = jax.grad(lambda s: forward_kl(s, t, where=jnp.asarray(real)).sum())(s)
    sizes = (float(jnp.linalg.norm(x)) for x in (ours, jax.grad(other)(s)))
    return float(np.linalg.norm(q - p)), *sizes


@case("log(softmax) at a logit gap of 200", "KL", "mdistiller DKD")
def logarithm_of_zero() -> Case:
    student, teacher = np.zeros(3, np.float32), np.zeros(3, np.float32)
    student[0], teacher[1] = 200.0, 200.0
    s, t = jnp.asarray(student), jnp.asarray(teacher)
    p, q = jax.nn.softmax(t), jax.nn.softmax(s)
    other = (p * (jnp.log(p) - jnp.log(q))).sum()
    return float(kl64(teacher, student)), float(forward_kl(s, t)), float(other)


# Formulas and vocabularies.


@case("top 2 classes, renormalised on both sides", "KL", "Tunix, MaxText top-k")
def renormalised_top_k() -> Case:
    teacher = np.array([4.0, 4.0, -4.0, -4.0], np.float32)
    student = np.array([0.0, 0.0, 9.0, 9.0], np.float32)  # all its mass is elsewhere
    other = kl64(teacher[:2], student[:2])
    ours = forward_kl(jnp.asarray(student), jnp.asarray(teacher))
    return float(kl64(teacher, student)), float(ours), float(other)


@case("a larger head, the smaller padded with 0", "KL", "Liger, heads of two sizes")
def padded_heads() -> Case:
    student, teacher = logits(15)
    extra = (0, 0), (0, 6)
    wide = np.pad(teacher, extra, constant_values=-30.0)  # its last six classes are unused
    other = kl64(wide, np.pad(student, extra))
    # A missing class has probability 0 on both sides.
    both = (jnp.asarray(np.pad(x, extra, constant_values=-np.inf)) for x in (student, teacher))
    return kl64(teacher, student).mean(), float(forward_kl(*both).mean()), float(other.mean())


@case("alpha-beta divergence on the axis", "alpha 0.5, beta 0", "ABKD, released code")
def alpha_beta_on_the_axis() -> Case:
    # The limit of the definition has 1 / alpha²; with 1 / alpha the function is discontinuous.
    student, teacher = logits(16)
    p, q = (softmax(x.astype(np.float64), -1) for x in (teacher, student))
    terms = np.sqrt(p) * 0.5 * np.log(p / q) - np.sqrt(p) + np.sqrt(q)
    ours = losses.alpha_beta(jnp.asarray(student), jnp.asarray(teacher), alpha=0.5, beta=0.0)
    return float(4 * terms.sum()), float(ours.sum()), float(2 * terms.sum())


def is_right(value: float, truth: float) -> bool:
    """Whether the relative error is at most 1e-5, or the absolute one 1e-6 if the truth is 0."""
    return math.isclose(value, truth, rel_tol=1e-5, abs_tol=1e-6 if truth == 0 else 0.0)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description="Losses against float64 and other formulas.")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to this file")
    args = parser.parse_args(argv)
    rows = []
    for what, measured, whose, function in CASES:
        truth, ours, other = map(float, function())
        row = {"case": what, "measured": measured, "truth": truth, "ours": ours, "other": other}
        verdict = [
            f"{n} {'right' if is_right(x, truth) else 'off'}" for n, x in list(row.items())[3:]
        ]
        rows.append({**row, "formula": whose, "verdict": ", ".join(verdict)})
    report.show(rows, title="Truth in float64, distill_jax, and another formula")
    if args.json:
        command = "python examples/correctness.py --json " + args.json
        print(f"wrote {report.save_json(args.json, report.result_file(__file__, rows, command))}")
    return rows


if __name__ == "__main__":
    main()

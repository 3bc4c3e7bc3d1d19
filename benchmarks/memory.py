"""What lowers the memory of a step, and its cost: rematerialisation, bfloat16, compact teachers.

    python benchmarks/memory.py            # about ten minutes on two CPU cores
    python benchmarks/memory.py --quick    # tiny

"gradient" rows: the temporary memory of one compiled gradient of a student, as reported by the
compiler (``memory_analysis``), for different ways of storing the forward pass: all of it (plain),
``jax.checkpoint`` around the whole with two policies, around each layer by hand where there are
layers, ``models.remat``, and the same in bfloat16. ``kept`` is what passes from the forward to the
backward pass before compilation, on any device. All gradients are first compared with the plain
one. ``limit`` is the forward pass alone.

"teacher" rows: the bytes of a teacher's arrays, for a trained MLP. ``kl`` is the mean divergence of
its soft targets from those of the float32 teacher on test rows, ``agrees`` the share of rows with
the same top class, and "scan" the temporary memory of a training loop with it.

Data: MNIST, or scikit-learn's digits if MNIST is not on disk.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import emit, first_calls, interleaved, times_faster
from flax import nnx

from distill_jax import data as data_
from distill_jax import models, report, teachers, training
from distill_jax.losses import cross_entropy, forward_kl, soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.types import Model

KEY = jax.random.key(0)
Calls = Mapping[str, Callable[[], Any]]


class Block(nnx.Module):
    """Attention and a GELU MLP, each behind a layer norm, with dropout."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        x = x + self.dropout(self.attention(self.norms[0](x)))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norms[1](x)))))


class Transformer(nnx.Module):
    """Blocks over the time axis, the mean over time, and a head."""

    def __init__(self, depth: int, width: int, by_hand: bool, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(width, rngs) for _ in range(depth)])
        self.head = nnx.Linear(width, 10, rngs=rngs)
        self.run = nnx.remat(Block.__call__) if by_hand else Block.__call__

    def __call__(self, x):
        for block in self.blocks:
            x = self.run(block, x)
        return self.head(x.mean(1))


def transformer(depth: int, width: int, by_hand: bool = False) -> Model:
    return models.from_nnx(lambda rngs: Transformer(depth, width, by_hand, rngs))


def students(quick: bool) -> dict[str, tuple[dict[str, Model], Any]]:
    """By name: a model, as it is and with each layer checkpointed by hand, and a batch."""
    width, depth, rows = (16, 4, 32) if quick else (512, 16, 2048)
    blocks, channels, time, sequences = (2, 16, 8, 4) if quick else (12, 128, 128, 8)
    images = (64, 32, 32, 3)
    found = {
        f"mlp {depth}x{width}, {rows} rows": (
            {"plain": models.mlp([width] * depth, 10, activation=jax.nn.gelu, dropout=0.1)},
            jax.random.normal(KEY, (rows, width)),
        ),
        f"transformer {blocks}x{channels}, {sequences}x{time}": (
            {
                "plain": transformer(blocks, channels),
                "by hand": transformer(blocks, channels, by_hand=True),
            },
            jax.random.normal(KEY, (sequences, time, channels)),
        ),
        f"resnet 20, {images[0]} images": (
            {"plain": models.resnet(20, 10)},
            jax.random.normal(KEY, images),
        ),
    }
    # Deep models are slow to compile at any size.
    return dict(list(found.items())[:1]) if quick else found


def gradient_rows(quick: bool, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for name, (given, inputs) in students(quick).items():
        plain = given["plain"]
        params, state = jax.jit(plain.init)(KEY, inputs)
        labels = jnp.arange(len(inputs)) % 10
        policies = jax.checkpoint_policies
        bfloat16 = models.cast(plain, jnp.bfloat16)
        forwards = {case: _forward(model, state) for case, model in given.items()}
        forwards["whole"] = jax.checkpoint(_forward(plain, state))
        forwards["whole dots"] = jax.checkpoint(
            _forward(plain, state), policy=policies.dots_saveable
        )
        forwards["remat"] = _forward(models.remat(plain), state)
        forwards["bfloat16"] = _forward(bfloat16, state)
        forwards["remat bfloat16"] = _forward(models.remat(bfloat16), state)

        programs, kept = {}, {}
        for case, forward in forwards.items():

            def loss(params, inputs, forward=forward, labels=labels):
                return cross_entropy(forward(params, inputs), labels).mean()

            programs[case] = jax.jit(jax.grad(loss)).lower(params, inputs).compile()
            residuals = jax.eval_shape(
                lambda p, x, f=loss: jax.tree.leaves(jax.vjp(f, p, x)[1]), params, inputs
            )
            kept[case] = _megabytes(residuals)
        limit = jax.jit(_forward(plain, state)).lower(params, inputs).compile()
        calls = {case: _call(program, params, inputs) for case, program in programs.items()}
        results, first = first_calls(calls)
        cosines = {case: _cosine(gradient, results["plain"]) for case, gradient in results.items()}
        for case, cosine in cosines.items():
            # Another program may round differently; a wrong gradient would be far off.
            least = 0.99 if "bfloat16" in case else 1.0 - 1e-5
            if cosine < least:
                raise AssertionError(f"{name}, {case}: the gradient differs, cosine {cosine}")
        timed = interleaved(calls, seconds=seconds, least=3)
        temporary = {case: _temporary(program) for case, program in programs.items()}
        for case in calls:
            emit(
                name=name,
                case=case,
                temp_megabytes=temporary[case],
                kept_megabytes=kept[case],
                milliseconds=round(1e3 * timed[case]["median"], 3),
                first_seconds=round(first[case], 3),
                cosine=cosines[case],
                inputs=inputs.shape,
                device=jax.devices()[0].device_kind,
                jax=jax.__version__,
            )
        for ours, peers in (
            ("remat", ("plain", "by hand", "whole", "whole dots")),
            ("bfloat16", ("plain",)),
            ("remat bfloat16", ("plain", "bfloat16")),
        ):
            peers = [peer for peer in peers if peer in calls]
            rows.append(
                {
                    "name": f"gradient of {name}: {ours}",
                    "ours": temporary[ours],
                    "unit": "MB",
                    "better": "lower",
                    "peers": {peer: temporary[peer] for peer in peers},
                    "limit": _temporary(limit),
                    "kept_megabytes": {case: kept[case] for case in (ours, *peers)},
                    "times_faster": {
                        peer: round(times_faster(timed, ours, peer), 3) for peer in peers
                    },
                    "cosine": cosines[ours],
                }
            )
    return rows


def _call(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(function(*arguments))


def _forward(model: Model, state: Any) -> Callable[[Any, Any], Any]:
    def forward(params, inputs):
        return model.apply(params, state, inputs, key=KEY, train=True)[0].logits

    return forward


def teacher_rows(quick: bool, seconds: float) -> list[dict[str, Any]]:
    parts, source = _digits(quick)
    sizes = [32] if quick else [1200, 1200]
    model = models.mlp(sizes, 10)
    objective = weighted_sum(term("labels", 1.0, cross_entropy))
    trained, _ = training.run(
        model,
        objective,
        optax.adam(1e-3),
        parts["train"],
        key=KEY,
        steps=20 if quick else 600,
        batch_size=32 if quick else 128,
    )
    wide = teachers.teacher(model, trained.params, trained.state)
    cases = {
        "float32": wide,
        "bfloat16": teachers.cast(wide),
        "int8": teachers.quantize(wide, smallest=64),
        "int8 bfloat16": teachers.quantize(teachers.cast(wide), smallest=64),
    }
    inputs, labels = (jnp.asarray(parts["test"][name]) for name in ("inputs", "labels"))
    predict = jax.jit(lambda teacher, inputs: teacher(inputs).logits)
    said = {case: predict(teacher, inputs) for case, teacher in cases.items()}
    student = models.mlp([32], 10)
    soft = weighted_sum(term("soft", 1.0, soft_targets, temperature=4.0))
    rows = []
    few, many = inputs[:8], inputs[:256]
    calls: dict[str, Callable[[], Any]] = {}
    for case, teacher in cases.items():
        for rows_name, some in (("8", few), ("256", many)):
            calls[f"{case} {rows_name}"] = _call(predict, teacher, some)
    first_calls(calls)
    timed = interleaved(calls, seconds=seconds, least=3)
    held = {case: _megabytes(teacher.params) for case, teacher in cases.items()}
    for case, teacher in cases.items():
        kl = {
            f"T={t:g}": float(forward_kl(said[case] / t, said["float32"] / t).mean())
            for t in (1.0, 4.0)
        }
        agrees = float((said[case].argmax(-1) == said["float32"].argmax(-1)).mean())
        accuracy = float((said[case].argmax(-1) == labels).mean())
        times = {f"{n} rows": round(1e3 * timed[f"{case} {n}"]["median"], 3) for n in ("8", "256")}

        def loop(teacher, data):
            return training.run(
                student,
                soft,
                optax.adam(1e-3),
                data,
                key=KEY,
                steps=8,
                batch_size=32,
                teachers={"teacher": teacher},
            )[0].params

        data = {"inputs": inputs[:512]}
        scan = _temporary(jax.jit(loop).lower(teacher, data).compile())
        emit(
            name=f"teacher on {source}",
            case=case,
            megabytes=held[case],
            scan_temp_megabytes=scan,
            kl=kl,
            agrees=agrees,
            accuracy=accuracy,
            milliseconds=times,
            sizes=sizes,
            device=jax.devices()[0].device_kind,
            jax=jax.__version__,
        )
        if case != "float32":
            rows.append(
                {
                    "name": f"teacher on {source}: {case}",
                    "ours": held[case],
                    "unit": "MB",
                    "better": "lower",
                    "peers": {"float32": held["float32"]},
                    "limit": held["float32"] / (2 if case == "bfloat16" else 4),
                    "scan_temp_megabytes": scan,
                    "kl": kl,
                    "agrees": agrees,
                    "accuracy": accuracy,
                    "times_faster": {
                        "float32": round(times_faster(timed, f"{case} 256", "float32 256"), 3),
                    },
                    "times_faster_8_rows": round(times_faster(timed, f"{case} 8", "float32 8"), 3),
                }
            )
    return rows


def _digits(quick: bool) -> tuple[dict[str, dict[str, np.ndarray]], str]:
    if not quick:
        try:
            return data_.mnist(), "MNIST"
        except FileNotFoundError:
            pass
    from sklearn.datasets import load_digits  # an extra

    digits: Any = load_digits(return_X_y=True)
    images, labels = digits
    inputs, labels = (images / 16.0).astype(np.float32), labels.astype(np.int32)
    return {
        "train": {"inputs": inputs[:1200], "labels": labels[:1200]},
        "test": {"inputs": inputs[1200:], "labels": labels[1200:]},
    }, "digits"


def _megabytes(tree: Any) -> float:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 1e6


def _temporary(program: Any) -> float:
    return program.memory_analysis().temp_size_in_bytes / 1e6


def _cosine(a: Any, b: Any) -> float:
    # Reduced on the host, so that it does not affect the measurement.
    x, y = (np.concatenate([np.ravel(v) for v in jax.tree.leaves(t)]).astype(float) for t in (a, b))
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny models")
    parser.add_argument("--out", type=pathlib.Path, help="result file")
    args = parser.parse_args(argv)
    here = pathlib.Path(__file__).parent / "results" / "memory.json"
    out = args.out or (None if args.quick else here)

    seconds = 0.01 if args.quick else 20.0
    rows = gradient_rows(args.quick, seconds) + teacher_rows(args.quick, seconds)
    report.show(
        [
            {"": row["name"], "MB": row["ours"], "before": before, "limit": row["limit"]}
            | {"times smaller": before / row["ours"], "times faster": times}
            for row in rows
            for before, times in [
                (next(iter(row["peers"].values())), next(iter(row["times_faster"].values())))
            ]
        ],
        title="memory, compared with the plain gradient or the float32 teacher",
    )
    command = " ".join(["python benchmarks/memory.py", *(sys.argv[1:] if argv is None else argv)])
    result = report.result_file(__file__, rows, command)
    if out is not None:
        report.save_json(out, result)
    return result


if __name__ == "__main__":
    main()

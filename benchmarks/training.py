"""Distilling an MLP: examples per second, compared with a PyTorch loop.

    python benchmarks/training.py            # about three minutes on two CPU cores
    python benchmarks/training.py --quick    # tiny, without torch.compile

Teacher 784-1200-1200-10, student 784-800-800-10, batches of 128 synthetic rows from memory, Adam,
0.9 x soft targets at T = 4 plus 0.1 x cross-entropy. "live" runs the teacher in every step,
"cached" reads its logits from a column. Each sample trains for the same number of steps, from the
same initial weights, on the same batches, including all host work. The first losses of all loops
are compared before anything is timed. ``limit`` is the speed of the step's matrix products alone.

The PyTorch loop keeps its tensors in memory, selects rows by index, and uses fused Adam; PyTorch is
installed by ``pip install 'distill_jax[bench]'``. Without it only JAX is measured.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import emit, first_calls, interleaved, times_faster

from distill_jax import data as data_
from distill_jax import report, teachers, training
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.models import mlp
from distill_jax.objectives import term, weighted_sum
from distill_jax.training.step import Recipe

try:
    import torch
except ImportError:  # an extra
    torch = None

T = 4.0
RATE = 1e-3


class Task:
    """The models, the data, and one initial state for all loops."""

    def __init__(self, features: int, wide: int, narrow: int, rows: int, batch: int, steps: int):
        self.batch_size, self.steps = batch, steps
        self.teacher_sizes = (features, wide, wide, 10)
        self.student_sizes = (features, narrow, narrow, 10)
        self.student = mlp([narrow, narrow], 10)
        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((rows, features), np.float32)
        model = mlp([wide, wide], 10)
        params, state = model.init(jax.random.key(1), inputs[:1])
        self.teacher = teachers.teacher(model, params, state)
        labels = rng.integers(0, 10, rows).astype(np.int32)
        self.live = {"inputs": inputs, "labels": labels}
        logits = teachers.precompute(self.teacher, inputs)
        self.cached = {**self.live, "teacher_logits": logits}
        self.objective = weighted_sum(
            term("teacher", 0.9, soft_targets, temperature=T), term("labels", 0.1, cross_entropy)
        )
        self.optimizer = optax.adam(RATE)
        self.key = jax.random.key(0)
        recipe = Recipe(self.student, self.optimizer)
        self.start = recipe.init(
            self.objective, self.live, {"teacher": self.teacher}, jax.random.key(2)
        )
        # The rows that run and fit take with this key (data.batches).
        order = jax.random.split(self.key)[1]
        self.index = np.asarray(data_.batch_indices(order, rows, batch, steps))


def jax_loops(task: Task, cached: bool) -> dict[str, Callable[[], np.ndarray]]:
    """Loops by name; each returns the loss of every step, ``[steps]``."""
    data = task.cached if cached else task.live
    taught = {} if cached else {"teacher": task.teacher}
    common: dict[str, Any] = {
        "key": task.key,
        "steps": task.steps,
        "batch_size": task.batch_size,
        "teachers": taught,
        "initial": task.start,
    }
    # On the device beforehand, as the tensors of the PyTorch loop are.
    device_data = {name: jnp.asarray(column) for name, column in data.items()}

    def run():
        arguments = task.student, task.objective, task.optimizer, device_data
        return np.asarray(training.run(*arguments, **common)[1]["loss"])

    def fit():
        arguments = task.student, task.objective, task.optimizer, data
        return training.fit(*arguments, **common, progress=False)[1]["loss"]

    @jax.jit
    def step(params, opt_state, batch, teacher):
        def value(params):
            s = task.student.predict(params, {}, batch["inputs"]).logits
            t = teacher(batch["inputs"]).logits if teacher else batch["teacher_logits"]
            kl = optax.losses.kl_divergence_with_log_targets(
                jax.nn.log_softmax(s / T), jax.nn.log_softmax(t / T)
            )
            hard = optax.losses.softmax_cross_entropy_with_integer_labels(s, batch["labels"])
            return 0.9 * T * T * kl.mean() + 0.1 * hard.mean()

        loss, gradient = jax.value_and_grad(value)(params)
        updates, opt_state = task.optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def plain():
        params = task.start.params
        opt_state, history = task.optimizer.init(params), []
        for rows in task.index:
            batch = {name: column[rows] for name, column in data.items()}
            params, opt_state, loss = step(params, opt_state, batch, taught.get("teacher"))
            history.append(loss)
        return np.asarray(jnp.stack(history))

    return {"run": run, "fit": fit, "jax loop": plain}


def torch_loops(task: Task, cached: bool, compiled: bool) -> dict[str, Callable[[], np.ndarray]]:
    if torch is None:
        return {}
    tensors = {n: torch.from_numpy(x.copy()) for n, x in task.cached.items()}
    labels = tensors["labels"].long()
    index = [torch.from_numpy(rows.astype(np.int64)) for rows in task.index]
    teacher = _torch_mlp(task.teacher_sizes, task.teacher.params).requires_grad_(False)
    functional = torch.nn.functional

    def loss_of(student, x, y, t):
        s = student(x)
        t = teacher(x) if t is None else t
        soft = functional.kl_div(
            (s / T).log_softmax(-1), (t / T).log_softmax(-1), reduction="batchmean", log_target=True
        )
        return 0.9 * T * T * soft + 0.1 * functional.cross_entropy(s, y)

    def loop(loss_function):
        def train():
            student = _torch_mlp(task.student_sizes, task.start.params)
            optimizer = torch.optim.Adam(student.parameters(), lr=RATE, fused=True)
            history = []
            for rows in index:
                t = tensors["teacher_logits"][rows] if cached else None
                loss = loss_function(student, tensors["inputs"][rows], labels[rows], t)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                history.append(loss.detach())
            return torch.stack(history).numpy()

        return train

    loops = {"torch eager": loop(loss_of)}
    if compiled:
        torch._dynamo.reset()
        loops["torch.compile"] = loop(torch.compile(loss_of, dynamic=False))
    return loops


def _torch_mlp(sizes: tuple[int, ...], params: Any) -> Any:
    layers: list[Any] = []
    sources = [params["hidden"][str(i)] for i in range(len(sizes) - 2)] + [params["head"]]
    for i, source in enumerate(sources):
        layer = torch.nn.Linear(sizes[i], sizes[i + 1])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.array(source["kernel"]).T.copy()))
            layer.bias.copy_(torch.from_numpy(np.array(source["bias"])))
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def products(task: Task, cached: bool) -> Callable[[], Any]:
    """Only the matrix products of all steps, one after another."""
    key = jax.random.key(0)
    kernels = {
        name: [0.01 * jax.random.normal(key, pair) for pair in zip(sizes[:-1], sizes[1:])]  # noqa: B905
        for name, sizes in (("student", task.student_sizes), ("teacher", task.teacher_sizes))
    }
    if cached:
        del kernels["teacher"]
    inputs = jnp.asarray(task.live["inputs"][: task.batch_size])

    @jax.jit
    def step(inputs, kernels):
        outs = []
        for name, stack in kernels.items():
            x, seen = inputs, []
            for kernel in stack:
                seen.append(x)
                x = x @ kernel
            if name == "student":
                for i in reversed(range(len(stack))):
                    outs.append(seen[i].T @ x)
                    x = x @ stack[i].T if i else x
            outs.append(x)
        return outs

    def all_steps():
        for _ in range(task.steps):
            jax.block_until_ready(step(inputs, kernels))

    return all_steps


def measure(task: Task, name: str, cached: bool, seconds: float, compiled: bool) -> list[dict]:
    loops = jax_loops(task, cached) | torch_loops(task, cached, compiled)
    cases: dict[str, Callable[[], Any]] = {**loops, "limit": products(task, cached)}
    results, first = first_calls(cases)
    # Rounding differences grow during training; the first losses must agree.
    for loop in loops:
        np.testing.assert_allclose(results[loop][:5], results["run"][:5], rtol=1e-3, err_msg=loop)
    timed = interleaved(cases, seconds=seconds, least=3)
    examples = task.steps * task.batch_size
    speed = {n: float(f"{examples / times['median']:.5g}") for n, times in timed.items()}
    for case, times in timed.items():
        emit(
            name=name,
            case=case,
            examples_per_second=speed[case],
            step_ms=round(1e3 * times["median"] / task.steps, 3),
            first_seconds=round(first[case], 3),
            rounds=len(times["samples"]),
            steps=task.steps,
            batch=task.batch_size,
            teacher=task.teacher_sizes,
            student=task.student_sizes,
            dtype="float32",
            device=jax.devices()[0].device_kind,
            jax=jax.__version__,
        )
    torches = [n for n in ("torch eager", "torch.compile") if n in speed]
    peers = {n: speed[n] for n in ("jax loop", *torches)}
    if torches:
        peers["torch fused adam"] = max(speed[n] for n in torches)
    rows = []
    for ours, row in (("run", name), ("fit", f"{name} fit")):
        ratios = {n: round(times_faster(timed, ours, n), 3) for n in ("jax loop", "run", *torches)}
        rows.append(
            {
                "name": row,
                "ours": speed[ours],
                "unit": "examples/s",
                "better": "higher",
                "peers": peers,
                "limit": speed["limit"],
                "times_faster": ratios,
            }
        )
    return rows


def _goals(rows: list[dict]) -> None:
    for row in rows:
        ratios = row["times_faster"]
        torches = [ratios[n] for n in ("torch eager", "torch.compile") if n in ratios]
        if torches:
            verdict = "met" if min(torches) > 1 else "NOT MET"
            print(f"goal {verdict}: {row['name']}, {min(torches):.2f} times the best PyTorch loop")
        if row["name"].endswith(" fit"):
            verdict = "met" if ratios["run"] >= 0.95 else "NOT MET"
            print(f"goal {verdict}: {row['name']}, {ratios['run']:.3f} of run; wanted 0.95 or more")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny models, no torch.compile")
    parser.add_argument("--steps", type=int, default=60, help="steps per sample")
    parser.add_argument("--out", type=pathlib.Path, help="result file")
    args = parser.parse_args(argv)
    here = pathlib.Path(__file__).parent / "results" / "training.json"
    out = args.out or (None if args.quick else here)
    warnings.filterwarnings("ignore", module="torch")

    if args.quick:
        task = Task(features=12, wide=16, narrow=8, rows=64, batch=16, steps=6)
    else:
        task = Task(features=784, wide=1200, narrow=800, rows=12_800, batch=128, steps=args.steps)
    rows = []
    for name, cached in (("mlp live", False), ("mlp cached", True)):
        seconds = 0.01 if args.quick else 45.0
        rows += measure(task, name, cached, seconds, compiled=not args.quick)
    report.show(
        [
            {"": row["name"], "ours": row["ours"], **row["peers"], "limit": row["limit"]}
            | {f"/ {peer}": times for peer, times in row["times_faster"].items()}
            for row in rows
        ],
        title="examples per second; times faster than",
    )
    _goals(rows)
    command = " ".join(["python benchmarks/training.py", *(sys.argv[1:] if argv is None else argv)])
    result = report.result_file(__file__, rows, command)
    if out is not None:
        report.save_json(out, result)
    return result


if __name__ == "__main__":
    main()

"""Many small students: a sweep, compared with sequential training and with PyTorch.

    python benchmarks/sweep.py            # about six minutes on two CPU cores
    python benchmarks/sweep.py --quick    # tiny

64 students 784-H-10 over 4 temperatures x 4 weights x 4 seeds, Adam, weight x soft targets plus the
rest x cross-entropy, in batches of 128 of 6,400 synthetic rows, with precomputed teacher logits.
All students see the same batches; each sample trains from the initial weights to the end. The first
losses of all students are compared between the methods before anything is timed.

- ours: ``training.sweep``, which chooses how to run blocks by itself, on one host device per core.
  Its first call, which compiles and measures, is reported separately.
- jax sequential: one compiled scan per student, in plain JAX and Optax.
- torch sequential: eager, fused Adam.
- torch.func: ``vmap`` of a whole step over stacked students, Adam included. torch.func fused: of
  the gradient alone, with PyTorch's own fused Adam in place on the stacked parameters.
- limit: the matrix products alone, in the faster of two ways, for a block of students together or
  for one student after another, on all devices.

For slow methods, a sample trains fewer students or steps; figures are per student and step.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

# Elementwise work runs on one core per device, so two cores need two devices.
_FLAG = "--xla_force_host_platform_device_count"
if __name__ == "__main__" and _FLAG not in os.environ.get("XLA_FLAGS", ""):
    _CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}={_CORES}".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from _timing import emit, first_calls, interleaved, times_faster  # noqa: E402
from jax.sharding import Mesh, PartitionSpec  # noqa: E402

from distill_jax import data as data_  # noqa: E402
from distill_jax import report, teachers, training  # noqa: E402
from distill_jax.losses import cross_entropy, soft_targets  # noqa: E402
from distill_jax.models import mlp  # noqa: E402
from distill_jax.objectives import term, weighted_sum  # noqa: E402

try:
    import torch
except ImportError:  # an extra
    torch = None

RATE = 1e-3
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
WEIGHTS = (0.1, 0.5, 0.9, 1.0)
GOALS = {"H=32": {"torch sequential": 6.0, "torch.func": 3.3}}


class Task:
    """The students, the data, and the initial weights, shared by all methods."""

    def __init__(self, features: int, width: int, rows: int, batch: int, steps: int, seeds: int):
        self.features, self.width, self.steps, self.batch = features, width, steps, batch
        self.model, self.adam = mlp([width], 10), optax.adam(RATE)
        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((rows, features), np.float32)
        teacher = mlp([64], 10)
        taught = teachers.teacher(teacher, *teacher.init(jax.random.key(1), inputs[:1]))
        self.data = {
            "inputs": inputs,
            "labels": rng.integers(0, 10, rows).astype(np.int32),
            "teacher_logits": teachers.precompute(taught, inputs),
        }
        self.key, self.order, self.seeds = jax.random.key(2), jax.random.key(3), seeds
        self.grid = {"temperature": list(TEMPERATURES), "weight": list(WEIGHTS)}
        # One entry per student, in the order of the sweep.
        self.students = [
            (t, w, s) for t in TEMPERATURES for w in WEIGHTS for s in range(self.seeds)
        ]
        self.index = np.asarray(data_.batch_indices(self.order, rows, batch, steps))
        self.starts = [self._start(seed) for seed in range(seeds)]

    def _start(self, seed: int) -> Any:
        """The parameters that ``run`` starts from."""
        objective = weighted_sum(term("labels", 1.0, cross_entropy))
        key = jax.random.split(jax.random.fold_in(self.key, seed))[0]
        example = {name: jnp.asarray(column[:1]) for name, column in self.data.items()}
        return training.Recipe(self.model, self.adam).init(objective, example, {}, key).params


def ours(task: Task) -> Callable[[], np.ndarray]:
    shared = {"data": jax.tree.map(jnp.asarray, task.data), "order": task.order}

    def student(key, *, temperature, weight, data, order):
        objective = weighted_sum(
            term("teacher", weight, soft_targets, temperature=temperature),
            term("labels", 1.0 - weight, cross_entropy),
        )
        how: dict[str, Any] = {"steps": task.steps, "batch_size": task.batch}
        _, metrics = training.run(
            task.model, objective, task.adam, data, key=key, order_key=order, **how
        )
        return {"loss": metrics["loss"]}

    def all_students():
        rows = training.sweep(
            student, task.grid, key=task.key, seeds=task.seeds, shared=shared, progress=False
        )
        all_students.modes = [row["mode"] for row in rows]
        return np.stack([row["loss"] for row in rows])

    return all_students


def jax_sequential(task: Task, students: int) -> Callable[[], np.ndarray]:
    data, index = jax.tree.map(jnp.asarray, task.data), jnp.asarray(task.index)

    @jax.jit
    def train(params, temperature, weight, data, index):
        def loss_of(params, batch):
            hidden, head = params["hidden"]["0"], params["head"]
            x = jax.nn.relu(batch["inputs"] @ hidden["kernel"] + hidden["bias"])
            s, t = x @ head["kernel"] + head["bias"], batch["teacher_logits"]
            kl = optax.losses.kl_divergence_with_log_targets(
                jax.nn.log_softmax(s / temperature), jax.nn.log_softmax(t / temperature)
            )
            hard = optax.losses.softmax_cross_entropy_with_integer_labels(s, batch["labels"])
            return weight * temperature**2 * kl.mean() + (1.0 - weight) * hard.mean()

        def step(carry, rows):
            params, opt_state = carry
            batch = {name: column[rows] for name, column in data.items()}
            loss, gradient = jax.value_and_grad(loss_of)(params, batch)
            updates, opt_state = task.adam.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        return jax.lax.scan(step, (params, task.adam.init(params)), index)[1]

    def one_by_one():
        return np.stack(
            [
                np.asarray(train(task.starts[s], jnp.float32(t), jnp.float32(w), data, index))
                for t, w, s in task.students[:students]
            ]
        )

    return one_by_one


def torch_sequential(task: Task, students: int) -> Callable[[], np.ndarray]:
    x, y, t, index = _tensors(task, task.steps)
    functional = torch.nn.functional

    def train(temperature, weight, seed):
        hidden, head = (torch.nn.Linear(*shape) for shape in _shapes(task))
        with torch.no_grad():
            for layer, (kernel, bias) in zip((hidden, head), _start(task, seed), strict=True):
                layer.weight.copy_(torch.from_numpy(kernel))
                layer.bias.copy_(torch.from_numpy(bias))
        student = torch.nn.Sequential(hidden, torch.nn.ReLU(), head)
        adam = torch.optim.Adam(student.parameters(), lr=RATE, fused=True)
        history = []
        for rows in index:
            s = student(x[rows])
            soft = functional.kl_div(
                (s / temperature).log_softmax(-1),
                (t[rows] / temperature).log_softmax(-1),
                reduction="batchmean",
                log_target=True,
            )
            hard = functional.cross_entropy(s, y[rows])
            loss = weight * temperature**2 * soft + (1.0 - weight) * hard
            adam.zero_grad()
            loss.backward()
            adam.step()
            history.append(loss.detach())
        return torch.stack(history).numpy()

    return lambda: np.stack([train(*student) for student in task.students[:students]])


def torch_func(task: Task, steps: int, *, fused: bool) -> Callable[[], np.ndarray]:
    x, y, t, index = _tensors(task, steps)
    functional = torch.nn.functional
    temperatures, weights = (
        torch.tensor([student[i] for student in task.students]) for i in (0, 1)
    )

    def loss_of(params, temperature, weight, x, y, t):
        s = functional.linear(x, params[0], params[1]).relu()
        s = functional.linear(s, params[2], params[3])
        student, teacher = (s / temperature).log_softmax(-1), (t / temperature).log_softmax(-1)
        soft = (teacher.exp() * (teacher - student)).sum(-1).mean()
        hard = functional.cross_entropy(s, y)
        return weight * temperature**2 * soft + (1.0 - weight) * hard

    gradient = torch.func.grad_and_value(loss_of)

    def one_step(params, first, second, number, *rest):
        grads, loss = gradient(params, *rest)
        first = [0.9 * m + 0.1 * g for m, g in zip(first, grads, strict=True)]
        second = [0.999 * v + 0.001 * g * g for v, g in zip(second, grads, strict=True)]
        scale, over = 1.0 / (1.0 - 0.9**number), 1.0 / (1.0 - 0.999**number)
        params = [
            p - RATE * scale * m / ((over * v).sqrt() + 1e-8)
            for p, m, v in zip(params, first, second, strict=True)
        ]
        return params, first, second, loss

    shared = (None, None, None)
    every_gradient = torch.func.vmap(gradient, in_dims=(0, 0, 0, *shared))
    every_step = torch.func.vmap(one_step, in_dims=(0, 0, 0, None, 0, 0, *shared))
    starts = [_start(task, seed) for _, _, seed in task.students]
    stacked = [
        torch.from_numpy(np.stack([start[i][j] for start in starts]))
        for i in (0, 1)
        for j in (0, 1)
    ]

    def with_steps():
        params, history = stacked, []
        first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
        for i, rows in enumerate(index):
            params, first, second, loss = every_step(
                params, first, second, i + 1, temperatures, weights, x[rows], y[rows], t[rows]
            )
            history.append(loss)
        return torch.stack(history, 1).numpy()

    def with_gradients():
        params = [p.clone().requires_grad_() for p in stacked]
        adam = torch.optim.Adam(params, lr=RATE, fused=True)
        history = []
        for rows in index:
            detached = [p.detach() for p in params]
            batch = x[rows], y[rows], t[rows]
            grads, losses = every_gradient(detached, temperatures, weights, *batch)
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            adam.step()
            history.append(losses.detach())
        return torch.stack(history, 1).numpy()

    return with_gradients if fused else with_steps


def products(task: Task, students: int, steps: int) -> Callable[[], Any]:
    """Only the matrix products of a few students' steps, on all devices."""
    devices, key = jax.devices(), jax.random.key(0)
    each = -(-students // len(devices))
    (features, width), (_, classes) = _shapes(task)
    first = 0.01 * jax.random.normal(key, (features, each * width))
    heads = 0.01 * jax.random.normal(key, (each, width, classes))
    x = jnp.asarray(task.data["inputs"][: task.batch])

    def step(carry, _):
        first, heads = carry
        hidden = x @ first
        cut = hidden.reshape(len(x), each, width).swapaxes(0, 1)
        logits = cut @ heads
        back = (logits @ heads.swapaxes(1, 2)).swapaxes(0, 1).reshape(hidden.shape)
        return (x.T @ back, cut.swapaxes(1, 2) @ logits), None

    def run(first, heads):
        return jax.lax.scan(step, (first, heads), length=steps)[0]

    whole = PartitionSpec()
    if len(devices) > 1:
        mesh = Mesh(np.array(devices), ("all",))
        run = jax.shard_map(
            run, mesh=mesh, in_specs=whole, out_specs=PartitionSpec("all"), check_vma=False
        )
    compiled = jax.jit(run).lower(first, heads).compile()
    return lambda: jax.block_until_ready(compiled(first, heads))


def _shapes(task: Task) -> tuple[tuple[int, int], tuple[int, int]]:
    return (task.features, task.width), (task.width, 10)


def _start(task: Task, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels in PyTorch's layout, ``[out, in]``, and biases."""
    params = task.starts[seed]
    layers = (params["hidden"]["0"], params["head"])
    return [(np.array(layer["kernel"]).T.copy(), np.array(layer["bias"])) for layer in layers]


def _tensors(task: Task, steps: int) -> tuple[Any, Any, Any, list[Any]]:
    x, t = (torch.from_numpy(task.data[n].copy()) for n in ("inputs", "teacher_logits"))
    y = torch.from_numpy(task.data["labels"].copy()).long()
    return x, y, t, [torch.from_numpy(rows.astype(np.int64)) for rows in task.index[:steps]]


def measure(task: Task, few: int, seconds: float, rounds: int) -> dict[str, Any]:
    """One row of the result file; slow methods do ``1 / few`` of the work in a sample."""
    name = f"H={task.width}"
    students, steps = len(task.students), task.steps
    some, short = max(1, students // few), max(3, steps // few)
    cases: dict[str, Callable[[], Any]] = {"ours": ours(task)}
    work = {"ours": students * steps, "jax sequential": some * steps}
    cases["jax sequential"] = jax_sequential(task, some)
    if torch is not None:
        cases["torch sequential"] = torch_sequential(task, some)
        work["torch sequential"] = some * steps
        for case, fused in (("torch.func", False), ("torch.func fused", True)):
            cases[case] = torch_func(task, short, fused=fused)
            work[case] = students * short
    limits = {"limit side by side": 16, "limit one by one": 1}
    results, first = first_calls(cases)
    for case, losses in results.items():
        # Rounding differences grow during training; the first losses must agree.
        np.testing.assert_allclose(
            losses[:, :3], results["ours"][: len(losses), :3], rtol=1e-3, err_msg=case
        )
    modes = cases["ours"].modes  # pyright: ignore
    cases["ours"]()  # the mode is chosen now, but its block may still have to be compiled
    for case, wide in limits.items():
        together = wide * len(jax.devices())
        cases[case] = products(task, together, short)
        work[case] = together * short
        cases[case]()
    timed = interleaved(cases, seconds=seconds, least=rounds)
    for case in timed:
        each = work[case]
        timed[case]["samples"] = [1e6 * sample / each for sample in timed[case]["samples"]]
        timed[case]["median"] *= 1e6 / each
    cost = {case: float(f"{times['median']:.4g}") for case, times in timed.items()}
    mode = cases["ours"].modes[-1]  # pyright: ignore
    for case in timed:
        emit(
            name=name,
            case=case,
            us_a_student_step=cost[case],
            student_steps_a_second=round(1e6 / cost[case]),
            first_seconds=round(first.get(case, 0.0), 2),
            student_steps_a_sample=work[case],
            rounds=len(timed[case]["samples"]),
            batch=task.batch,
            dtype="float32",
            device=jax.devices()[0].device_kind,
            devices=len(jax.devices()),
            jax=jax.__version__,
        )
    peers = [n for n in cost if n.startswith("torch") or n == "jax sequential"]
    return {
        "name": name,
        "ours": cost["ours"],
        "unit": "us a student-step",
        "better": "lower",
        "peers": {peer: cost[peer] for peer in peers},
        "limit": min(cost[case] for case in limits),
        "times_faster": {peer: round(times_faster(timed, "ours", peer), 3) for peer in peers},
        "mode": mode,
        "student_steps_a_second": round(1e6 / cost["ours"]),
        "first_call_seconds": round(first["ours"], 2),
        "first_call_modes": {m: modes.count(m) for m in sorted(set(modes))},
        "students": students,
        "steps": steps,
        "batch": task.batch,
    }


def _goals(rows: list[dict]) -> None:
    for row in rows:
        for peer, wanted in {"jax sequential": 0.95, **GOALS.get(row["name"], {})}.items():
            if peer in row["times_faster"]:
                times = row["times_faster"][peer]
                verdict = "met" if times >= wanted else "NOT MET"
                print(
                    f"goal {verdict}: {row['name']} ({row['mode']}), {times:.2f} times as fast as "
                    f"{peer}; wanted {wanted}"
                )


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny students, few steps")
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 32, 128, 512])
    parser.add_argument("--seconds", type=float, default=50.0, help="timing budget per width")
    parser.add_argument("--rounds", type=int, default=5, help="minimum number of rounds per width")
    parser.add_argument("--out", type=pathlib.Path, help="result file")
    args = parser.parse_args(argv)
    here = pathlib.Path(__file__).parent / "results" / "sweep.json"
    out = args.out or (None if args.quick else here)
    warnings.filterwarnings("ignore", module="torch")

    rows = []
    if args.quick:
        task = Task(features=6, width=4, rows=64, batch=16, steps=4, seeds=1)
        rows.append(measure(task, few=4, seconds=0.01, rounds=2))
    for width in [] if args.quick else args.widths:
        # About a second of work per sample, for any width.
        steps = 300 if width <= 32 else 120 if width <= 128 else 60
        task = Task(features=784, width=width, rows=6400, batch=128, steps=steps, seeds=4)
        rows.append(measure(task, few=8, seconds=args.seconds, rounds=args.rounds))
    report.show(
        [
            {"": row["name"], "ours": row["ours"], **row["peers"], "limit": row["limit"]}
            | {f"/ {peer}": times for peer, times in row["times_faster"].items()}
            | {"mode": row["mode"]}
            for row in rows
        ],
        title="microseconds per student and step; times faster than",
    )
    _goals(rows)
    command = " ".join(["python benchmarks/sweep.py", *(sys.argv[1:] if argv is None else argv)])
    result = report.result_file(__file__, rows, command)
    if out is not None:
        report.save_json(out, result)
    return result


if __name__ == "__main__":
    main()

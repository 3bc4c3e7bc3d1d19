"""What a step costs as training grows: data, batches, devices, accumulation, checkpoints, input.

    python benchmarks/scaling.py            # about three minutes on two CPU cores
    python benchmarks/scaling.py --quick    # tiny

Teacher 784-1200-1200-10, student 784-800-800-10, soft targets at T = 4, SGD with momentum, through
``fit`` in calls of a few steps. A sample is one ``fit``. Its seconds per step are measured between
log records after the first call, which excludes start-up and compilation, and includes what ``fit``
does between calls. The cases of a section are interleaved.

Results are compared before anything is timed: ``fit`` with the compiled step alone, bit for bit;
several devices, processes and microbatches with one, up to rounding; with and without checkpoints,
and with and without prefetching, bit for bit.

Devices are virtual ones of one CPU, and processes run on one machine. They share its cores, so two
are not faster than one: the figures show what sharding, collectives and separate processes cost.
``limit`` is the compiled step alone with its batches on the device (for checkpoints: no
checkpoints; for input: the longer of the step and the wait for a batch).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import emit, times_faster

from distill_jax import data as data_
from distill_jax import report, teachers, training
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.models import mlp
from distill_jax.objectives import term, weighted_sum
from distill_jax.training.step._compiled import init, steps_of

FULL = {"features": 784, "wide": 1200, "narrow": 800, "call": 4}
QUICK = {"features": 12, "wide": 16, "narrow": 8, "call": 2}
LAYOUTS = {"data_parallel": training.data_parallel, "fsdp": lambda: training.fsdp(least=64)}


class Setting:
    """The models and one initial state, made once, so that tasks can share compiled programs."""

    def __init__(self, features: int, wide: int, narrow: int, call: int):
        self.features, self.call = features, call
        row = {"inputs": jnp.zeros((1, features)), "labels": jnp.zeros(1, jnp.int32)}
        model = mlp([wide, wide], 10)
        params, state = jax.jit(model.init)(jax.random.key(1), row["inputs"])
        self.teachers = {"teacher": teachers.teacher(model, params, state)}
        self.student = mlp([narrow, narrow], 10)
        self.objective = weighted_sum(
            term("teacher", 0.9, soft_targets, temperature=4.0), term("labels", 0.1, cross_entropy)
        )
        self.optimizer = optax.sgd(1e-2, momentum=0.9)
        recipe = training.Recipe(self.student, self.optimizer)
        self.start = init(recipe, None, self.objective, row, self.teachers, jax.random.key(2), None)


class Task:
    """A data set, split into batches of one size."""

    def __init__(self, setting: Setting, rows: int, batch: int):
        self.key = jax.random.key(0)
        self.setting, self.call, self.batch = setting, setting.call, batch
        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((rows, setting.features), np.float32)
        self.data = {"inputs": inputs, "labels": rng.integers(0, 10, rows).astype(np.int32)}

    def batches(self, steps: int) -> Iterator[dict[str, Any]]:
        """The batches that ``fit`` draws with this key."""
        order = jax.random.split(self.key)[1]
        return data_.batches(self.data, key=order, batch_size=self.batch, steps=steps)

    def fit(self, steps: int, data: Any = None, **options: Any) -> tuple[float, dict[str, Any]]:
        """Seconds per step after the first call, and the results."""
        given, times = self.setting, []
        if data is None:
            data, options["batch_size"] = self.data, self.batch
        state, history = training.fit(
            given.student, given.objective, given.optimizer, data,
            key=self.key, steps=steps, teachers=given.teachers, initial=given.start,
            steps_per_call=self.call, log=lambda step, metrics: times.append(time.perf_counter()),
            progress=False, **options,
        )  # fmt: skip
        seconds = (times[-1] - times[self.call - 1]) / (len(times) - self.call)
        return seconds, {"losses": history["loss"], "params": state.params}

    def case(self, steps: int, **options: Any) -> Callable[[], tuple[float, dict[str, Any]]]:
        return lambda: self.fit(steps, **options)

    def arguments(self, microbatches: int = 1) -> tuple[Any, ...]:
        """The arguments of ``steps_of``, the program that ``fit`` calls."""
        given = self.setting
        recipe = training.Recipe(given.student, given.optimizer, microbatches=microbatches)
        group = [{n: jnp.asarray(x) for n, x in b.items()} for b in self.batches(self.call)]
        state = jax.tree.map(jnp.copy, given.start)
        return recipe, 1, None, state, group, given.objective, given.teachers, None

    def alone(self, steps: int) -> Callable[[], tuple[float, dict[str, Any]]]:
        """The compiled step alone, repeatedly on the same batches."""
        calls = steps // self.call

        def case():
            *fixed, state, group, objective, taught, decay = self.arguments()
            state, metrics = steps_of(*fixed, state, group, objective, taught, decay)
            losses = np.asarray(metrics["loss"])
            started = time.perf_counter()
            for _ in range(calls - 1):
                state, metrics = steps_of(*fixed, state, group, objective, taught, decay)
            jax.block_until_ready((state, metrics))
            seconds = (time.perf_counter() - started) / ((calls - 1) * self.call)
            return seconds, {"losses": losses}

        return case


def same_bits(found: dict, wanted: dict, who: str) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=who)


def close(found: dict, wanted: dict, who: str) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5, err_msg=who)


def measured(
    section: str, cases: dict[str, Callable], check: Callable[[dict], None], seconds: float, **about
) -> dict[str, dict[str, Any]]:
    """Compares the results of all cases, then times them in rounds: seconds per step, by case."""
    check({name: case()[1] for name, case in cases.items()})
    samples: dict[str, list[float]] = {name: [] for name in cases}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples[next(iter(cases))]) < 3:
        for name, case in cases.items():
            samples[name].append(case()[0])
    timed = {n: {"median": statistics.median(x), "samples": x} for n, x in samples.items()}
    for name, times in timed.items():
        emit(
            name=section, case=name, step_ms=round(1e3 * times["median"], 4),
            rounds=len(times["samples"]), dtype="float32", device=jax.devices()[0].device_kind,
            jax=jax.__version__, **about,
        )  # fmt: skip
    return timed


def row(
    name: str, timed: dict[str, dict], ours: str, limit: float, peers: dict[str, str], **more: Any
) -> dict[str, Any]:
    """A row of the result file; ``peers`` maps names in the file to cases."""
    return {
        "name": name,
        "ours": _ms(timed[ours]["median"]),
        "unit": "ms/step",
        "better": "lower",
        "peers": {peer: _ms(timed[case]["median"]) for peer, case in peers.items()},
        "limit": _ms(limit),
        "times_faster": {
            peer: round(times_faster(timed, ours, case), 3) for peer, case in peers.items()
        },
        **more,
    }


def _ms(seconds: float) -> float:
    return float(f"{1e3 * seconds:.4g}")


def sizes(setting: Setting, seconds: float, quick: bool) -> list[dict]:
    """``fit`` against the step alone, for different sizes of data set and batch."""
    steps = (3 if quick else 11) * setting.call
    numbers = (64,) if quick else (1_000, 10_000, 100_000)
    batches = (8,) if quick else (8, 32, 128, 512)
    kinds = [("data", n, 16 if quick else 128) for n in numbers]
    kinds += [("batch", 64 if quick else 10_000, n) for n in batches]
    found = []
    for kind, rows, batch in kinds:
        task = Task(setting, rows, batch)
        long = steps if batch >= 128 or quick else 4 * steps
        cases = {"fit": task.case(long), "step alone": task.alone(long)}

        def check(results, call=task.call):
            fit, alone = results["fit"]["losses"], results["step alone"]["losses"]
            same_bits(fit[:call], alone, "fit and the step alone")

        about = {"rows": rows, "batch": batch, "steps": long}
        timed = measured(
            f"{kind} {rows if kind == 'data' else batch}", cases, check, seconds, **about
        )
        name = f"{kind} of {rows} rows" if kind == "data" else f"batch of {batch} rows"
        alone = timed["step alone"]["median"]
        speed = float(f"{batch / timed['fit']['median']:.4g}")
        found.append(row(name, timed, "fit", alone, {}, examples_per_second=speed))
    return found


def accumulation(setting: Setting, seconds: float, quick: bool) -> list[dict]:
    task = Task(setting, *(64, 16) if quick else (10_000, 2048))
    pieces = (1, 2) if quick else (1, 2, 4, 8)
    steps = (3 if quick else 2) * task.call
    cases: dict[str, Callable] = {str(n): task.case(steps, microbatches=n) for n in pieces}
    cases["step alone"] = task.alone(steps)

    def check(results):
        for n in pieces[1:]:
            close(results[str(n)], results["1"], f"{n} microbatches")

    timed = measured("accumulation", cases, check, seconds, batch=task.batch, steps=steps)
    rows = []
    for n in pieces:
        memory = steps_of.lower(*task.arguments(n)).compile().memory_analysis()
        peers = {} if n == 1 else {"1 microbatch": "1"}
        temporary = round(memory.temp_size_in_bytes / 1e6, 3)
        emit(name="accumulation", case=f"{n} memory", temp_megabytes=temporary)
        limit = timed["step alone"]["median"]
        rows.append(row(f"microbatches {n}", timed, str(n), limit, peers, temp_megabytes=temporary))
    return rows


def checkpoints(setting: Setting, seconds: float, quick: bool) -> list[dict]:
    task = Task(setting, *(64, 16) if quick else (10_000, 128))
    every = (2 if quick else 5) * task.call
    steps = task.call + (1 if quick else 4) * every

    def saving(asynchronous: bool) -> Callable:
        def case():
            with tempfile.TemporaryDirectory() as folder:  # a new one, or the run would resume
                saved = training.Checkpoints(folder, every=every, asynchronous=asynchronous)
                return task.fit(steps, checkpoints=saved)

        return case

    cases = {"none": task.case(steps), "saving": saving(True), "waiting": saving(False)}

    def check(results):
        for name in ("saving", "waiting"):
            same_bits(results[name], results["none"], f"checkpoints, {name}")

    timed = measured("checkpoints", cases, check, seconds, every=every, steps=steps)
    none = timed["none"]["median"]
    state = sum(x.nbytes for x in jax.tree.leaves((setting.start.params, setting.start.opt_state)))
    overhead = {
        name: round(100 * (times_faster(timed, "none", case) - 1), 2)
        for name, case in (("in the background", "saving"), ("waited for", "waiting"))
    }
    return [
        row(
            f"checkpoints every {every} steps", timed, "saving", none, {"waited for": "waiting"},
            overhead_percent=overhead, state_megabytes=round(state / 1e6, 3),
        )
    ]  # fmt: skip


def prefetching(setting: Setting, seconds: float, quick: bool) -> list[dict]:
    """A source whose batches each take about as long as a step."""
    task = Task(setting, *(64, 16) if quick else (10_000, 128))
    steps = (3 if quick else 11) * task.call
    task.alone(steps)()
    wait = 0.8 * task.alone(steps)()[0]

    def source():
        for batch in task.batches(steps):
            time.sleep(wait)
            yield batch

    cases = {
        "0": lambda: task.fit(steps, data=source(), prefetch=0),
        "2": lambda: task.fit(steps, data=source(), prefetch=2),
        "step alone": task.alone(steps),
    }

    def check(results):
        same_bits(results["2"], results["0"], "with a thread that draws ahead")

    timed = measured("input", cases, check, seconds, wait_ms=_ms(wait), steps=steps)
    limit = max(wait, timed["step alone"]["median"])
    return [row("batches drawn ahead", timed, "2", limit, {"no thread": "0"}, wait_ms=_ms(wait))]


def devices(setting: Setting, seconds: float, quick: bool) -> list[dict]:
    """One device here; two virtual devices, and two processes, in child processes."""
    rows, batch = (64, 16) if quick else (10_000, 128)
    made = {"quick": quick, "rows": rows, "batch": batch}
    task = Task(setting, rows, batch)
    steps = (3 if quick else 11) * task.call
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(workers(1, 2, made))
        two = stack.enter_context(workers(2, 1, made))
        cases: dict[str, Callable] = {"1 device": task.case(steps), "step alone": task.alone(steps)}
        for layout in LAYOUTS:
            cases[f"2 devices {layout}"] = lambda layout=layout: one(steps, layout)
        cases["2 processes data_parallel"] = lambda: two(steps, "data_parallel")

        def check(results):
            for name in cases:
                if name[0] == "2":
                    close(results[name], results["1 device"], name)

        timed = measured("devices", cases, check, seconds, batch=task.batch, steps=steps)
    limit = timed["step alone"]["median"]
    return [row(n, timed, n, limit, {"1 device": "1 device"}) for n in cases if n[0] == "2"]


@contextlib.contextmanager
def workers(processes: int, each: int, made: dict) -> Iterator[Callable]:
    """Child processes that run ``fit`` on request, and the function that requests it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={each}",
        "JAX_PLATFORMS": "cpu",
    }
    children: list[subprocess.Popen] = []
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for i in range(processes):
            role = {"port": port, "processes": processes, "process": i, **made}
            child = subprocess.Popen(
                [sys.executable, __file__, "--worker", json.dumps(role)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            )  # fmt: skip
            stack.callback(_end, child)
            children.append(child)

        def request(steps: int, layout: str) -> tuple[float, dict[str, Any]]:
            path = pathlib.Path(folder) / "result.npz"
            order = {"steps": steps, "layout": layout, "path": os.fspath(path)}
            for child in children:
                with contextlib.suppress(BrokenPipeError):  # _answer reports the child that ended
                    child.stdin.write(json.dumps(order) + "\n")  # type: ignore[union-attr]
                    child.stdin.flush()  # type: ignore[union-attr]
            answers = [_answer(child) for child in children]
            with np.load(path) as file:
                leaves = [file[name] for name in file.files]
            return max(answers), {"losses": leaves[0], "params": leaves[1:]}

        yield request


def _answer(child: subprocess.Popen) -> float:
    for line in child.stdout:  # type: ignore[union-attr]
        if line.startswith("{"):  # the collectives library prints lines of its own
            return json.loads(line)["seconds"]
    raise RuntimeError("a worker ended; its error is above")


def _end(child: subprocess.Popen) -> None:
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()  # type: ignore[union-attr]
    try:
        child.wait(timeout=20)
    except subprocess.TimeoutExpired:
        child.kill()


def work(port: int, processes: int, process: int, quick: bool, rows: int, batch: int) -> None:
    """A child process: reads one request per line, writes one answer per line."""
    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", num_processes=processes, process_id=process)
    task = Task(Setting(**QUICK if quick else FULL), rows, batch)
    for line in sys.stdin:
        order = json.loads(line)
        seconds, found = task.fit(order["steps"], layout=LAYOUTS[order["layout"]]())
        if process == 0:
            np.savez(order["path"], *[np.asarray(x) for x in jax.tree.leaves(found)])
        print(json.dumps({"seconds": seconds}), flush=True)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sections = {f.__name__: f for f in (sizes, accumulation, checkpoints, prefetching, devices)}
    parser.add_argument("--quick", action="store_true", help="tiny models and few sizes")
    parser.add_argument("--only", nargs="+", choices=sections, default=list(sections))
    parser.add_argument("--out", type=pathlib.Path, help="result file")
    args = parser.parse_args(argv)
    here = pathlib.Path(__file__).parent / "results" / "scaling.json"
    whole = not args.quick and len(args.only) == len(sections)
    out = args.out or (here if whole else None)

    setting = Setting(**QUICK if args.quick else FULL)
    rows = []
    for name in args.only:
        seconds = 0.01 if args.quick else 5.0 if name == "sizes" else 12.0
        rows += sections[name](setting, seconds, args.quick)
    report.show(
        [
            {"": r["name"], "ours": r["ours"], "limit": r["limit"], **r["peers"]}
            | {n: r[n] for n in ("temp_megabytes", "examples_per_second") if n in r}
            | {f"{n}, %": x for n, x in r.get("overhead_percent", {}).items()}
            for r in rows
        ],
        title="ms per step",
    )
    command = " ".join(["python benchmarks/scaling.py", *(sys.argv[1:] if argv is None else argv)])
    result = report.result_file(__file__, rows, command)
    if out is not None:
        report.save_json(out, result)
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(**json.loads(sys.argv[2]))
    else:
        main()

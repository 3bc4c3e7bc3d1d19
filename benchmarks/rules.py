"""Rules on a table: where they fire, and the penalty on labels with its gradient.

    python benchmarks/rules.py            # five to ten minutes on two CPU cores
    python benchmarks/rules.py --quick    # tiny, to check that it runs

1,000 rules of three atoms over 30 columns and 100,000 rows, float32; speeds are in millions of
rows times rules per second.

- ``crisp``: a table of booleans, rows times rules, that says where the body of each rule holds. It
  is compared with a NumPy loop over whole columns, one ``DataFrame.eval`` per rule, and Snorkel's
  ``LFApplier`` with one labelling function per rule; the last two on a part of the rules or rows,
  which does not affect their speed.
- ``fuzzy gradient``: product logic over 30 labels, the weighted mean of all violations and its
  gradient with respect to the probabilities. It is compared with PyTorch and its autograd, rule by
  rule: as one would first write it, with ``p[:, i]`` in each rule (``torch indexed``), and with the
  columns unbound and subtracted from 1 once for all rules (``torch``), which is ten times faster.
  ``autodiff`` is the same formula in JAX, for a part of the rows, since it stores rows times rules.
- ``coverage`` counts in how many rows each rule fires; ``energies`` sums each class's penalty under
  the rules, for 10 classes. ``cost`` rows show how compile time, time and memory grow.

All results are compared before anything is timed. ``limit`` is the speed of writing the table.
NumPy asks the system for large memory pages, and XLA does not: the script restarts itself with
``GLIBC_TUNABLES=glibc.malloc.hugetlb=1``, which does.

The peers are installed by ``pip install 'distill_jax[bench]'``; missing ones are left out.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

_TUNABLES = "GLIBC_TUNABLES"
if __name__ == "__main__" and sys.platform == "linux" and _TUNABLES not in os.environ:
    os.environ[_TUNABLES] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.argv])  # it is read when a process starts

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from _timing import emit, first_calls, interleaved  # noqa: E402

from distill_jax import report  # noqa: E402
from distill_jax.rules import Column, Schema, bind  # noqa: E402
from distill_jax.rules.binding._plans import plan  # noqa: E402
from distill_jax.rules.logic import _label_sums, _tiles  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import torch
    except ImportError:  # an extra
        torch = None
    try:
        import pandas
    except ImportError:
        pandas = None
    try:
        from snorkel.labeling import LabelingFunction, LFApplier
    except ImportError:
        LabelingFunction = LFApplier = None

COLUMNS, LABELS, ATOMS, CLASSES = 30, 30, 3, 10
COMPARE = {
    ">=": np.greater_equal,
    "<": np.less,
    ">": np.greater,
    "<=": np.less_equal,
}


class Crisp:
    """Rules over features, a table, and the same rules for the other libraries."""

    def __init__(self, rules: int, rows: int, classes: int = CLASSES):
        rng = np.random.default_rng(0)
        self.rules, self.rows = rules, rows
        self.names = [f"c{i}" for i in range(COLUMNS)]
        # Column-major for NumPy, which suits its loop; row-major for ours, as users have it.
        self.by_column = rng.standard_normal((COLUMNS, rows), np.float32)
        self.columns = jnp.asarray(self.by_column.T)
        place = np.argsort(rng.random((rules, COLUMNS)), axis=1)[:, :ATOMS]
        operator = rng.choice(list(COMPARE), (rules, ATOMS))
        threshold = rng.standard_normal((rules, ATOMS)).astype(np.float32)
        self.atoms = [
            list(zip(*each, strict=True)) for each in zip(place, operator, threshold, strict=True)
        ]
        self.texts = [
            " and ".join(f"c{i} {op} {float(t)!r}" for i, op, t in atoms) for atoms in self.atoms
        ]
        schema = Schema(
            tuple(Column(name) for name in self.names), tuple(f"k{i}" for i in range(classes))
        )
        heads = rng.integers(0, classes, rules)
        text = "\n".join(f"[w=1] {b} => k{k}" for b, k in zip(self.texts, heads, strict=True))
        start = time.perf_counter()
        self.book = bind(text, schema)
        self.bind_seconds = time.perf_counter() - start

    def numpy(self) -> np.ndarray:
        table = np.empty((self.rules, self.rows), bool)
        for r, atoms in enumerate(self.atoms):
            (a, f, t), *others = [(self.by_column[i], COMPARE[op], t) for i, op, t in atoms]
            held = f(a, t)
            for a, f, t in others:
                held = held & f(a, t)
            table[r] = held
        return table

    def coverage(self) -> np.ndarray:
        return np.count_nonzero(self.numpy(), axis=1)

    def pandas(self, rules: int) -> Callable[[], np.ndarray]:
        assert pandas is not None
        frame = pandas.DataFrame(dict(zip(self.names, self.by_column, strict=True)))
        return lambda: np.stack([frame.eval(text).to_numpy() for text in self.texts[:rules]])

    def snorkel(self, rules: int, rows: int) -> Callable[[], np.ndarray]:
        python = {">=": float.__ge__, "<": float.__lt__, ">": float.__gt__, "<=": float.__le__}

        def function(r):
            checks = [(int(i), python[op], float(t)) for i, op, t in self.atoms[r]]
            (i, f, s), (j, g, t), (k, h, u) = checks
            return LabelingFunction(
                f"rule{r}", lambda row: 1 if f(row[i], s) and g(row[j], t) and h(row[k], u) else -1
            )

        applier = LFApplier([function(r) for r in range(rules)])
        table = [tuple(map(float, row)) for row in self.by_column[:, :rows].T]
        return lambda: applier.apply(table, progress_bar=False).T == 1


class Fuzzy:
    """Rules over label sets, and probabilities of the labels."""

    def __init__(self, rules: int, rows: int, labels: int = LABELS):
        rng = np.random.default_rng(1)
        self.rules, self.rows, self.labels = rules, rows, labels
        self.probabilities = rng.uniform(0.02, 0.98, (rows, labels)).astype(np.float32)
        self.place = rng.integers(0, labels, (rules, 1)) + np.arange(ATOMS) * (labels // ATOMS)
        self.place = (self.place + rng.integers(0, labels // ATOMS, (rules, ATOMS))) % labels
        self.negated = rng.random((rules, ATOMS)) < 0.5
        self.weights = rng.uniform(0.5, 2.0, rules).astype(np.float32)
        literals = [
            [("not " if n else "") + f"y{i}" for i, n in zip(*pair, strict=True)]
            for pair in zip(self.place, self.negated, strict=True)
        ]
        text = "\n".join(f"[w=1] not ({' and '.join(parts)})" for parts in literals)
        names = tuple(f"y{i}" for i in range(labels))
        start = time.perf_counter()
        schema = Schema((Column("c0"),), names, exclusive=False)
        self.book = bind(text, schema, conflicts="ignore")
        self.plan = plan(self.book.circuit, self.book.violated, labels)
        self.bind_seconds = time.perf_counter() - start
        self.arguments = jax.device_put(
            (self.plan, self.book.circuit, self.probabilities, self.weights)
        )

    @staticmethod
    def ours(made: Any, circuit: Any, p: Any, weights: Any) -> Any:
        columns = jnp.zeros((p.shape[0], 1), jnp.float32)
        return _label_sums.weighted(made, circuit, columns, p, weights).mean()

    def autodiff(self, p: Any, weights: Any) -> Any:
        q = jnp.where(self.negated, 1.0 - p[:, self.place], p[:, self.place])
        return (q.prod(2) * weights[None, :]).sum(1).mean()

    def torch(self) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        p = torch.from_numpy(self.probabilities.T.copy()).requires_grad_()
        weights = [float(w) for w in self.weights]
        literals = [
            list(zip(*pair, strict=True)) for pair in zip(self.place, self.negated, strict=True)
        ]

        def run():
            p.grad = None
            columns = list(p)  # indexing in each rule would make autograd six times slower
            opposite = [1.0 - column for column in columns]
            total = torch.zeros(())
            for weight, ((a, not_a), (b, not_b), (c, not_c)) in zip(weights, literals, strict=True):
                x = opposite[a] if not_a else columns[a]
                y = opposite[b] if not_b else columns[b]
                z = opposite[c] if not_c else columns[c]
                total = total + weight * (x * y * z).mean()
            total.backward()
            return total.detach().numpy(), p.grad.numpy().T

        return run

    def torch_indexed(self) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        p = torch.from_numpy(self.probabilities).requires_grad_()
        weights = [float(w) for w in self.weights]
        place, negated = self.place.tolist(), self.negated.tolist()

        def run():
            p.grad = None
            total = torch.zeros(())
            for weight, atoms, opposite in zip(weights, place, negated, strict=True):
                x, y, z = (
                    1.0 - p[:, i] if no else p[:, i] for i, no in zip(atoms, opposite, strict=True)
                )
                total = total + weight * (x * y * z).mean()
            total.backward()
            return total.detach().numpy(), p.grad.numpy()

        return run


def compiled(function: Callable, *arguments: Any) -> tuple[Callable[[], Any], float, int]:
    """A call that blocks until its result is ready, seconds to compile, and temporary bytes."""
    jax.clear_caches()  # otherwise a program that an earlier case compiled would be reused
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    size = program.memory_analysis().temp_size_in_bytes
    return lambda: jax.block_until_ready(program(*arguments)), seconds, size


def crisp(rules: int, rows: int, seconds: float) -> list[dict[str, Any]]:
    task = Crisp(rules, rows)
    book = task.book
    held, held_compile, held_bytes = compiled(
        _tiles.held, book.circuit, task.columns, jnp.asarray(book.fires)
    )
    counted, count_compile, count_bytes = compiled(
        _tiles.counted, book.circuit, task.columns, jnp.asarray(book.fires)
    )
    fill, *_ = compiled(lambda x: jnp.broadcast_to(x, (rows, rules)), jnp.zeros((), bool))
    # Slow cases run on a part, which does not affect their speed.
    some_rules, few_rules, some_rows = min(rules, 40), min(rules, 50), min(rows, 400)
    cases = {"ours": held, "numpy": task.numpy, "coverage": counted, "count": task.coverage}
    sizes = dict.fromkeys([*cases, "limit"], rules * rows)
    if pandas is not None:
        cases["pandas"], sizes["pandas"] = task.pandas(some_rules), some_rules * rows
    if LFApplier is not None:
        cases["snorkel"] = task.snorkel(few_rules, some_rows)
        sizes["snorkel"] = few_rules * some_rows
    results, first = first_calls(cases)
    want = results["numpy"]
    np.testing.assert_array_equal(np.asarray(results["ours"]).T, want)
    np.testing.assert_array_equal(results["coverage"], results["count"])
    if "pandas" in results:
        np.testing.assert_array_equal(results["pandas"], want[:some_rules])
    if "snorkel" in results:
        np.testing.assert_array_equal(results["snorkel"], want[:few_rules, :some_rows])
    del results, want
    timed = interleaved({**cases, "limit": fill}, seconds=seconds)
    speeds = _speeds("crisp", timed, sizes, first)
    size = f"{rules}x{_short(rows)}"
    energies = _energies(task, seconds / 4)
    return [
        _row(f"crisp {size}", timed, sizes, "ours", ("numpy", "pandas", "snorkel"))
        | {
            "limit": speeds["limit"],
            "compile_seconds": round(held_compile, 3),
            "bind_seconds": round(task.bind_seconds, 3),
            "temp_megabytes": round(held_bytes / 1e6, 3),
            "table_megabytes": rules * rows / 1e6,
        },
        _row(f"coverage {size}", timed, sizes, "coverage", ("count",), {"count": "numpy"})
        | {
            "compile_seconds": round(count_compile, 3),
            "temp_megabytes": round(count_bytes / 1e6, 3),
        },
        energies,
    ]


def _energies(task: Crisp, seconds: float) -> dict[str, Any]:
    """Each class's penalty under the rules; the peer multiplies NumPy's table."""
    guards, scores, arguments = _pieces(task)
    ours, compile_seconds, size = compiled(_tiles.scored, *arguments)
    node = np.asarray(guards.node)
    of_rule = np.asarray(task.book.pieces.rule)
    assert len(node) == len(of_rule)
    against = np.asarray(scores)

    def peer():
        return task.numpy()[of_rule].T.astype(np.float32) @ against

    cases = {"ours": ours, "numpy": peer}
    results, first = first_calls(cases)
    np.testing.assert_allclose(results["ours"], results["numpy"], rtol=1e-4, atol=1e-3)
    del results
    timed = interleaved(cases, seconds=seconds, least=3)
    sizes = dict.fromkeys(cases, task.rules * task.rows)
    _speeds("energies", timed, sizes, first)
    row = _row(f"energies {task.rules}x{_short(task.rows)}", timed, sizes, "ours", ("numpy",))
    return row | {
        "compile_seconds": round(compile_seconds, 3),
        "temp_megabytes": round(size / 1e6, 3),
    }


def _pieces(task: Crisp) -> tuple[_tiles.Guards, Any, tuple]:
    book = task.book
    strengths = jnp.asarray(book.strengths)[jnp.asarray(book.pieces.rule)]
    scores = strengths[:, None] * jnp.asarray(book.pieces.table)
    nothing = jnp.zeros((0, task.rows), jnp.float32)
    guards = _tiles.Guards(jnp.asarray(book.pieces.guard), jnp.asarray(book.pieces.seen), nothing)
    return guards, scores, (book.circuit, task.columns, guards, scores)


def fuzzy(rules: int, rows: int, seconds: float) -> list[dict[str, Any]]:
    task = Fuzzy(rules, rows)
    ours, compile_seconds, size = compiled(
        jax.value_and_grad(Fuzzy.ours, argnums=2), *task.arguments
    )
    value, *_ = compiled(Fuzzy.ours, *task.arguments)
    part = max(1, rows // 20)
    arguments = jnp.asarray(task.probabilities[:part]), task.arguments[3]
    naive, naive_compile, naive_size = compiled(jax.value_and_grad(task.autodiff), *arguments)
    cases: dict[str, Callable[[], Any]] = {"ours": ours, "value alone": value, "autodiff": naive}
    sizes = {"ours": rules * rows, "value alone": rules * rows, "autodiff": rules * part}
    if torch is not None:
        cases |= {"torch": task.torch(), "torch indexed": task.torch_indexed()}
        sizes |= {"torch": rules * rows, "torch indexed": rules * rows}
    results, first = first_calls(cases)
    got, gradient = results["ours"]
    np.testing.assert_allclose(got, results["value alone"], rtol=1e-5)
    np.testing.assert_allclose(
        np.asarray(gradient)[:part] * rows, results["autodiff"][1] * part, rtol=1e-3, atol=1e-3
    )
    for name in {"torch", "torch indexed"} & results.keys():
        np.testing.assert_allclose(got, results[name][0], rtol=1e-4)
        np.testing.assert_allclose(
            np.asarray(gradient) * rows, results[name][1] * rows, rtol=1e-3, atol=1e-3
        )
    del results, gradient
    timed = interleaved(cases, seconds=seconds)
    speeds = _speeds("fuzzy gradient", timed, sizes, first)
    peers = ("torch", "torch indexed")
    row = _row(f"fuzzy gradient {rules}x{_short(rows)}", timed, sizes, "ours", peers)
    return [
        row
        | {
            "autodiff": speeds["autodiff"],
            "value_alone": speeds["value alone"],
            "compile_seconds": round(compile_seconds, 3),
            "autodiff_compile_seconds": round(naive_compile, 3),
            "bind_seconds": round(task.bind_seconds, 3),
            "temp_megabytes": round(size / 1e6, 3),
            # Measured on a part of the rows, scaled to all.
            "autodiff_temp_megabytes": round(naive_size / 1e6 * rows / part, 3),
        }
    ]


def costs(
    rules: Sequence[int], classes: Sequence[int], labels: Sequence[int], rows: int
) -> list[dict[str, Any]]:
    """How compile time, time and memory grow with rules, classes and labels."""
    made = []

    def add(name: str, number: int, bind_seconds: float, program: tuple) -> None:
        call, compile_seconds, size = program
        call()
        seconds = interleaved({"ours": call}, seconds=0.5, least=3, most=20)["ours"]["median"]
        row = {
            "name": f"cost {name}",
            "ours": float(f"{number * rows / seconds / 1e6:.4g}"),
            "unit": "M rows x rules/s",
            "better": "higher",
            "peers": {},
            "milliseconds": float(f"{1e3 * seconds:.4g}"),
            "compile_seconds": round(compile_seconds, 3),
            "bind_seconds": round(bind_seconds, 3),
            "temp_megabytes": round(size / 1e6, 3),
        }
        emit(**row)
        made.append(row)

    gradient = jax.value_and_grad(Fuzzy.ours, argnums=2)
    for n in rules:
        task = Crisp(n, rows)
        arguments = task.book.circuit, task.columns, jnp.asarray(task.book.fires)
        add(f"coverage, {n} rules", n, task.bind_seconds, compiled(_tiles.counted, *arguments))
        del task
        task = Fuzzy(n, rows)
        program = compiled(gradient, *task.arguments)
        add(f"fuzzy gradient, {n} rules", n, task.bind_seconds, program)
        del task
    middle = rules[len(rules) // 2]
    for k in classes:
        task = Crisp(middle, rows, k)
        program = compiled(_tiles.scored, *_pieces(task)[2])
        add(f"energies, {middle} rules, {k} classes", middle, task.bind_seconds, program)
    for k in labels:
        task = Fuzzy(middle, rows, k)
        program = compiled(gradient, *task.arguments)
        add(f"fuzzy gradient, {middle} rules, {k} labels", middle, task.bind_seconds, program)
    return made


def _speeds(name: str, timed: Any, sizes: dict[str, int], first: Any) -> dict[str, float]:
    speeds = {c: float(f"{sizes[c] / t['median'] / 1e6:.4g}") for c, t in timed.items()}
    for case, times in timed.items():
        emit(
            name=name,
            case=case,
            million_a_second=speeds[case],
            median_ms=float(f"{1e3 * times['median']:.4g}"),
            first_ms=float(f"{1e3 * first.get(case, 0.0):.4g}"),
            rows_times_rules=sizes[case],
            rounds=len(times["samples"]),
            dtype="float32",
            device=jax.devices()[0].device_kind,
            jax=jax.__version__,
        )
    return speeds


def _row(
    name: str,
    timed: Any,
    sizes: dict[str, int],
    ours: str,
    peers: Sequence[str],
    names: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A row of the result file; "times faster" is the median over rounds of the ratio."""
    names = names or {}

    def speed(case):
        return float(f"{sizes[case] / timed[case]['median'] / 1e6:.4g}")

    def ratio(case):
        pairs = zip(timed[case]["samples"], timed[ours]["samples"], strict=True)
        scale = sizes[ours] / sizes[case]
        return float(f"{statistics.median(scale * a / b for a, b in pairs):.4g}")

    found = [peer for peer in peers if peer in timed]
    return {
        "name": name,
        "ours": speed(ours),
        "unit": "M rows x rules/s",
        "better": "higher",
        "peers": {names.get(p, p): speed(p) for p in found},
        "times_faster": {names.get(p, p): ratio(p) for p in found},
    }


def _short(rows: int) -> str:
    return f"{rows // 1000}k" if rows % 1000 == 0 else str(rows)


def _goals(rows: list[dict[str, Any]]) -> None:
    wanted = {
        ("crisp", "numpy"): 0.8,
        ("crisp", "snorkel"): 1000.0,
        ("fuzzy gradient", "torch"): 8.0,
        ("fuzzy gradient", "torch indexed"): 15.0,
    }
    for row in rows:
        for (name, peer), least in wanted.items():
            if row["name"].startswith(name) and peer in row["peers"]:
                times = row["times_faster"][peer]
                verdict = "met" if times >= least else "NOT MET"
                print(f"goal {verdict}: {row['name']}, {times:g} times {peer}; wanted {least:g}")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--out", type=pathlib.Path, help="result file")
    args = parser.parse_args(argv)
    here = pathlib.Path(__file__).parent / "results" / "rules.json"
    out = args.out or (None if args.quick else here)
    warnings.filterwarnings("ignore", module="snorkel|torch|pandas|munkres|tensorboard")

    if args.quick:
        rows = crisp(12, 300, 0.01) + fuzzy(12, 300, 0.01) + costs([4, 12], [3], [6], 300)
    else:
        rows = crisp(1000, 100_000, 60.0) + fuzzy(1000, 100_000, 90.0)
        rows += costs([10, 100, 1000, 10_000], [2, 10, 100], [10, 30, 100, 1000], 100_000)
    report.show(
        [
            {"": row["name"], "ours": row["ours"], **row["peers"]}
            | {f"/ {peer}": times for peer, times in row.get("times_faster", {}).items()}
            | {"compile s": row["compile_seconds"], "temporary MB": row["temp_megabytes"]}
            for row in rows
        ],
        title="millions of rows times rules per second; times faster than",
    )
    _goals(rows)
    command = " ".join(["python benchmarks/rules.py", *(sys.argv[1:] if argv is None else argv)])
    result = report.result_file(__file__, rows, command)
    if out is not None:
        report.save_json(out, result)
    return result


if __name__ == "__main__":
    main()

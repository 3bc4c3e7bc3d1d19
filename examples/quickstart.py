"""Where a teacher helps, and where it does not: handwritten digits.

    python examples/quickstart.py

A large MLP, the teacher, is trained on D_T. On new data D_S, a logistic regression and a small MLP
are each trained twice: on the labels alone, and distilled, from labels and teacher. All are
evaluated on D_P. There are three cases: 50 rows of D_S have a label while the teacher covers every
row; 40% of the labels of D_S are replaced at random; all labels of D_S are correct.

The data are the 1,797 images of 8 x 8 pixels that come with scikit-learn. D_P (597 rows) and D_V
(200) are set aside first. Each of 10 seeds splits the other 1,000 rows into D_T and D_S (500 each),
draws which labels are kept or replaced, and initialises teacher and students; both ways of training
share all of that. Intervals are over seeds, not over other digits.

Each student in each case and way gets the learning rate from RATES with the best mean accuracy on
D_V, whose labels are correct; it is the same for all seeds. Nothing else is tuned, nothing is
chosen on D_P, and the last step counts.

Prints tables, and writes quickstart.json and quickstart.png. Takes less than a minute on two CPU
cores. Fails if distillation does not help where labels are few or wrong.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from distill_jax import data, evaluation, losses, models, report, teachers, training
from distill_jax.objectives import term, weighted_sum
from distill_jax.types import Model

SEEDS, STEPS = 10, 500
CASES = ("50 of 500", "40% random", "all correct")
WAYS = {"labels alone": (1.0, 0.0), "distilled": (0.1, 0.9)}  # weights of labels and teacher
RATES = (0.003, 0.01, 0.03, 0.1)
LARGE = models.mlp([256, 128], num_classes=10, dropout=0.5)
SMALL = {
    "logistic regression": models.logistic_regression(num_classes=10),
    "small MLP": models.mlp([16], num_classes=10),
}
COLUMNS = {
    "labels": "labels",
    "learns": "learns from",
    "accuracy_percent": "accuracy, %",
    "agreement_percent": "agreement, %",
    "kl_to_teacher": "KL to teacher",
}


def load() -> tuple[Any, Any, Any, Any]:
    """D_P and D_V, and D_T and D_S with a leading axis of seeds."""
    pixels, labels = load_digits(return_X_y=True)
    rows = {"inputs": pixels.astype(np.float32) / 16, "labels": labels.astype(np.int32)}
    d_v, rest, d_p = data.split(rows, [200, 1000, 597], key=jax.random.key(0))
    cuts = [data.split(rest, [500, 500], key=jax.random.key(1 + seed)) for seed in range(SEEDS)]
    d_t, d_s = (jax.tree.map(lambda *x: np.stack(x), *parts) for parts in zip(*cuts, strict=True))
    return d_p, d_v, d_t, d_s


def spoil(d_s: dict[str, Any]) -> dict[str, Any]:
    """D_S with a leading axis of cases, and a boolean column for the labelled rows."""
    rng, labels = np.random.default_rng(0), d_s["labels"]
    random = np.where(rng.random(labels.shape) < 0.4, rng.integers(10, size=labels.shape), labels)
    every = np.ones(labels.shape, bool)
    first = every & (np.arange(labels.shape[1]) < 50)  # the rows are in random order
    cases = {name: np.stack([column] * len(CASES)) for name, column in d_s.items()}
    cases["labels"] = np.stack([labels, random, labels]).astype(np.int32)
    return cases | {"labelled": np.stack([first, every, every])}


def train_teachers(d_t: dict[str, Any], keys: jax.Array, steps: int) -> teachers.Teacher:
    """One teacher per seed, stacked in one pytree."""
    objective, optimizer = weighted_sum(term("labels", 1.0, losses.cross_entropy)), optax.adam(3e-3)

    def one(d_t, key):
        end, _ = training.run(LARGE, objective, optimizer, d_t, key=key, steps=steps, batch_size=50)
        return teachers.teacher(LARGE, end.params, end.state)

    return jax.jit(jax.vmap(one))(d_t, keys)


def train_students(model: Model, d_s: dict[str, Any], keys: jax.Array, steps: int) -> Any:
    """Parameters and states of students ``[case, way, rate, seed]``, from one compiled program."""

    def one(d_s, weights, rate, key):
        objective = weighted_sum(
            term("labels", weights[0], losses.cross_entropy, where="labelled"),
            term("teacher", weights[1], losses.soft_targets, temperature=4.0),
        )
        optimizer = optax.adam(rate)
        end, _ = training.run(model, objective, optimizer, d_s, key=key, steps=steps, batch_size=50)
        return end.params, end.state

    many = jax.vmap(one, in_axes=(0, None, None, 0))  # over seeds,
    many = jax.vmap(many, in_axes=(None, None, 0, None))  # rates,
    many = jax.vmap(many, in_axes=(None, 0, None, None))  # ways,
    many = jax.vmap(many, in_axes=(0, None, None, None))  # and cases
    weights, rates = np.array(list(WAYS.values()), np.float32), np.array(RATES, np.float32)
    return jax.device_get(jax.jit(many)(d_s, weights, rates, keys))


def pick(trained: Any, *place: int) -> Any:
    """A selection from stacked models."""
    return jax.tree.map(lambda x: x[place], trained)


def measure(model: Model, trained: Any, rows: Any, teacher: teachers.Teacher) -> dict[str, Any]:
    """Means and standard deviations over seeds, with each model's own teacher, and all values."""
    params, state = trained
    found = evaluation.evaluate_many(
        model, params, state, rows, teacher=teacher, stacked_teacher=True, batch_size=200
    )
    values = {
        "accuracy_percent": [100 * one["accuracy"] for one in found],
        "agreement_percent": [100 * one["agreement"] for one in found],
        "kl_to_teacher": [one["kl_to_teacher"] for one in found],
    }
    return {name: report.mean_std(x) for name, x in values.items()} | {"by_seed": values}


def compare(students: dict[str, Any], d_v: Any, d_p: Any, teacher: teachers.Teacher) -> list[Any]:
    """Each student in each case and way on D_P, with the learning rate that is best on D_V."""
    rows = []
    for name, trained in students.items():
        for i, j in np.ndindex(len(CASES), len(WAYS)):
            tries = [pick(trained, i, j, k) for k in range(len(RATES))]
            on_d_v = [measure(SMALL[name], one, d_v, teacher) for one in tries]
            best = int(np.argmax([found["accuracy_percent"]["mean"] for found in on_d_v]))
            row = {"model": name, "labels": CASES[i], "learns": list(WAYS)[j], "rate": RATES[best]}
            rows.append(row | measure(SMALL[name], tries[best], d_p, teacher))
    return rows


def gains(rows: list[Any]) -> list[Any]:
    """The distilled student's accuracy minus the other's, seed by seed."""
    found = []
    for alone, distilled in zip(rows[::2], rows[1::2], strict=True):
        a, b = (np.array(row["by_seed"]["accuracy_percent"]) for row in (alone, distilled))
        gain = report.interval95(b - a)
        verdict = "helps" if gain["low"] > 0 else "hurts" if gain["high"] < 0 else "unclear"
        row = {"model": alone["model"], "labels": alone["labels"], "gain": gain}
        found.append(row | {"distilling": verdict})
    return found


def costs(trained: dict[str, Any], inputs: Any) -> list[Any]:
    """The cost of each model, and the ratio of the teacher's cost to it."""
    found = {
        name: evaluation.cost({"teacher": LARGE, **SMALL}[name], params, state, inputs, repeats=100)
        for name, (params, state) in trained.items()
    }
    rows = []
    for name, cost in found.items():
        less = evaluation.compression(found["teacher"], cost)
        row = {"model": name, "parameters": cost["parameters"], "smaller": less["parameters"]}
        row |= {"FLOPs": cost["flops"], "fewer": less["flops"], "faster": less["latency_ms"]}
        rows.append(row | {"all": cost})
    return rows


def draw(rows: list[Any], teacher: dict[str, Any]) -> Figure:
    """Errors on D_P, one panel per student."""
    figure = Figure(figsize=(8.0, 3.8), layout="constrained")
    figure.suptitle(f"Errors on new digits: mean and standard deviation of {SEEDS} seeds")
    panels = figure.subplots(1, len(SMALL), sharey=True)
    for axes, name in zip(panels, SMALL, strict=True):
        for way, color, shift in zip(WAYS, ("#E69F00", "#0072B2"), (-0.2, 0.2), strict=True):
            shown = [r for r in rows if (r["model"], r["learns"]) == (name, way)]
            errors = [100 - row["accuracy_percent"]["mean"] for row in shown]
            spread = [row["accuracy_percent"]["std"] for row in shown]
            places = np.arange(len(CASES)) + shift
            axes.bar(places, errors, 0.38, yerr=spread, color=color, capsize=3, label=way)
        error = 100 - teacher["accuracy_percent"]["mean"]
        axes.axhline(error, color="black", linestyle="--", linewidth=1, label="the teacher")
        axes.set_title(name, fontsize="medium")
        axes.set_xticks(range(len(CASES)), CASES)
        axes.set_xlabel("labels of the student's data, $D_S$")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("errors on $D_P$, %")
    panels[-1].legend(frameon=False)
    return figure


def standard(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the result file, with the columns that all result files share first."""
    accuracy = row["accuracy_percent"]
    return {
        "name": f"{row['model']}, labels {row['labels']}, {row['learns']}",
        "mean": accuracy["mean"],
        "std": accuracy["std"],
        "seeds": accuracy["n"],
        "unit": "% accuracy on D_P",
        "better": "higher",
        "published": None,
    } | row


def demand(gained: list[Any]) -> None:
    """Exits with an error if distillation does not help where labels are few or wrong."""
    hard = [x for x in gained if x["labels"] != "all correct"]
    failed = [f"{x['model']}, labels {x['labels']}" for x in hard if x["distilling"] != "helps"]
    if failed:
        raise SystemExit(f"distillation should help here, but does not: {'; '.join(failed)}")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Where a teacher helps, and where it does not.")
    parser.add_argument("--out", type=pathlib.Path, default="out/quickstart", help="output folder")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="fewer for a trial, without the final check"
    )
    args = parser.parse_args(argv)
    start = time.perf_counter()

    d_p, d_v, d_t, d_s = load()
    teacher_keys, student_keys = jax.random.split(jax.random.key(100), (2, SEEDS))
    teacher = train_teachers(d_t, teacher_keys, args.steps)
    # The teacher runs once for all students: its logits become a column of D_S.
    d_s["teacher_logits"] = jax.jit(jax.vmap(lambda t, x: t(x).logits))(teacher, d_s["inputs"])
    d_s = spoil(d_s)
    students = {n: train_students(m, d_s, student_keys, args.steps) for n, m in SMALL.items()}

    trained = teacher.params, teacher.state
    teacher_row = {"model": "teacher", "labels": "all of D_T", "learns": "(the teacher)"}
    teacher_row["accuracy_percent"] = measure(LARGE, trained, d_p, teacher)["accuracy_percent"]
    rows = compare(students, d_v, d_p, teacher)
    gained = gains(rows)
    firsts = {"teacher": pick(trained, 0)} | {n: pick(x, 0, 0, 0, 0) for n, x in students.items()}
    cost = costs(firsts, d_p["inputs"][:200])

    for name in SMALL:
        title = f"{name} on D_P: mean ± standard deviation of {SEEDS} seeds"
        shown = [row for row in rows if row["model"] == name]
        report.show([*shown, teacher_row], title=title, columns=COLUMNS)
    report.show(gained, title="Points of accuracy gained by distillation: mean [95% interval]")
    report.show(cost, title="Cost, and how many times lower it is than the teacher's")

    command = f"python examples/quickstart.py --steps {args.steps}"
    results = report.result_file(__file__, [standard(r) for r in (teacher_row, *rows)], command)
    results |= {"gains": gained, "costs": cost, "seconds": time.perf_counter() - start}
    report.save_json(args.out / "quickstart.json", results)
    report.save_figure(args.out / "quickstart.png", draw(rows, teacher_row), dpi=120)
    print(f"{results['seconds']:.0f} s; results and figure are in {args.out}")
    if args.steps == STEPS:
        demand(gained)
    return results


if __name__ == "__main__":
    main()

"""Medical rules for 68,671 patients: few labels, wrong labels, and a shifted population.

    DISTILL_JAX_DATA=folder-that-holds-cardio python examples/tabular_rules.py

Which way of using rules helps, when, and when do rules hurt? A small MLP learns to predict a
cardiovascular disease from 11 columns of a routine examination: from labels alone ("none"), with a
penalty for violated rules ("encourage"), or with its own predictions, corrected by the rules, as a
teacher ("teach"). "project" corrects the predictions of "none" afterwards, and "enforce" does so
with the hard rule alone. They are compared with logistic regressions that are trained on labels,
initialised at zero or from the rules ("LR", "LR from rules"), and with the rules without any data.

The rules have the thresholds of guidelines. Which rules to use was decided after their precision on
all patients had been seen (stage 1 of hypertension, from 130 or 80, is left out, since here it
holds for four of five patients). Nothing else was tuned: each soft rule has odds of three to one,
and labels and rules have weight 1. One rule is kept although it is wrong here: these smokers are
not ill more often than others. Even the hard rule has exceptions: in these data, a seventh of the
patients with a hypertensive crisis are not ill, yet no model may call them healthy.

- **Labels**: of the 10,000 patients of D_S, 0.2% to 100% are labelled.
- **Noise**: 0, 20% or 40% of those labels are flipped.
- **Population**: D_S is like D_P; or D_S is younger than 50 years, and D_P 55 or older; or D_S is
  drawn as by Seo et al. 2021 (DeepCTRL; threshold and shares as in their code): only 30% of its
  patients have the disease if and only if their systolic pressure is above 129.5, compared with
  about 70% in D_P. What the labels suggest about pressure is then wrong in D_P.

Five seeds draw D_S, D_P (20,000 patients), labels and initial weights; all cells have the same
shapes, so the 240 MLPs are one program. Measured on D_P: accuracy; the share of firing soft rules
that the predicted class violates; the number of patients that violate the hard rule; and, as by
DeepCTRL, the share of patients whose risk does not fall when their systolic pressure rises (by 10
mmHg), although no rule here states that. Columns are standardised over all patients.

Results: "encourage" and "teach" gain 4 to 13 points with 20 or 100 labels, right or wrong; 2 to 10
with more labels of which 40% are wrong; and 11 to 18 in the setting of DeepCTRL. With 1,000 correct
labels, and from young to old, they change nothing significantly. They cost a point if all 10,000
patients are labelled and none or 20% of the labels are wrong: rules of weight 1 only disturb then.
"project" gains less if labels are few, and as much if they are many and misleading. With 20 or 100
labels, and in the setting of DeepCTRL, the rules alone beat everything that learns. Initialising
from rules gains a point with 20 labels, and costs 6 with 10,000 of which 40% are wrong: the weights
of the rules' bodies are then much too large, and training compensates by lowering the weight of the
pressure, until more pressure means less risk. The hard rule, when enforced, is never violated, and
changes accuracy by 0.2 points at most.

About a minute on two cores. The data may not be redistributed; they are read from your folder.

References:
  Whelton et al., 2017 ACC/AHA Guideline for High Blood Pressure in Adults (normal: below 120 and
  80; stage 2: from 140 or 90; crisis: above 180 or 120). National Cholesterol Education Program,
  Third Report (ATP III), 2002: age, cholesterol and smoking as risk factors. World Health
  Organization, Obesity, 2000: body mass index from 30. Seo et al., `Controlling Neural Networks
  with Rule Representations <https://arxiv.org/abs/2106.07804>`_, 2021, and ``healthcare/train.py``
  of ``googleinterns/controllabledl``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax import data, losses, models, report, rules, training
from distill_jax.objectives import term, weighted_sum
from distill_jax.types import Model

SEEDS, STEPS, PATIENTS, NEW = 5, 500, 10_000, 20_000

RULES = """
[p=0.75] stage_2:      sbp >= 140 or dbp >= 90 => disease
[p=0.75] normal:       sbp < 120 and dbp < 80 => healthy
[p=0.75] cholesterol:  cholesterol == 3 => disease
[p=0.75] risk_factors: age >= 55 and cholesterol >= 2 => disease
[p=0.75] young:        age < 45 and cholesterol == 1 and sbp < 140 and dbp < 90 => healthy
[p=0.75] obese:        age >= 55 and weight >= 30 * (height / 100) * (height / 100) => disease
[p=0.75] smoker:       smoke == 1 => disease
[hard]   crisis:       sbp > 180 or dbp > 120 => disease
"""

WEIGHTS = {"none": (0.0, 0.0), "encourage": (1.0, 0.0), "teach": (0.0, 1.0)}
LEVELS = {  # each with the level that it is compared with, the same without rules
    "none": None,
    "encourage": "none",
    "teach": "none",
    "project": "none",
    "enforce": "none",
    "LR": None,
    "LR from rules": "LR",
    "rules alone": "none",
}
MISSING = """\
This example needs the cardiovascular data of DeepCTRL, which may not be redistributed: {error}
Download cardio_train.csv (70,000 rows, separated by semicolons) from Kaggle, where it is called
sulianova/cardiovascular-disease-dataset, rename its pressure columns to sbp and dbp, and put it
into that folder as cardio_train.csv.gz."""


class Cell(NamedTuple):
    """A variant of D_S: its population, the share of labelled rows, and that of flipped labels."""

    population: str
    labels: float
    noise: float

    def __str__(self) -> str:
        noise = f", {self.noise:.0%} wrong" if self.noise else ""
        return f"{self.population}, {100 * self.labels:g}% labels{noise}"


SAME, YOUNG, UNUSUAL = "same", "young to old", "DeepCTRL"
CELLS = [Cell(SAME, *cell) for cell in itertools.product((0.002, 0.01, 0.1, 1.0), (0.0, 0.2, 0.4))]
CELLS += [
    Cell(population, labels, 0.0) for population in (YOUNG, UNUSUAL) for labels in (0.01, 1.0)
]


def load() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The table of patients with plausible pressures, and labels ``[patients]``, 1 for disease."""
    try:
        path = data.folder("cardio") / "cardio_train.csv.gz"
        raw = np.genfromtxt(path, delimiter=";", names=True)
    except FileNotFoundError as error:
        raise SystemExit(MISSING.format(error=error)) from error
    sbp, dbp = raw["sbp"], raw["dbp"]
    raw = raw[(sbp > 60) & (sbp < 250) & (dbp > 30) & (dbp < 200) & (dbp < sbp)]
    assert raw.dtype.names is not None
    table = {name: raw[name] for name in raw.dtype.names if name not in ("id", "cardio")}
    return table | {"age": table["age"] / 365.25}, raw["cardio"].astype(np.int32)


def draw(
    table: dict[str, np.ndarray], labels: np.ndarray, seed: int, patients: int, new: int
) -> dict[str, np.ndarray]:
    """The row numbers of D_S and D_P, and the labels of D_S.

    For each cell, D_S is rows ``[cells, 2 * patients]``: first all rows without labels, then the
    labelled rows, repeated, so that a batch has as many of both.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    d_p, pool = order[:new], order[new:]
    usual = (table["sbp"][pool] > 129.5) == (labels[pool] == 1)
    mixed = np.concatenate(
        [pool[usual][: int(0.3 * patients)], pool[~usual][: patients - int(0.3 * patients)]]
    )
    sources = {
        SAME: pool[:patients],
        YOUNG: pool[table["age"][pool] < 50][:patients],
        UNUSUAL: rng.permutation(mixed),
    }
    if short := [name for name, rows in sources.items() if len(rows) < patients]:
        raise ValueError(f"patients must be fewer: there are fewer than {patients} for {short}")
    flipped = rng.random(patients)
    rows, given = [], []
    for cell in CELLS:
        source = sources[cell.population]
        count = max(2, round(cell.labels * patients))
        seen = np.arange(patients) % count
        noisy = np.where(flipped < cell.noise, 1 - labels[source], labels[source])
        rows.append(np.concatenate([source, source[seen]]))
        given.append(np.concatenate([np.zeros(patients, np.int32), noisy[seen]]))
    counted = [(table["age"][d_p] >= 55) | (cell.population != YOUNG) for cell in CELLS]
    return {
        "rows": np.stack(rows).astype(np.int32),
        "labels": np.stack(given).astype(np.int32),
        "new": d_p.astype(np.int32),
        "counted": np.stack(counted),
    }


def student(schema: rules.Schema) -> Model:
    """An MLP that standardises its inputs, the columns of the schema in the encoded table."""
    columns = [schema.column(name) for name in schema.encoded]
    mean = np.array([[column.mean for column in columns]], np.float32)
    std = np.array([[column.std for column in columns]], np.float32)
    inner = models.mlp([32], num_classes=2)
    k = len(columns)  # what follows is arithmetic of the rules
    return models.from_function(
        lambda key, inputs: inner.init(key, inputs[:, :k])[0],
        lambda params, inputs: inner.predict(params, {}, (inputs[:, :k] - mean) / std),
        classes=schema.classes,
    )


def train(
    model: Model,
    book: rules.Book,
    columns: np.ndarray,
    drawn: dict[str, np.ndarray],
    weights: list[tuple[float, float]],
    steps: int,
) -> Any:
    """Parameters ``[levels, cells, seeds]``, from one compiled program."""
    optimizer = optax.adam(3e-3)

    def one(rows, labels, weights, key):
        objective = weighted_sum(
            term("labels", 1.0, losses.cross_entropy, where="labelled"),
            rules.encourage("encourage", weights[0], book, reads={"columns": "inputs"}),
            rules.teach("teach", weights[1], book, reads={"columns": "inputs"}),
        )
        labelled = jnp.arange(len(rows)) >= len(rows) // 2
        d_s = {"inputs": jnp.asarray(columns)[rows], "labels": labels, "labelled": labelled}
        how = {"key": key, "steps": steps, "batch_size": min(500, len(rows))}
        return training.run(model, objective, optimizer, d_s, **how)[0].params

    many = jax.vmap(one, in_axes=(0, 0, None, 0))  # over seeds,
    many = jax.vmap(many, in_axes=(1, 1, None, None))  # cells,
    many = jax.vmap(many, in_axes=(None, None, 0, None))  # and levels
    keys = jax.random.split(jax.random.key(0), len(drawn["rows"]))
    return jax.jit(many)(drawn["rows"], drawn["labels"], np.array(weights, np.float32), keys)


@functools.partial(jax.jit, static_argnums=0)
def predict(model: Model, params: Any, inputs: Any) -> jax.Array:
    """Logits ``[cells, seeds, patients, classes]``; inputs are ``[seeds, patients, columns]``."""
    many = jax.vmap(lambda p, x: model.predict(p, {}, x).logits)
    return jax.vmap(many, in_axes=(0, None))(params, inputs)


@jax.jit
def measure(
    book: rules.Book, logits: Any, higher: Any, inputs: Any, labels: Any, counted: Any
) -> dict[str, jax.Array]:
    """The metrics, each ``[cells, seeds]``; ``higher`` are the logits at a higher pressure."""

    def one(logits, higher, inputs, labels, counted):
        predicted = logits.argmax(-1)
        violated = rules.violation(book, inputs, jax.nn.one_hot(predicted, 2)) * counted[:, None]
        soft = rules.fires(book, inputs) & ~book.hard[None] & counted[:, None]
        risk, raised = (x[:, 1] - x[:, 0] for x in (logits, higher))
        return {
            "accuracy_percent": 100 * ((predicted == labels) & counted).sum() / counted.sum(),
            "soft_percent": 100 * jnp.where(soft, violated, 0).sum() / soft.sum(),
            "hard": jnp.where(book.hard[None], violated, 0).sum(),
            "monotone_percent": 100 * ((raised >= risk - 1e-5) & counted).sum() / counted.sum(),
        }

    many = jax.vmap(one)
    return jax.vmap(many, in_axes=(0, 0, None, None, 1))(logits, higher, inputs, labels, counted)


def answers(
    book: rules.Book, trained: dict[str, tuple[Model, Any]], inputs: Any
) -> dict[str, jax.Array]:
    """The predictions of each level on D_P: logits ``[cells, seeds, patients, classes]``."""
    found = {level: predict(model, params, inputs) for level, (model, params) in trained.items()}
    model, params = trained["none"]
    correct = jax.jit(jax.vmap(jax.vmap(rules.project, (None, 0, 0)), (None, None, 0)))
    found["project"] = correct(book, inputs, found["none"])
    found["enforce"] = predict(rules.enforce(model, book), params, inputs)
    found["rules alone"] = correct(book, inputs, jnp.zeros_like(found["none"]))
    return found


def tabulate(found: dict[str, dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """One row per cell and level; ``gain`` is over the same model without rules, seed by seed."""
    rows = []
    for (i, cell), (level, without) in itertools.product(enumerate(CELLS), LEVELS.items()):
        values = {name: x[i] for name, x in found[level].items()}
        spread = {name: report.mean_std(x) for name, x in values.items()}
        row = {"name": f"{cell}: {level}", **standard(spread["accuracy_percent"])}
        row |= {"cell": str(cell), **cell._asdict(), "level": level, **spread}
        row["by_seed"] = {"accuracy_percent": values["accuracy_percent"]}
        if without is not None:
            before, after = (found[name]["accuracy_percent"][i] for name in (without, level))
            gain = report.interval95(after - before)
            verdict = "helps" if gain["low"] > 0 else "hurts" if gain["high"] < 0 else "unclear"
            row |= {"gain": gain, "verdict": verdict}
        rows.append(row)
    return rows


def standard(accuracy: dict[str, Any]) -> dict[str, Any]:
    """The columns that the rows of all result files share."""
    return {
        "mean": accuracy["mean"],
        "std": accuracy["std"],
        "seeds": accuracy["n"],
        "unit": "% accuracy on D_P",
        "better": "higher",
        "published": None,
    }


def show(rows: list[dict[str, Any]], measure: str, title: str) -> None:
    """Prints the means of one metric, with one row per cell and one column per level."""
    lines = {str(cell): {"D_S": str(cell)} for cell in CELLS}
    for row in rows:
        lines[row["cell"]][row["level"]] = f"{row[measure]['mean']:.1f}"
    report.show(list(lines.values()), title=title)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Medical rules, used in five ways.")
    parser.add_argument("--out", type=pathlib.Path, default="out/tabular_rules.json")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--patients", type=int, default=PATIENTS, help="size of D_S")
    parser.add_argument("--new", type=int, default=NEW, help="size of D_P")
    args = parser.parse_args(argv)
    start = time.perf_counter()

    table, labels = load()
    schema = rules.infer_schema(
        table, ["healthy", "disease"], kinds=dict.fromkeys(table, "numeric")
    )
    book = rules.bind(RULES, schema)
    columns = rules.encode(book, table)
    checked = rules.check(book, columns, labels=labels).rows
    shown = {"text": "rule", "coverage": "share of patients", "precision": "right there"}
    report.show(checked, title="The rules on all patients", columns=shown)

    drawn = [draw(table, labels, seed, args.patients, args.new) for seed in range(SEEDS)]
    drawn = {name: np.stack([d[name] for d in drawn]) for name in drawn[0]}
    network = student(schema)
    linear = {
        "LR": rules.to_logistic_regression(book, features=("columns",)),
        "LR from rules": rules.to_logistic_regression(book, features=("columns", "bodies")),
    }
    students = train(network, book, columns, drawn, list(WEIGHTS.values()), args.steps)
    trained = {
        level: (network, jax.tree.map(lambda x, i=i: x[i], students))
        for i, level in enumerate(WEIGHTS)
    }
    for level, model in linear.items():
        params = train(model, book, columns, drawn, [WEIGHTS["none"]], args.steps)
        trained[level] = model, jax.tree.map(lambda x: x[0], params)

    inputs = columns[drawn["new"]]
    raised = rules.encode(book, table | {"sbp": table["sbp"] + 10})[drawn["new"]]
    before, after = (answers(book, trained, x) for x in (inputs, raised))
    truth, counted = labels[drawn["new"]], drawn["counted"]
    found = {
        level: jax.device_get(measure(book, before[level], after[level], inputs, truth, counted))
        for level in LEVELS
    }
    rows = tabulate(found)

    show(rows, "accuracy_percent", f"Accuracy on D_P in percent, mean of {SEEDS} seeds")
    show(rows, "soft_percent", "Soft rules violated where they fire, percent")
    show(rows, "hard", "Mean number of patients of D_P that violate the hard rule")
    show(rows, "monotone_percent", "Patients whose risk does not fall with pressure, percent")
    if hurts := [row for row in rows if row.get("verdict") == "hurts"]:
        title = "Where rules hurt: accuracy minus that without rules, mean [95% interval]"
        report.show(hurts, title=title, columns=["cell", "level", "gain"])

    command = f"python examples/tabular_rules.py --steps {args.steps} --patients {args.patients}"
    results = report.result_file(__file__, rows, f"{command} --new {args.new}")
    results |= {"rules": checked, "seconds": time.perf_counter() - start}
    report.save_json(args.out, results)
    print(f"{results['seconds']:.0f} s; results are in {args.out}")
    return results


if __name__ == "__main__":
    main()

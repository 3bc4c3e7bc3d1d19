"""Few labels: consistency between two views, and teachers that average over draws.

    python examples/few_labels.py

Handwritten digits, the 1,797 images of 8 x 8 pixels that come with scikit-learn: 1,200 rows to
train on, 40 of which carry a label, and 597 (D_P) to test on. The students have one hidden layer
with dropout. A batch holds about 96 unlabelled rows and 32 labelled ones, which are repeated, and
the images are shifted at random, by up to a pixel.

- "labels" learns from the labelled rows alone.
- "FixMatch" and "UDA" also learn from the others. Their ``inputs`` are strongly augmented (shifted,
  slanted, stretched, with a square blanked), and the prediction for them is drawn towards the
  student's own for the shifted ones where that is confident: as a pseudo-label, or as sharpened
  targets.
- "itself", "Monte Carlo" and "augmented" are taught by the trained student of "labels", on all
  rows: as it is, as the mean of 8 draws with dropout, or as the mean over 8 random shifts. They
  train twice as long, once as the teacher.

A seed determines which rows are labelled (4 of each class), initial weights and draws, identically
for each student. Results are those of the last step. Thresholds, temperature and the weight of 1
are those of the papers, and nothing was chosen on D_P.

Results: consistency gains 3 points (FixMatch) and 5 (UDA) over labels alone. Distilling a student
into itself gains nothing beyond the spread of the seeds, and an average over dropout or shifts does
not change that.

Prints a table, writes few_labels.json, and takes about a minute on two CPU cores, most of which is
compilation.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from distill_jax import data, losses, models, report, teachers, training
from distill_jax.objectives import term, weighted_sum

STEPS, SEEDS, LABELS, REPEATED = 1000, 5, 40, 10
SIDE, CLASSES, BATCH = 8, 10, 128
STUDENTS = ("labels", "FixMatch", "UDA", "itself", "Monte Carlo", "augmented")
MODEL = models.mlp([128], CLASSES, dropout=0.5)
OPTIMIZER = optax.adam(3e-3)


def load() -> tuple[dict[str, Any], dict[str, Any]]:
    pixels, labels = load_digits(return_X_y=True)
    rows = {"inputs": pixels.astype(np.float32) / 16, "labels": labels.astype(np.int32)}
    train, test = data.split(rows, [1200, 597], key=jax.random.key(0))
    return train, test


def moved(
    key: jax.Array, inputs: jax.Array, *, shift: float, slant: float = 0.0, zoom: float = 0.0
) -> jax.Array:
    """Each image shifted by up to so many pixels, slanted and stretched by up to such shares.

    Rows and columns of pixels are interpolated by matrices, which is fast for images this small.
    """
    n, images = len(inputs), inputs.reshape(-1, SIDE, SIDE)
    drawn = jax.random.uniform(key, (5, n, 1), minval=-1.0, maxval=1.0)
    pixels = jnp.arange(SIDE)[None] - (SIDE - 1) / 2
    down = pixels * (1 + zoom * drawn[0]) + shift * drawn[1]
    right = pixels * (1 + zoom * drawn[2]) + shift * drawn[3]
    right = right[:, None, :] + slant * (drawn[4] * pixels)[:, :, None]
    rows = jax.nn.relu(1 - jnp.abs(down[:, :, None] - pixels[None]))
    columns = jax.nn.relu(1 - jnp.abs(right[..., None] - pixels[None, None]))
    return jnp.einsum("nri,nij,nrcj->nrc", rows, images, columns).reshape(n, -1)


def shifted(key: jax.Array, inputs: jax.Array) -> jax.Array:
    return moved(key, inputs, shift=1.0)


def strong(key: jax.Array, inputs: jax.Array) -> jax.Array:
    """Shifted, slanted and stretched, with a square of 3 x 3 pixels blanked."""
    key_move, key_cut = jax.random.split(key)
    corner = jax.random.randint(key_cut, (2, len(inputs), 1), -2, SIDE)
    pixels = jnp.arange(SIDE)[None, None]
    down, right = (pixels >= corner) & (pixels < corner + 3)
    blank = (down[:, :, None] & right[:, None, :]).reshape(len(inputs), -1)
    return jnp.where(blank, 0.0, moved(key_move, inputs, shift=1.0, slant=0.5, zoom=0.25))


def weak_view(key: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "inputs": shifted(key, batch["inputs"])}


def two_views(key: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
    """Labelled rows are shifted; the others strongly augmented, with the shifted ones as a view."""
    key_weak, key_strong = jax.random.split(key)
    weak, hard = shifted(key_weak, batch["inputs"]), strong(key_strong, batch["inputs"])
    inputs = jnp.where(batch["labelled"][:, None], weak, hard)
    return {**batch, "inputs": inputs, "inputs:weak": weak}


def unlabelled(batch: Any) -> Any:
    return ~batch["labelled"]


OWN_VIEW: dict[str, Any] = {"where": unlabelled, "reads": {"teacher_logits": "view:weak"}}
ON_LABELS = term("labels", 1.0, losses.cross_entropy, where="labelled")
CONSISTENCY = {
    "FixMatch": term("own", 1.0, losses.pseudo_labels, threshold=0.95, **OWN_VIEW),
    "UDA": term("own", 1.0, losses.sharpened_targets, temperature=0.4, threshold=0.8, **OWN_VIEW),
}
AVERAGED = {
    "itself": lambda params, state: teachers.teacher(MODEL, params, state),
    "Monte Carlo": lambda params, state: teachers.monte_carlo(MODEL, params, state),
    "augmented": lambda params, state: teachers.augmented(
        teachers.teacher(MODEL, params, state), shifted
    ),
}


def with_labels(key: jax.Array, rows: dict[str, Any]) -> dict[str, Any]:
    """All rows as unlabelled ones, and LABELS of them, as many per class, REPEATED as labelled."""
    places = jax.random.permutation(key, len(rows["labels"]))
    one_hot = jax.nn.one_hot(jnp.asarray(rows["labels"])[places], CLASSES)
    order = (one_hot.cumsum(0) * one_hot).sum(1)  # the how manieth of its class a row is
    chosen = jnp.tile(places[jnp.argsort(order)[:LABELS]], REPEATED)
    both = {name: jnp.concatenate([x, jnp.asarray(x)[chosen]]) for name, x in rows.items()}
    return {**both, "labelled": jnp.arange(len(both["labels"])) >= len(rows["labels"])}


def trial(key, *, student, steps, train, test):
    """Trains a student and returns its accuracy on D_P."""
    key_labels, key, key_again = jax.random.split(key, 3)
    rows = with_labels(key_labels, train)
    how: dict[str, Any] = {"steps": steps, "batch_size": BATCH}
    if student in CONSISTENCY:
        objective = weighted_sum(ON_LABELS, CONSISTENCY[student])
        end, _ = training.run(MODEL, objective, OPTIMIZER, rows, key=key, augment=two_views, **how)
    else:
        how["augment"] = weak_view
        end, _ = training.run(MODEL, weighted_sum(ON_LABELS), OPTIMIZER, rows, key=key, **how)
    if student in AVERAGED:
        teacher = AVERAGED[student](end.params, end.state)
        objective = weighted_sum(ON_LABELS, term("teacher", 1.0, losses.soft_targets))
        end, _ = training.run(
            MODEL, objective, OPTIMIZER, rows, key=key_again, teachers={"teacher": teacher}, **how
        )
    logits = MODEL.predict(end.params, end.state, test["inputs"]).logits
    return {"accuracy": 100 * jnp.mean(logits.argmax(-1) == test["labels"])}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of each model")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("out"), help="output folder"
    )
    args = parser.parse_args(argv)

    train, test = load()
    rows = training.sweep(
        trial,
        {"student": list(STUDENTS), "steps": [args.steps]},
        key=jax.random.key(1),
        seeds=SEEDS,
        static=("student", "steps"),
        shared={"train": train, "test": test},
        mode="vmap",
    )
    found = training.summary(rows)
    title = f"Accuracy on D_P with {LABELS} labels, %: mean ± standard deviation of {SEEDS} seeds"
    report.show(
        [{name: row[name] for name in ("student", "accuracy")} for row in found], title=title
    )
    result_rows = [
        {
            "name": row["student"],
            **{name: row["accuracy"][name] for name in ("mean", "std")},
            "seeds": row["accuracy"]["n"],
            "unit": f"% accuracy on D_P with {LABELS} labels",
            "better": "higher",
            "published": None,
        }
        for row in found
    ]
    command = f"python examples/few_labels.py --steps {args.steps}"
    results = report.result_file(__file__, result_rows, command)
    report.save_json(args.out / "few_labels.json", results)
    print(f"Results are in {args.out / 'few_labels.json'}")
    return results


if __name__ == "__main__":
    main()

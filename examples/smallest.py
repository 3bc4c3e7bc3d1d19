"""The smallest whole distillation: a large model learns a task and teaches it to a small one.

    python examples/smallest.py

The task has two classes and 1,000 examples in each of three parts. The teacher T, a Flax module,
learns from the labels of D_T. The student S, a logistic regression, learns from T on new data D_S,
whose labels are not used. S predicts the labels of D_P. Takes a few seconds on a CPU.
"""

import argparse

import jax
import optax
from flax import nnx

from distill_jax import losses, models, teachers, term, training, weighted_sum


class Large(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(8, 64, rngs=rngs)
        self.head = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


def draw(key: jax.Array) -> dict[str, jax.Array]:
    """1,000 examples of 8 features. The labels are noisy and not quite linear in the features."""
    inputs_key, labels_key = jax.random.split(key)
    x = jax.random.normal(inputs_key, (1000, 8))
    z = 6 * x[:, 0] - 4 * x[:, 1] + 2 * x[:, 2] * x[:, 3]
    return {"inputs": x, "labels": jax.random.bernoulli(labels_key, jax.nn.sigmoid(z)).astype(int)}


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="A large model teaches a small one.")
    parser.add_argument("--steps", type=int, default=300, help="training steps of each model")
    how = {"steps": parser.parse_args(argv).steps, "batch_size": 100, "optimizer": optax.adam(0.03)}
    keys = jax.random.split(jax.random.key(0), 5)
    d_t, d_s, d_p = draw(keys[0]), draw(keys[1]), draw(keys[2])

    # A large model learns from labels. Together with its trained parameters it is a teacher.
    large = models.from_nnx(Large)
    objective = weighted_sum(term("labels", 1.0, losses.cross_entropy))
    large_end, _ = training.run(large, objective, data=d_t, key=keys[3], **how)
    teacher = teachers.teacher(large, large_end.params, large_end.state)

    # A small model, whose one output z stands for the logits [0, z], learns from the teacher.
    small = models.logistic_regression(num_classes=2)
    objective = weighted_sum(term("teacher", 1.0, losses.soft_targets, temperature=2.0))
    named = {"teacher": teacher}
    small_end, _ = training.run(small, objective, data=d_s, key=keys[4], teachers=named, **how)

    # The small model predicts on its own: the class of the largest logit.
    by_student = small.predict(small_end.params, small_end.state, d_p["inputs"]).logits.argmax(-1)
    by_teacher = teacher(d_p["inputs"]).logits.argmax(-1)
    found = {
        "teacher accuracy": float((by_teacher == d_p["labels"]).mean()),
        "student accuracy": float((by_student == d_p["labels"]).mean()),
        "agreement": float((by_student == by_teacher).mean()),
    }
    print(", ".join(f"{name} {share:.1%}" for name, share in found.items()))
    return found


if __name__ == "__main__":
    main()

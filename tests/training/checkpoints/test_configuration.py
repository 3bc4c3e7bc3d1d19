"""What makes a run that run: each difference by name, and the same strings in every process."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import models, rules, teachers
from distill_jax._fingerprints import digest
from distill_jax.losses import cross_entropy, forward_kl, soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import Recipe
from distill_jax.training._preparing import Stream, prepared
from distill_jax.training.checkpoints._configuration import differences, other_versions

ROOT = pathlib.Path(__file__).parents[3]
KEY = jax.random.key(0)
STUDENT = models.mlp([4], 3, dropout=0.1)
ADAM = optax.adam(1e-2)
BATCH = {"inputs": np.zeros((8, 5), np.float32), "labels": np.zeros(8, np.int32)}


def wise(seed=0, width=3):
    model = models.mlp([width], 3)
    return {"teacher": teachers.teacher(model, *model.init(jax.random.key(seed), BATCH["inputs"]))}


def times(factor):
    one = wise()["teacher"]
    return {
        "teacher": dataclasses.replace(one, params=jax.tree.map(lambda x: factor * x, one.params))
    }


def objective(temperature=4.0, weight=0.5, loss=soft_targets, **options):
    return weighted_sum(
        term("labels", weight, cross_entropy, **options),
        term("teacher", lambda step: 0.5, loss, temperature=temperature),
    )


def found(
    objective=objective(),  # noqa: B008
    teachers=None,
    *,
    student=STUDENT,
    optimizer=ADAM,
    batch=BATCH,
    key=KEY,
    decay=None,
    augment=None,
    microbatches=1,
    **settings,
):
    ready = prepared(
        student,
        objective,
        optimizer,
        Stream([batch]),
        key=key,
        teachers=wise() if teachers is None else teachers,
        average_decay=decay,
        augment=augment,
        microbatches=microbatches,
    )
    return ready.configuration(key, **settings)


@pytest.fixture(scope="module")
def base():
    return found(batch_size=8)


def narrow(batch):
    return {**batch, "labels": batch["labels"].astype(np.int8)}


def twice(key, batch):
    return {**batch, "inputs": 2 * batch["inputs"]}


def scaled(student_logits, teacher_logits, temperature=1.0):
    return 2 * soft_targets(student_logits, teacher_logits, temperature=temperature)


def injected(rate):
    return optax.inject_hyperparams(optax.adam)(learning_rate=rate)


SCHEMA = rules.Schema((rules.Column("size"),), ("cat", "dog", "cow"))
HIDDEN = "the compiled step differs in something that is not listed: a learning rate"
LABELLED = BATCH | {"labelled": np.ones(8, bool)}
CHANGES = [
    ("objective/teacher/options/temperature was 4.0, is 2.0", {"objective": objective(2.0)}),
    ("objective/labels/weight was 0.5, is 0.75", {"objective": objective(weight=0.75)}),
    (
        "objective/labels/where was None, is 'labelled'",
        {"objective": objective(where="labelled"), "batch": LABELLED},
    ),
    (
        "objective/teacher/loss was 'distill_jax.losses.divergences.soft_targets', is ",
        {"objective": objective(loss=scaled)},
    ),
    (
        "objective/terms was ['labels', 'teacher'], is ['labels']",
        {"objective": weighted_sum(objective().terms[0])},
    ),
    (
        "student/params/hidden/0/kernel was 'float32[5, 4]', is 'float32[5, 6]'",
        {"student": models.mlp([6], 3)},
    ),
    (
        "optimizer/0/nu/head/bias was 'float32[3]', is missing now",
        {"optimizer": optax.sgd(1e-2, momentum=0.9)},
    ),
    (
        "batch/labels was 'int32[batch]', is 'int8[batch]'",
        {"batch": BATCH | {"labels": np.zeros(8, np.int8)}},
    ),
    ("key was ['threefry2x32', [0, 0]], is ['threefry2x32', [0, 1]]", {"key": jax.random.key(1)}),
    ("teachers/teacher/hash was", {"teachers": wise(1)}),
    ("teachers/teacher/hash was", {"teachers": times(-1.0)}),
    ("teachers/teacher/hash was", {"teachers": times(4.0)}),
    (
        "teachers/teacher/params/head/kernel was 'float32[3, 3]', is 'float32[4, 3]'",
        {"teachers": wise(width=4)},
    ),
    (
        "teachers/more/hash was missing, is",
        {"teachers": wise() | {"more": wise()["teacher"]}},
    ),
    ("average was None, is 0.5", {"decay": 0.5}),
    ("augment was None, is", {"augment": lambda key, batch: batch}),
    ("microbatches was 1, is 2", {"microbatches": 2}),
    ("settings/batch_size was 8, is 4", {"batch_size": 4}),
    (HIDDEN, {"optimizer": optax.adam(2e-2)}),
]


@pytest.mark.quick
@pytest.mark.parametrize(
    "line, change", CHANGES, ids=[f"{i} {line[:40]}" for i, (line, _) in enumerate(CHANGES)]
)
def test_every_difference_is_named(base, line, change):
    lines = differences(base, found(**{"batch_size": 8, **change}))
    assert any(text.startswith(line) for text in lines), lines


def test_the_same_run_written_down_again_is_the_same(base):
    student = models.mlp([4], 3, dropout=0.1)
    again = found(objective(4), wise(), student=student, optimizer=optax.adam(1e-2), batch_size=8)
    assert differences(base, again) == []
    assert again == base == json.loads(json.dumps(base))


def test_what_lies_in_the_start_or_in_a_constant_shows():
    """A rate that the optimizer keeps in its state, and an array in a loss, are in no list."""
    slow, fast = found(optimizer=injected(1e-2)), found(optimizer=injected(2e-2))
    assert differences(slow, fast)[0].startswith(HIDDEN) and len(differences(slow, fast)) == 1

    def with_prior(prior):
        prior = jnp.asarray([prior])

        @jax.jit
        def loss(student_logits, labels):
            return cross_entropy(student_logits + prior, labels)

        return found(weighted_sum(term("labels", 1.0, loss)))

    even, odd = with_prior([0.0, 0.0, 0.0]), with_prior([0.0, 0.0, 1.0])
    assert differences(even, odd)[0].startswith(HIDDEN)
    assert differences(even, with_prior([0.0, 0.0, 0.0])) == []


def test_names_from_a_file_command_no_terminal():
    assert differences({"a\x1b[2J": 1}, {}) == ["a\\x1b[2J was 1, is missing now"]


def test_programs_of_other_versions_are_not_compared(base):
    other = base | {"program": "else", "versions": base["versions"] | {"jax": "0.0.1"}}
    assert differences(base, other) == []
    assert differences(base, other | {"versions": base["versions"]})[0].startswith(HIDDEN)


def test_other_versions_are_told_of(base):
    older = base["versions"] | {"jax": "0.0.1"}
    jax_ = f"jax was 0.0.1, is {jax.__version__}"
    assert other_versions(base, base) == ""
    same_step = other_versions(base | {"versions": older}, base)
    assert same_step == f"{jax_}, so numbers may differ in their last bits"
    text = other_versions(base | {"versions": older, "program": "else"}, base)
    assert text.startswith(same_step) and "cannot be compared" in text and "learning rate" in text
    for nothing in ({}, {"versions": None}, {"versions": [1]}):
        assert "jax was not noted" in other_versions(nothing, base)


def test_settings_of_any_kind(base):
    def of(**settings):
        return found(batch_size=8, **settings)["settings"]

    key = jax.random.key(3)
    values = {
        "steps": np.int64(7), "rate": np.float32(0.5), "on": np.bool_(True), "zero": np.array(3),
        "bad": np.float32(np.nan), "worse": float("inf"), "some": [np.int8(1), (2, None)],
        "nested": {"a": {"b": jnp.bfloat16(1.5)}}, "row": np.arange(3), "text": np.str_("x"),
        "dtype": jnp.bfloat16, "other": np.float32, "third": jnp.dtype("int8"),
        "policy": jax.checkpoint_policies.dots_saveable, "class": Recipe, "drawn": key,
    }  # fmt: skip
    settings = of(**values)
    assert settings == json.loads(json.dumps(settings)) == of(**values)
    policy, drawn = settings.pop("policy"), settings.pop("drawn")
    assert settings.pop("data") is None and settings.pop("initial") is None
    assert settings.pop("start") is None
    assert policy.startswith("jax.") and " at 0x" not in policy
    assert drawn == f"key<fry>[] with hash {digest(key)}"
    assert settings == {
        "batch_size": 8, "steps": 7, "rate": 0.5, "on": True, "zero": 3, "bad": "nan",
        "worse": "inf", "some": [1, [2, None]], "nested": {"a": {"b": 1.5}}, "row": [0, 1, 2],
        "text": "x", "dtype": "bfloat16", "other": "float32", "third": "int8",
        "class": "distill_jax.training.step.recipe.Recipe",
    }  # fmt: skip


def hardest(student_logits, labels, *, k, activation):
    rows = activation(student_logits)
    return cross_entropy(jax.lax.top_k(rows, 3)[0], labels) / k


def test_static_options_and_weights_of_rows_are_listed():
    def term_of(k, activation, **weights):
        options = {"k": k, "activation": activation, "static": ("k", "activation"), **weights}
        own = weighted_sum(term("hard", 1.0, hardest, **options))
        batch = BATCH | {"trust": np.ones(8, np.float32)}
        return found(own, {}, batch=batch)

    first = term_of(2, jnp.tanh)
    assert first["objective"]["hard"]["settings"]["k"] == 2
    assert differences(first, term_of(3, jnp.tanh)) == ["objective/hard/settings/k was 2, is 3"]
    (line,) = differences(first, term_of(2, jax.nn.relu))
    assert line.startswith("objective/hard/settings/activation was '") and "relu" in line
    weighed = term_of(2, jnp.tanh, sample_weight="trust", divide_by="rows")
    assert differences(first, weighed) == [
        "objective/hard/sample_weight was missing, is 'trust'",
        "objective/hard/divide_by was missing, is 'rows'",
    ]


def test_rules_are_written_out():
    def of(text):
        book = rules.bind(text, SCHEMA)
        batch = BATCH | {"columns": np.zeros((8, 1), np.float32)}
        return found(weighted_sum(rules.encourage("rules", 0.5, book)), batch=batch)

    before = of("[w=2] size > 1 => cow")
    line, *_ = differences(before, of("[w=2] size > 1 => dog"))
    assert line.startswith("objective/rules/options/rules/rules was ['") and "cow" in line
    lines = differences(before, of("[w=3] size > 1 => cow"))
    assert "objective/rules/options/rules/strengths was [2.0], is [3.0]" in lines
    assert differences(before, of("[w=2] size > 1 => cow")) == []


def test_many_numbers_are_a_hash():
    def of(last):
        prior = jnp.zeros(100).at[-1].set(last)
        return found(weighted_sum(term("labels", 1.0, prior_loss, prior=prior)))

    (line,) = differences(of(1.0), of(2.0))
    assert line.startswith("objective/labels/options/prior was 'float32[100] with hash")


def prior_loss(student_logits, labels, *, prior):
    return cross_entropy(student_logits + prior[None, :3], labels)


def test_numbers_that_json_has_no_word_for():
    def of(value):
        return found(objective(temperature=value, loss=scaled_by_nothing))

    assert differences(of(np.nan), of(np.nan)) == []
    assert differences(of(np.inf), of(1.0)) == [
        "objective/teacher/options/temperature was 'inf', is 1.0"
    ]


def scaled_by_nothing(student_logits, teacher_logits, *, temperature):
    return forward_kl(student_logits, teacher_logits)


IN_A_PROCESS = """
import dataclasses, json
import jax, jax.numpy as jnp, numpy as np, optax
from distill_jax import models, rules, teachers
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.training._preparing import Stream, prepared

@dataclasses.dataclass(frozen=True)
class Threshold:
    at: int
    def __call__(self, step):
        return jnp.where(step > self.at, 1.0, 0.5)
    __repr__ = object.__repr__  # holds an address

def init(key, context):
    return {"scale": jnp.ones(3)}, {"seen": jnp.zeros(())}

@jax.custom_jvp
def double(x):
    return 2 * x

double.defjvp(lambda primals, tangents: (2 * primals[0], 2 * tangents[0]))

def own(params, state, context, *, mode):
    rows = double(context.student.logits * params["scale"][None]).sum(-1)
    return rows, {"seen": state["seen"] + 1}

batch = {
    "inputs": np.zeros((8, 5), np.float32), "labels": np.zeros(8, np.int32),
    "columns": np.zeros((8, 1), np.float32), "labelled": np.ones(8, bool),
}
schema = rules.Schema((rules.Column("size"),), ("cat", "dog", "cow"))
objective = weighted_sum(
    term("labels", Threshold(3), cross_entropy, where="labelled"),
    term("teacher", 0.5, soft_targets, temperature=lambda step: 4.0),
    term("own", 1.0, own, init=init, mode="sum"),
    rules.encourage("rules", 0.5, rules.bind("[w=2] size > 1 => cow", schema)),
)
model = models.mlp([3], 3, dropout=0.1)
wise = {"big": teachers.teacher(model, *model.init(jax.random.key(0), batch["inputs"]))}
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
key = jax.random.key(0)
ready = prepared(
    models.mlp([4], 3, dropout=0.1), objective, optimizer, Stream([batch]), key=key,
    teachers=wise, average_decay=0.5,
)
print(json.dumps(ready.configuration(key, batch_size=8)))
"""


def test_two_processes_find_the_same():
    """Nothing depends on addresses, or on the order in which a process walks a set."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", IN_A_PROCESS],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    (first, errors), (second, _) = (child.communicate(timeout=300) for child in children)
    assert first == second and "terms" in json.loads(first)["objective"], errors
    assert " at 0x" not in first

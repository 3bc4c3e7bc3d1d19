"""Rules as logistic regression: its start says what the rules say."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import training
from distill_jax.losses import cross_entropy
from distill_jax.objectives import term, weighted_sum
from distill_jax.rules import (
    Column,
    RuleError,
    Schema,
    bind,
    encode,
    energies,
    fires,
    pull_to_start,
    to_logistic_regression,
)
from tests.rules import small_books

COLUMNS = (
    Column("age", mean=50.0, std=10.0),
    Column("a", "boolean"),
    Column("b", "boolean"),
    Column("sex", "categorical", ("F", "M")),
)
TWO = Schema(COLUMNS, ("well", "sick"))
THREE = Schema(COLUMNS, ("x", "y", "z"), target="kind")
LABELS = Schema(COLUMNS, ("x", "y", "z"), exclusive=False)
ROWS = np.array(
    list(itertools.product([40.0, 70.0, np.nan], [0, 1, np.nan], [0, 1, np.nan], [0, 1, np.nan])),
    np.float32,
)
WHOLE = ROWS[~np.isnan(ROWS).any(1)]


def start(model, inputs=ROWS):
    params, state = model.init(jax.random.key(0), inputs)
    logits = small_books.quick(model.predict)(params, state, jnp.asarray(inputs)).logits
    return params["linear"], np.asarray(logits)


RULES = {
    TWO: """
        [w=2]    age > 60 and a => sick
        [p=0.8]  old: age > 60 or not b => not sick
        [w=-0.5] sex == 'F' => well
        [learn]  b => sick
        [w=1.5]  sick => old_enough
        old_enough :- age > 30, not b.
        [w=3]    sick <=> a
    """,
    THREE: """
        [w=2]    age > 60 and a => x
        [w=1]    b => not y
        [p=0.9]  sex == 'M' => x or z
        [w=0.7]  a => kind in ['y', 'z']
        [w=0.3]  x or not b
        [w=1.1]  (a => x) and (b => not z)
    """,
}


@pytest.mark.quick
@pytest.mark.parametrize("schema", RULES, ids=["two", "three"])
def test_start_is_minus_the_energies_up_to_a_shift(schema: Schema) -> None:
    model = to_logistic_regression(RULES[schema], schema)
    want = -np.asarray(small_books.quick(energies)(bind(RULES[schema], schema), ROWS))
    _, got = start(model)
    np.testing.assert_allclose(got - got[:, :1], want - want[:, :1], atol=1e-5)


def test_a_body_adds_its_log_odds_to_what_the_head_says() -> None:
    rules = "[w=2] a => x\n[w=3] b => not y\n[hard] sex == 'F' => z\n[learn] age > 60 => x"
    linear, _ = start(to_logistic_regression(rules, THREE, features=["bodies"], omega=5.0))
    np.testing.assert_allclose(linear["kernel"], [[2, 0, 0], [0, -3, 0], [0, 0, 5], [0, 0, 0]])
    np.testing.assert_array_equal(linear["bias"], np.zeros(3))
    with_labels = to_logistic_regression(
        "[w=2] a => x and not y\n[w=1] not z", LABELS, features="bodies"
    )
    linear, logits = start(with_labels)
    np.testing.assert_allclose(linear["kernel"], [[2, -2, 0], [0, 0, -1]])
    np.testing.assert_allclose(logits[:, 2], -1.0)
    np.testing.assert_allclose(logits[:, 0], 2.0 * (ROWS[:, 1] == 1))


@pytest.mark.parametrize(
    ("rule", "want", "gain"),
    [
        ("age > 60 and a and not b => sick", lambda age, a, b, sex: age > 60 and a and not b, 1),
        ("not a and not b => sick", lambda age, a, b, sex: not a and not b, 1),
        ("not (a or not b) => well", lambda age, a, b, sex: not a and b, -1),
        ("p and a => not sick\np :- not q.\nq :- b.", lambda age, a, b, sex: not b and a, -1),
    ],
)
def test_a_conjunction_is_one_unit_over_atoms(rule: str, want, gain: int) -> None:
    model = to_logistic_regression(rule, TWO, features=["atoms", "columns"], omega=6.0)
    linear, logits = start(model, WHOLE)
    holds = np.array([want(age, *map(int, rest)) for age, *rest in WHOLE])
    net = gain * (logits[:, 1] - logits[:, 0])
    np.testing.assert_array_equal(net > 0, holds)
    names = model.layout.sources["linear"]
    weights = dict(zip(names, gain * np.asarray(linear["kernel"][:, 0]), strict=False))
    positive = sum(w == 6 for w in weights.values())
    assert gain * linear["bias"][0] == pytest.approx(-(positive - 0.5) * 6)
    assert set(weights.values()) <= {0.0, 6.0, -6.0}
    np.testing.assert_array_equal(linear["kernel"][:5], 0.0)  # the columns


def test_an_atom_over_a_missing_value_holds_neither_as_it_is_nor_negated() -> None:
    _, logits = start(to_logistic_regression("a and not b => sick", TWO, features="atoms"))
    known = (ROWS[:, 1] == 1) & (ROWS[:, 2] == 0)
    np.testing.assert_array_equal(logits.argmax(-1), known)


def test_columns_are_standardised_within_the_model() -> None:
    model = to_logistic_regression("a => sick", TWO, features=["columns"])
    assert model.layout.sources["linear"] == ("age", "a", "b", "sex == 'F'", "sex == 'M'")
    params, state = model.init(jax.random.key(0), ROWS)
    params["linear"]["kernel"] = jnp.array([[1.0], [10.0], [100.0], [1000.0], [10000.0]])
    inputs = encode(bind("a => sick", TWO), {"age": [70, None], "a": [1, 0], "b": [None, 1],
                                             "sex": ["M", None]})  # fmt: skip
    logits = small_books.quick(model.predict)(params, state, jnp.asarray(inputs)).logits
    np.testing.assert_allclose(logits[:, 1], [2 + 10 + 10000, 100])


def test_training_starts_from_the_rules_and_can_be_pulled_back() -> None:
    model = to_logistic_regression("[w=2] a => sick", TWO)
    data = {"inputs": WHOLE, "labels": (WHOLE[:, 1] == 0).astype(np.int32)}  # the rule is wrong
    objective = weighted_sum(term("labels", 1.0, cross_entropy))

    def train(strength):
        optimizer = optax.chain(pull_to_start(strength), optax.sgd(0.5))
        end, metrics = training.run(
            model, objective, optimizer, data, key=jax.random.key(0), steps=40, batch_size=16
        )
        return end.params["linear"], metrics["loss"]

    end, loss = jax.jit(jax.vmap(train))(jnp.array([0.0, 0.1, 2.0]))
    first, logits = start(model, WHOLE)
    want = cross_entropy(jnp.asarray(logits), jnp.asarray(data["labels"])).mean()
    np.testing.assert_allclose(loss[:, 0], float(want), rtol=1e-5)
    moved = np.linalg.norm(end["kernel"] - np.asarray(first["kernel"])[None], axis=(1, 2))
    assert moved[0] > 1.5 * moved[1] > 3 * moved[2]


def test_rows_of_the_kernel_are_named_and_grouped_by_rule() -> None:
    model = to_logistic_regression("[w=2] r: a and not b => x\na => not y", THREE)
    names = model.layout.sources["linear"]
    units = {unit.name: [names[i] for i in unit.rows] for unit in model.layout.units}
    assert units == {"r (x)": ["r", "a", "b", "unknown: b"], "a => not y (y)": ["a => not y", "a"]}
    assert [unit.column for unit in model.layout.units] == [0, 1]


@pytest.mark.parametrize(
    ("rules", "schema", "features", "message"),
    [
        ("a => sick\nb => sick", TWO, "atoms", "atoms alone can only represent one rule per class"),
        ("a or b => sick", TWO, "atoms", "represent a conjunction of atoms"),
        ("sick <=> a", TWO, "atoms", "atoms alone can only represent"),
        ("x => y", LABELS, "bodies", "x is predicted"),
        ("a => x or y", LABELS, "bodies", "labels and negated labels"),
        (
            "a => view(v).sick",
            Schema(COLUMNS, TWO.classes, views=("v",)),
            "bodies",
            "a single view",
        ),
    ],
)
def test_refuses_rules_that_it_cannot_say(rules, schema, features, message) -> None:
    with pytest.raises(RuleError, match=message):
        to_logistic_regression(rules, schema, features=features)


@pytest.mark.usefixtures("library_errors")
def test_refuses_arguments_that_do_not_fit() -> None:
    for features in ((), ("atoms", "atoms"), ("words",), "word"):
        with pytest.raises(ValueError, match="features must be one or more of"):
            to_logistic_regression("a => sick", TWO, features=features)
    with pytest.raises(TypeError, match="needs a schema"):
        to_logistic_regression("a => sick")


@pytest.mark.parametrize(
    "text",
    ["score(2*(age >= 60), a, -0.5*b) >= 1 => sick", "score(2*(age >= 60), a) < 1.5 => sick"],
)
def test_a_score_has_its_points_as_weights(text: str) -> None:
    book = bind(text, TWO)
    model = to_logistic_regression(book, features="atoms")
    params, state = model.init(jax.random.key(0), ROWS)
    kernel = dict(
        zip(model.layout.sources["linear"], params["linear"]["kernel"][:, 0], strict=True)
    )
    sign = 1 if ">=" in text.split(")")[-1] else -1
    assert kernel["age >= 60"] == 2 * kernel["a"] == (16 if sign > 0 else -8)
    logits = model.predict(params, state, ROWS).logits[:, 1]
    fired = small_books.quick(fires)(book, ROWS)[:, 0]
    np.testing.assert_array_equal(logits > 0, fired)
    assert len(params["linear"]["bias"]) == 1 and (abs(logits) >= 2).all()  # half a point, times 4


def test_a_score_of_predicates_is_one_atom() -> None:
    text = "old :- age >= 60.\nscore(2*old, a and b) == 2 => sick"
    model = to_logistic_regression(text, TWO, features="atoms")
    assert model.layout.sources["linear"] == ("score(2*old, a and b) == 2",)

"""Networks from Horn clauses: what the theory decides, what its weights are, what is refused."""

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
from distill_jax.rules import Column, RuleError, Schema, bind, encode, to_network
from tests.rules import small_books

BITS = tuple(Column(name, "boolean") for name in "abcd")
BINARY = Schema(BITS, ("no", "yes"))
EVERY = np.array(list(itertools.product([0.0, 1.0], repeat=4)), np.float32)
NAN = np.nan

THEORIES = {
    "yes :- a, b, not c.": lambda a, b, c, d: a and b and not c,
    "yes :- not a, not b.": lambda a, b, c, d: not a and not b,
    "yes :- a.   yes :- not b.   yes :- c, d.": lambda a, b, c, d: a or not b or (c and d),
    "yes :- p, not q.   p :- a, b.   p :- c.   q :- r, d.   r :- not a.": (
        lambda a, b, c, d: ((a and b) or c) and not (not a and d)
    ),
    "yes :- a, (b or not (c and d)).": lambda a, b, c, d: a and (b or not (c and d)),
    "yes :- not (not (a)), p.   p :- p2.   p2 :- p3, b.   p3 :- c.   p3 :- d.": (
        lambda a, b, c, d: a and b and (c or d)
    ),
    "yes :- a, a, p.   p :- exactly_one(b, c, d).": lambda a, b, c, d: a and b + c + d == 1,
    "yes :- p, not d.   p :- score(2*a, b, -0.5*(not c)) > 1.   p :- score(q, a) >= 2.   q :- c.": (
        lambda a, b, c, d: (2 * a + b - (not c) / 2 > 1 or c + a >= 2) and not d
    ),
    "yes :- not score(a, 3*(b and c)) < 2.": lambda a, b, c, d: a + 3 * (b and c) >= 2,
    "a => yes unless b or c": lambda a, b, c, d: a and not (b or c),
    "a and not b => yes": lambda a, b, c, d: a and not b,
    "no :- a, not d.": lambda a, b, c, d: not (a and not d),
    "yes :- p.   no :- not p.   p :- a.   p :- b, c.": lambda a, b, c, d: a or (b and c),
}


def predict(model, inputs, seed=0):
    @small_books.quick
    def run(key, inputs):
        return model.predict(*model.init(key, inputs), inputs).logits

    return np.asarray(run(jax.random.key(seed), jnp.asarray(inputs)))


@pytest.mark.parametrize("theory", THEORIES)
def test_decides_every_assignment_as_the_theory_does(theory: str) -> None:
    logits = predict(to_network(theory, BINARY, omega=30.0), EVERY)
    want = [bool(THEORIES[theory](*map(int, row))) for row in EVERY]
    np.testing.assert_array_equal(logits.argmax(-1), want)
    assert np.abs(logits[:, 1] - logits[:, 0]).min() > 10  # not by a hair


@pytest.mark.quick
def test_weights_are_those_of_towell_and_shavlik() -> None:
    theory = "yes :- p, not q.   p :- a, b, not c.   p :- d.   q :- c.   q :- not d."
    model = to_network(theory, BINARY, omega=4.0, noise=0.0)
    params, _ = model.init(jax.random.key(0), EVERY)

    def weights(name):
        unit = next(unit for unit in model.layout.units if unit.name == name)
        layer = params[unit.layer]
        column = map(float, layer["kernel"][:, unit.column])
        sources = zip(model.layout.sources[unit.layer], column, strict=True)
        own = {x: w for x, w in sources if w and not x.startswith("unknown")}
        return own, float(layer["bias"][unit.column])

    assert weights("p/1") == ({"a": 4.0, "b": 4.0, "c": -4.0}, -6.0)  # and: -(2 - 1/2) 4
    assert weights("p") == ({"p/1": 4.0, "d": 4.0}, -2.0)  # or: -1/2 4
    assert weights("q") == ({"c": 4.0, "d": -4.0}, 2.0)  # or with one negated
    assert weights("yes") == ({"p": 4.0, "q": -4.0}, -2.0)
    assert [unit.name for unit in model.layout.units] == ["p/1", "q", "p", "yes"]


def test_other_links_start_near_zero_and_by_key() -> None:
    model = to_network("yes :- p, a.   p :- b, c.", BINARY, omega=4.0, noise=0.05)
    plain = to_network("yes :- p, a.   p :- b, c.", BINARY, omega=4.0, noise=0.0)
    start = small_books.quick(model.init)
    first, again, other = (
        start(jax.random.key(seed), EVERY)[0]["level1"]["kernel"] for seed in (0, 0, 1)
    )
    exact = plain.init(jax.random.key(0), EVERY)[0]["level1"]["kernel"]
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    assert 0 < np.abs(first - exact).min() and np.abs(first - exact).max() <= 0.05 + 1e-6
    assert model.layout.sources["level2"] == ("a", "b", "c", "d", "p")  # inputs and level below


def test_features_are_in_the_model() -> None:
    columns = (
        Column("age", mean=50.0, std=10.0),
        Column("sex", "categorical", ("F", "M")),
        Column("note", "text"),
    )
    schema = Schema(columns, ("no", "yes"))
    theory = 'yes :- age > 60, sex=F.   yes :- note matches r"pain", sex != "F", not age > 90.'
    book = bind(theory, schema)
    table = {
        "age": [70.0, 70.0, 50.0, 50.0, 95.0, None, None],
        "sex": ["F", "M", "M", "F", "M", "M", "F"],
        "note": ["", "", "pain", "pain", "pain", "pain", None],
    }
    inputs = encode(book, table)
    model = to_network(book, omega=30.0)
    # An atom over a missing age does not hold, and neither does its negation.
    np.testing.assert_array_equal(predict(model, inputs).argmax(-1), [1, 0, 1, 0, 0, 0, 0])
    names = model.layout.sources["level1"]
    assert names[:3] == ("age", "sex == 'F'", "sex == 'M'")
    assert names.count("sex == 'F'") == 1 and "unknown: age > 90" in names


def test_not_before_a_predicate_means_that_nothing_shows_it() -> None:
    model = to_network("yes :- not p.   p :- a.   p :- b.", BINARY, omega=30.0)
    rows = np.array([[NAN, 0, 0, 0], [NAN, 1, 0, 0]], np.float32)
    np.testing.assert_array_equal(predict(model, rows).argmax(-1), [1, 0])


def test_several_classes_are_a_unit_each() -> None:
    schema = Schema(BITS, ("x", "y", "z"))
    logits = predict(to_network("x :- a, b.   y :- not a.", schema, omega=30.0), EVERY)
    want = [0 if a and b else 1 if not a else 2 for a, b, _, _ in EVERY]
    np.testing.assert_array_equal(logits.argmax(-1), want)


def test_labels_may_depend_on_labels() -> None:
    schema = Schema(BITS, ("animal", "cat", "dog"), exclusive=False)
    model = to_network("animal :- cat.  animal :- d.  cat :- a, not b.", schema, omega=30.0)
    logits = predict(model, EVERY)
    cat = np.array([bool(a and not b) for a, b, _, _ in EVERY])
    np.testing.assert_array_equal(logits[:, 1] > 0, cat)
    np.testing.assert_array_equal(logits[:, 0] > 0, cat | (EVERY[:, 3] > 0))
    assert np.abs(logits[:, 2]).max() < 0.1  # the theory says nothing of dogs


def test_is_trained_by_run_under_vmap() -> None:
    model = to_network("yes :- a, b.", BINARY)
    labels = (EVERY[:, 0] * EVERY[:, 1] * (1 - EVERY[:, 2])).astype(np.int32)  # and not c
    data = {"inputs": EVERY, "labels": labels}
    objective = weighted_sum(term("labels", 1.0, cross_entropy))

    def train(key):
        end, metrics = training.run(
            model, objective, optax.adam(0.1), data, key=key, steps=60, batch_size=16
        )
        return model.predict(end.params, end.state, EVERY).logits, metrics["loss"]

    logits, loss = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 3))
    np.testing.assert_array_equal(logits.argmax(-1), np.tile(labels, (3, 1)))
    assert (loss[:, -1] < loss[:, 0] / 3).all()


def test_a_predicate_may_be_named_like_a_formula_or_a_clause() -> None:
    """The text of a formula, or the name of a clause, is not the name of a predicate."""
    schema = Schema(BITS, ("no", "yes"))
    plain = """
    yes :- (b or c), p.   p :- a, d.   p :- a, q.   q :- b.
    """
    odd = """
    no_2: yes :- (b or c), `b or c`.   yes: `b or c` :- a, d.   `b or c` :- a, `b or c/1`.
    `b or c/1` :- b.
    """
    inputs = jnp.asarray(np.indices((2,) * 4).reshape(4, -1).T, jnp.float32)
    logits = []
    for theory in (plain, odd):
        model = to_network(theory, schema, omega=20.0, noise=0.0)
        logits.append(model.predict(*model.init(jax.random.key(0), inputs), inputs).logits)
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-4)
    names = [unit.name for unit in model.layout.units]
    assert len(set(names)) == len(names) and {"yes", "b or c", "b or c/1"} <= set(names)


def test_the_program_does_not_grow_with_the_theory() -> None:
    columns = tuple(Column(f"x{i}", "boolean") for i in range(60))
    schema = Schema(columns, ("no", "yes"))

    def size(clauses):
        theory = "\n".join(f"yes :- x{i}, not x{i + 1}, x{i + 3}." for i in range(clauses))
        model = to_network(theory, schema)
        inputs = jnp.zeros((2, 60))
        params, state = jax.eval_shape(model.init, jax.random.key(0), inputs)
        return len(jax.make_jaxpr(model.predict)(params, state, inputs).eqns)

    assert size(50) == size(5)


@pytest.mark.parametrize(
    ("theory", "message"),
    [
        ("yes :- p.   p :- q.   q :- p.", "circle: p :- q :- p"),
        ("yes :- contac.   contact :- a.", "did you mean contact"),
        (
            "yes :- a.   yess :- b.",
            "'yess' is not a class, and no clause uses it; did you mean 'yes'",
        ),
        ("p :- a.", "no clause says anything about a class"),
        ("yes :- .", "empty body"),
        ("yes :- b, (a or not a).", "a or its negation always hold: remove one"),
        (
            "yes :- p.   p :- exactly_one(q, b).   q :- a.",
            "is not a literal: write formulas over q",
        ),
        ("yes :- a, no.", "class 'no' is used in a body, but no clause defines it"),
        ("yes :- a, no.   no :- yes.", "must not be cyclic"),
        ("[w=2] a => yes", "a clause has no strength"),
        ("a => not yes", "to_network takes clauses"),
        ("yes :- z.", "unknown name z"),
    ],
)
def test_refuses_what_is_no_theory(theory: str, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        to_network(theory, BINARY)


def test_a_single_label_is_one_output() -> None:
    model = to_network("yes :- a.", Schema(BITS, ("yes",), exclusive=False), noise=0.0)
    columns = jnp.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]])
    logits = model.predict(*model.init(jax.random.key(0), columns), columns).logits
    assert model.outputs == "multi_label" and logits.shape == (2, 1)
    np.testing.assert_array_equal(logits[:, 0] > 0, [True, False])


@pytest.mark.usefixtures("library_errors")
def test_refuses_arguments_that_do_not_fit() -> None:
    with pytest.raises(TypeError, match="needs a schema"):
        to_network("yes :- a.")
    with pytest.raises(ValueError, match="omega must be finite and > 0"):
        to_network("yes :- a.", BINARY, omega=0.0)
    with pytest.raises(ValueError, match="noise"):
        to_network("yes :- a.", BINARY, noise=-1.0)
    with pytest.raises(ValueError, match="leave schema out"):
        to_network(bind("yes :- a.", BINARY), Schema(BITS, ("other", "yes")))
    with pytest.raises(ValueError, match=r"\[batch, 4\] as encode"):
        to_network("yes :- a.", BINARY).init(jax.random.key(0), jnp.zeros((1, 3)))

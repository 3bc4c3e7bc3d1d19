"""Random rules against what they mean, said a row at a time in plain Python."""

from __future__ import annotations

import functools
import itertools
import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from distill_jax import rules
from distill_jax.rules import Column, Schema, bind, encode, energies, fires, forbidden
from distill_jax.rules import truth as truth_of
from distill_jax.rules import violation as violation_of
from distill_jax.rules.logic import evaluation as logic_
from tests.rules import small_books
from tests.rules.reference import (
    CLAUSES,
    FEATURES,
    holds,
    random_formula,
    random_rows,
)

COLUMNS = (
    Column("x"),
    Column("y"),
    Column("flag", "boolean"),
    Column("sex", "categorical", ("F", "M")),
    Column("txt", "text"),
)
CLASSES = ("a", "b", "c")
EXCLUSIVE = Schema(COLUMNS, CLASSES, target="kind", views=("v",))
LABELS = Schema(COLUMNS, CLASSES, exclusive=False, views=("v",))

truth = jax.jit(truth_of)
violation = jax.jit(violation_of)


def random_book(schema: Schema, atoms: tuple[str, ...], number: int, seed: int, **options):
    """A book of random rules; those that nothing can satisfy are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rules.RuleWarning)
        text = "\n".join(random_rules(schema, atoms, number, seed))
        return bind(CLAUSES + text, schema, **options)


@functools.cache
def random_rules(schema: Schema, atoms: tuple[str, ...], number: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    kept = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rules.RuleWarning)
        while len(kept) < number:
            text = random_formula(draw, FEATURES + 2 * atoms, draw.randrange(1, 4))
            try:
                bind(CLAUSES + text, schema)
            except rules.RuleError as error:
                assert "nothing can satisfy" in str(error)
                continue
            kept.append(text)
    return kept


def table(rows):
    return {name: np.array([row[name] for row in rows], object) for name in rows[0]}


@pytest.fixture(scope="module")
def exclusive():
    atoms = ("a", "b", "kind == 'c'", "kind != 'a'", "kind in ['a', 'c']", "view(v).b")
    atoms += ("kind == view(v).kind", "a == view(v).a")
    book = random_book(EXCLUSIVE, atoms, 80, seed=0)
    rows = random_rows(random.Random(1), 40)
    return book, rows, encode(book, table(rows))


@pytest.fixture(scope="module")
def by_world(exclusive) -> np.ndarray:
    """What each rule says of each row in each of nine worlds, ``[rows, rules, 3, 3]``: a class and
    what the view shows."""
    book, rows, _ = exclusive
    values = np.zeros((len(rows), len(book), 3, 3), object)
    for (b, row), (r, rule) in itertools.product(enumerate(rows), enumerate(book.rules)):
        for (k, kind), (j, shown) in itertools.product(enumerate(CLASSES), repeat=2):
            world = {"target": "kind", None: kind, "v": shown}
            values[b, r, k, j] = holds(rule.formula, row, world, book.info.definitions)
    return values


def test_exact_truth_is_a_sum_over_the_worlds_that_satisfy_a_rule(exclusive, by_world) -> None:
    book, rows, columns = exclusive
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), len(rows))
    view = 2 * rng.standard_normal((len(rows), 3))
    v = small_books.softmax(view)
    violated = (by_world == False).astype(float)  # noqa: E712
    want = np.einsum("brkj,bk,bj->br", violated, p, v)
    views = {"v": jnp.asarray(view)}
    got = jax.jit(violation)(book, columns, jnp.asarray(p), views=views)
    np.testing.assert_allclose(got, want, atol=1e-6)
    true = jax.jit(truth)(book, columns, jnp.asarray(p), views=views)
    np.testing.assert_allclose(true, 1 - got, atol=1e-6)
    # Energies are the same sums, by class.
    by_class = jax.jit(energies)(book, columns, views=views)
    np.testing.assert_allclose((by_class * p).sum(1), want.sum(1), rtol=1e-5)


def test_a_rule_fires_where_some_class_would_violate_it(exclusive, by_world) -> None:
    book, rows, columns = exclusive
    values = by_world.reshape(len(rows), len(book), 9)
    fired = np.asarray(jax.jit(fires)(book, columns))
    np.testing.assert_array_equal(fired, (values == False).any(-1))  # noqa: E712
    # With unknown atoms taken for possible, it fires wherever it is not certainly satisfied; less
    # only where the intervals of one column contradict each other.
    maybe = np.asarray(jax.jit(fires, static_argnames="unknown")(book, columns, unknown=True))
    assert (maybe >= fired).all()
    assert (maybe <= (values != True).any(-1)).all()  # noqa: E712
    silent = maybe & ~fired
    complete = np.array([None not in row.values() for row in rows])
    assert not silent[complete].any() and silent[~complete].any()


CORNERS = list(itertools.product((False, True), repeat=6))
CORNER_ROWS = random_rows(random.Random(3), len(CORNERS))


@functools.cache
def violated_at_corners(rules: tuple, definitions: tuple) -> np.ndarray:
    """Which rules the labels and what the view shows violate, ``[corners, rules]``."""
    names = [(view, name) for view in (None, "v") for name in CLASSES]
    worlds = [dict(zip(names, corner, strict=True)) for corner in CORNERS]
    return np.array(
        [
            [holds(rule.formula, row, world, definitions) is False for rule in rules]
            for row, world in zip(CORNER_ROWS, worlds, strict=True)
        ]
    )


@pytest.mark.parametrize("logic", ["product", "lukasiewicz", "godel", "sigmoidal"])
def test_every_logic_is_boolean_at_the_corners(logic: str) -> None:
    atoms = ("a", "b", "c", "not a", "view(v).b", "a == view(v).a")
    book = random_book(LABELS, atoms, 40, seed=2, logic=logic)
    columns = encode(book, table(CORNER_ROWS))
    want = violated_at_corners(book.rules, book.info.definitions)
    p = np.asarray(CORNERS, np.float32)
    view = np.where(p[:, 3:] > 0, np.inf, -np.inf).astype(np.float32)
    got = violation(book, columns, p[:, :3], views={"v": view})
    np.testing.assert_allclose(got, want.astype(float), atol=1e-6)


A, B = np.meshgrid(np.linspace(0, 1, 5), np.linspace(0, 1, 5))
IMPLICATIONS = {
    "product": 1 - A + A * B,
    "lukasiewicz": np.minimum(1, 1 - A + B),
    "godel": np.maximum(1 - A, B),
}
IMPLICATIONS["sigmoidal"] = (  # as the paper writes it
    (1 + np.exp(4.5)) / (1 + np.exp(-9 * (IMPLICATIONS["product"] - 0.5))) - 1
) / (np.exp(4.5) - 1)


@pytest.mark.quick
@pytest.mark.parametrize("logic", IMPLICATIONS)
def test_implications_are_those_stated(logic: str) -> None:
    schema = Schema((), ("a", "b"), exclusive=False)
    book = bind("a => b", schema, logic=logic)
    p = np.stack([A.ravel(), B.ravel()], 1)
    got = truth_of(book, np.zeros((25, 0), np.float32), p)
    np.testing.assert_allclose(got[:, 0], IMPLICATIONS[logic].ravel(), atol=1e-6)


@pytest.mark.parametrize("schema", [EXCLUSIVE, LABELS], ids=["exclusive", "labels"])
def test_gradients_reach_probabilities_and_not_views(schema: Schema) -> None:
    book = bind("x > 0 and a => b\nview(v).b => a or c", schema)
    columns = np.array([[1, 0, 0, 0], [-1, 0, 0, 0], [np.nan, 0, 0, 0]], np.float32)
    p, v = np.random.default_rng(0).dirichlet(np.ones(3), (2, 3)).astype(np.float32)

    def total(p, v):
        return violation(book, columns, p, views={"v": v}).sum()

    check_grads(lambda p: total(p, v), (p,), order=1, rtol=1e-2, atol=1e-2)
    assert not jax.grad(total, argnums=1)(p, v).any()
    assert np.isfinite(jax.grad(total)(p, v)).all()


def test_soft_comparisons_have_a_gradient_into_the_column() -> None:
    schema = Schema((Column("age"),), ("well", "sick"))
    book = bind("40 < age <= 60 => sick", schema, widths={"age": 2.0})
    ages = np.array([[41.0], [55.0], [np.nan]], np.float32)
    p = np.full((3, 2), 0.5, np.float32)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    want = 0.5 * sigmoid((ages - 40) / 2) * sigmoid((60 - ages) / 2)
    got = violation(book, ages, p)
    np.testing.assert_allclose(got, np.nan_to_num(want), rtol=1e-5)
    slope = jax.grad(lambda x: violation(book, x, p).sum())(ages)
    assert slope[0, 0] > 0.05 and np.isfinite(slope).all() and slope[2, 0] == 0
    # A column's name is a key, however rules have to spell it; so is an expression as printed.
    odd = Schema((Column("a b"), Column("a - b"), Column("a"), Column("b")), ("well", "sick"))
    for text, key in [("`a b`", "a b"), ("`a - b`", "a - b"), ("a - b / 2", "a - b / 2")]:
        assert bind(f"{text} > 3 => sick", odd, widths={key: 2.0}).info.soft
    with pytest.raises(ValueError, match="no comparison"):  # of the difference, not of the column
        bind("a-b > 3 => sick", odd, widths={"a - b": 2.0})
    with pytest.raises(ValueError, match="widths has keys that no comparison.*'height'"):
        bind("age > 60 => sick", schema, widths={"height": 1.0})


def test_hard_rules_forbid_classes_and_add_no_energy() -> None:
    schema = Schema((Column("x"),), CLASSES)
    book = bind("[hard] x > 0 => a or b\n[hard] x > 2 => not b\n[w=2] x > 1 => c", schema)
    columns = np.array([[-1.0], [1.0], [3.0], [np.nan]], np.float32)
    want = [[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0]]
    np.testing.assert_array_equal(forbidden(book, columns), np.array(want, bool))
    np.testing.assert_array_equal(
        energies(book, columns), [[0, 0, 0], [0, 0, 0], [2, 2, 0], [0, 0, 0]]
    )
    twice = energies(book, columns, strengths=jnp.array([9.0, 9.0, 4.0]))
    np.testing.assert_array_equal(twice[2], [4, 4, 0])


def test_strict_comparisons_are_strict_at_the_threshold() -> None:
    schema = Schema((Column("x"),), CLASSES)
    values = np.array([-3.5, 0.0, 0.1, 2.0, 1e-37, 1e30], np.float32)
    near = np.unique(np.concatenate([np.nextafter(values, s) for s in (-np.inf, 0, np.inf)]))
    near = near[(near == 0) | (np.abs(near) >= np.finfo(np.float32).tiny)]
    near = np.concatenate([values, near]).astype(np.float32)
    texts = [f"x {op} {t!r} => a" for t in values.tolist() for op in ("<", "<=", ">", ">=", "==")]
    book = bind("\n".join(texts), schema)
    compare = (np.less, np.less_equal, np.greater, np.greater_equal, np.equal)
    want = [op(near, t) for t in values for op in compare]
    np.testing.assert_array_equal(jax.jit(fires)(book, near[:, None]), np.stack(want, 1))


def test_jit_vmap_and_a_split_batch_agree(exclusive) -> None:
    book, rows, columns = exclusive
    p = np.random.default_rng(0).dirichlet(np.ones(3), len(rows)).astype(np.float32)

    def one(columns, p):
        return violation(book, columns, p, views={"v": p})

    whole = one(columns, p)
    halves = [one(columns[i : i + 20], p[i : i + 20]) for i in (0, 20)]
    np.testing.assert_allclose(whole, np.concatenate(halves), atol=1e-6)
    batched = jax.vmap(one)(columns.reshape(2, 20, -1), p.reshape(2, 20, -1))
    np.testing.assert_allclose(whole, batched.reshape(whole.shape), atol=1e-6)


def test_the_program_does_not_grow_with_the_number_of_rules() -> None:
    schema = Schema((Column("x"), Column("y")), CLASSES)

    def program(n: int) -> int:
        text = "\n".join(f"x > {i} and y < {-i} => a" for i in range(n))
        book = bind(text, schema)
        made = jax.make_jaxpr(truth_of)(book, jnp.zeros((4, 2)), jnp.ones((4, 3)))
        return str(made).count(" = ")  # equations, inner ones too

    assert program(3) == program(100)


def test_shapes_are_checked_by_name(library_errors) -> None:
    book = bind("x > 0 => kind == view(v).kind", Schema(COLUMNS[:1], CLASSES, target="kind",
                                                      views=("v",)))  # fmt: skip
    columns, p = np.zeros((2, 1), np.float32), np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"columns must have shape \[batch, 1\].*\(2, 3\)"):
        violation_of(book, p, p)
    with pytest.raises(ValueError, match=r"views must hold the model's logits on \['v'\]"):
        violation_of(book, columns, p)
    with pytest.raises(ValueError, match=r"views\['v'\] must have shape \(2, 3\)"):
        violation_of(book, columns, p, views={"v": p[:1]})
    with pytest.raises(TypeError, match=r"views\['v'\] must be floating point"):
        violation_of(book, columns, p, views={"v": p.astype(int)})
    with pytest.raises(ValueError, match=r"probabilities must have shape \(2, 3\)"):
        violation_of(book, columns, p[:, :2], views={"v": p})
    with pytest.raises(TypeError, match="probabilities must be floating point"):
        violation_of(book, columns, p.astype(int), views={"v": p})
    labels = bind("a => b", Schema((), CLASSES, exclusive=False))
    with pytest.raises(ValueError, match="energies is for exclusive classes"):
        energies(labels, np.zeros((2, 0), np.float32))


def test_categories_that_the_schema_does_not_know_equal_none() -> None:
    kinds = ("categorical", ("a", "b"))
    schema = Schema((Column("x", *kinds), Column("y", *kinds)), CLASSES)
    book = bind("x == y => a\nx != y => a\nx == 'a' => a\nx != 'a' => a", schema)
    columns = encode(
        book, {"x": ["a", "a", "new", "other", None], "y": ["a", "b", "new", "b", "a"]}
    )
    want = [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]]
    np.testing.assert_array_equal(fires(book, columns), np.array(want, bool))


def test_labels_and_categories_of_any_name() -> None:
    genes = Schema((), ("GO:1", "GO:2", "v:GO:1"), exclusive=False, views=("v",))
    book = bind("`GO:1` => `GO:2`\n`v:GO:1` => view(v).`GO:1`", genes)
    p = np.array([[1, 0, 1]], np.float32)
    seen = {"v": np.array([[np.log(1 / 3), 0, 0]], np.float32)}  # of probability ¼
    found = truth(book, np.zeros((1, 0)), p, views=seen)
    np.testing.assert_allclose(found, [[0, 0.25]], rtol=1e-6)
    digits = Schema((Column("zip", "categorical", ("1234567", "0.5")),), ("3", "8"), target="digit")
    book = bind("zip == 1234567 => digit == 3\nzip == 0.5 => digit != 3", digits)
    p = np.array([[0.25, 0.75]] * 2, np.float32)
    columns = encode(book, {"zip": [1234567, 0.5]})
    np.testing.assert_array_equal(truth(book, columns, p), [[0.25, 1], [1, 0.75]])


def test_thresholds_beyond_float32_are_infinity() -> None:
    with pytest.warns(rules.RuleWarning, match="1 of 3 rules can never be violated.*x > 1e.39"):
        book = bind("x < 1e39 => a\nx > 1e39 => a\nx + 1e39 > 0 => a", EXCLUSIVE)
    columns = encode(book, {"x": [3e38, None], "y": [0, 0], "flag": [0, 0], "sex": ["F"] * 2})
    np.testing.assert_array_equal(fires(book, columns), [[1, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    ("logic", "squared"),
    [("exclusive", False), ("lukasiewicz", True), ("sigmoidal", False)],
)
def test_sums_over_rules_are_the_same_in_tiles(logic: str, squared: bool, monkeypatch) -> None:
    atoms = ("a", "b", "c", "not a", "view(v).b", "a == view(v).a")
    if logic == "exclusive":
        book = random_book(EXCLUSIVE, atoms, 6, seed=5)
    else:
        book = random_book(LABELS, atoms, 6, seed=5, logic=logic)
    rows = random_rows(random.Random(6), 20)
    columns = encode(book, table(rows))
    p, v = np.random.default_rng(0).dirichlet(np.ones(3), (2, 20)).astype(np.float32)
    w = np.linspace(0.5, 2, 6).astype(np.float32)

    def both(p, w):
        def rows(p, w):
            options = {"views": {"v": v}, "squared": squared}
            return logic_.weighted_violation(book, columns, p, w, **options)

        found, back = jax.vjp(rows, p, w)
        return found, back(jnp.linspace(-1, 1, 20)), fires(book, columns)

    # Compiled, since each operation alone would be compiled as well.
    *want, fired = jax.jit(lambda *x: both(*x))(p, w)
    monkeypatch.setattr(logic_, "SMALL", 0)
    monkeypatch.setattr(logic_, "SMALL_SUMS", 0)
    *got, fired_in_tiles = jax.jit(lambda *x: both(*x))(p, w)  # traced anew
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)
    np.testing.assert_array_equal(fired_in_tiles, fired)


def test_what_is_divided_by_zero_is_unknown() -> None:
    book = bind("x / y > 3 => a\nnot x / y > 3 => a", Schema(COLUMNS[:2], CLASSES))
    columns = encode(book, np.array([[5, 0], [0, 0], [5, 1], [1, 1]], np.float32))
    want = [[0, 0], [0, 0], [1, 0], [0, 1]]
    np.testing.assert_array_equal(fires(book, columns), np.array(want, bool))
    assert fires(book, columns, unknown=True)[:2].all()
    with pytest.raises(ValueError, match="strengths must be finite"):
        energies(book, columns, strengths=np.array([1.0, np.nan], np.float32))

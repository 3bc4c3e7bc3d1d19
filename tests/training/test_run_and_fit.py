"""run and fit: the same bits, pure and vmappable, one trace, and errors before the first step."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import data, models, teachers
from distill_jax.losses import cross_entropy, forward_kl, soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import NonFiniteLoss, fit, run
from distill_jax.types import Model, Outputs

KEY = jax.random.key(0)
STUDENT = models.logistic_regression(3)
TEACHER = models.mlp([8], 3, dropout=0.2)
ADAM = optax.adam(1e-2)


def columns(rows=40, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, 5)).astype(np.float32)
    return {"inputs": inputs, "labels": np.argmax(inputs[:, :3], axis=1).astype(np.int32)}


DATA = columns()


def big(seed=1):
    return teachers.teacher(TEACHER, *TEACHER.init(jax.random.key(seed), DATA["inputs"]))


def both(weight=0.5, temperature=2.0):
    return weighted_sum(
        term("labels", weight, cross_entropy),
        term("teacher", 0.5, soft_targets, temperature=temperature),
    )


LABELS = weighted_sum(term("labels", 1.0, cross_entropy))
SMALL = {"key": KEY, "steps": 10, "batch_size": 16}


def same(a, b):
    """Equal to the bit, keys included."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    for x, y in pairs:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("model", [STUDENT, TEACHER], ids=["linear", "mlp with dropout"])
@pytest.mark.parametrize("steps_per_call", [4, 10])
def test_run_and_fit_give_the_same_bits(model, steps_per_call):
    arguments = (model, both(), ADAM, DATA)
    ran, metrics = run(*arguments, **SMALL, teachers={"big": big()})
    fitted, history = fit(
        *arguments, **SMALL, teachers={"big": big()}, steps_per_call=steps_per_call
    )
    same(ran, fitted)
    same(metrics, history)


def test_fit_takes_an_iterator_of_the_same_batches():
    from_arrays = fit(STUDENT, LABELS, ADAM, DATA, **SMALL)
    key_order = jax.random.split(KEY)[1]
    stream = data.batches(DATA, key=key_order, batch_size=16)
    from_stream = fit(STUDENT, LABELS, ADAM, stream, key=KEY, steps=10)
    same(from_arrays, from_stream)


def images(rows=12):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(rows, 6, 6, 1)).astype(np.float32)
    return {"inputs": inputs, "labels": rng.integers(0, 3, rows).astype(np.int32)}


def test_a_convnet_with_batch_norm_gives_the_same_bits():
    model = models.convnet([4], 3)
    arguments = (model, LABELS, ADAM, images())
    options = {"key": KEY, "steps": 4, "batch_size": 6}
    ran, metrics = run(*arguments, **options)
    same((ran, metrics), fit(*arguments, **options))
    scanned = run(*arguments, **options, per_step=False)
    same(scanned, fit(*arguments, **options, steps_per_call=2))
    start = model.init(KEY, images()["inputs"])[1]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start, ran.state)
    assert any(jax.tree.leaves(moved)), "batch statistics must have moved"


@pytest.mark.quick
def test_training_learns():
    _, metrics = run(STUDENT, LABELS, optax.adam(0.1), DATA, key=KEY, steps=60, batch_size=16)
    assert metrics["loss"][-5:].mean() < 0.5 * metrics["loss"][0]


def test_a_resumed_run_goes_on_to_the_bit():
    whole, metrics = fit(TEACHER, LABELS, ADAM, DATA, **SMALL, steps_per_call=2)
    half, before = fit(TEACHER, LABELS, ADAM, DATA, **SMALL | {"steps": 6}, steps_per_call=2)
    rest, after = fit(
        TEACHER, LABELS, ADAM, DATA, **SMALL | {"steps": 4}, steps_per_call=2, initial=half
    )
    same(whole, rest)
    np.testing.assert_array_equal(metrics["loss"], [*before["loss"], *after["loss"]])
    options = SMALL | {"steps": 4}
    same(whole, run(TEACHER, LABELS, ADAM, DATA, **options, initial=half)[0])
    stacked = jax.tree.map(lambda x: x[None], half)
    many = jax.vmap(lambda state: run(TEACHER, LABELS, ADAM, DATA, **options, initial=state)[0])
    vmapped = jax.tree.map(lambda x: x[0], many(stacked))
    chex.assert_trees_all_close(vmapped.params, whole.params, atol=1e-5)


def test_vmap_over_keys_weights_learning_rates_and_teachers():
    stacked = jax.tree.map(lambda *x: jnp.stack(x), big(1), big(2))

    def trial(key, weight, rate, teacher):
        return run(
            STUDENT, both(weight), optax.adam(rate), DATA, **SMALL | {"key": key},
            teachers={"big": teacher},
        )  # fmt: skip

    keys = jax.random.split(KEY, 2)
    weights, rates = jnp.array([0.2, 0.9]), jnp.array([0.1, 0.01])
    many, metrics = jax.vmap(trial)(keys, weights, rates, stacked)
    assert metrics["loss"].shape == (2, 10)
    for i in range(2):
        solo, _ = trial(keys[i], weights[i], rates[i], big(i + 1))
        vmapped = jax.tree.map(lambda x, i=i: x[i], many.params)
        chex.assert_trees_all_close(vmapped, solo.params, atol=1e-5)


def test_other_weights_teachers_and_keys_do_not_retrace():
    traces = []

    def counted(params, state, inputs, *, key=None, train=False):
        traces.append(train)
        return STUDENT.apply(params, state, inputs, key=key, train=train)

    model = Model(STUDENT.init, counted)
    in_training = []
    for seed, temperature in ((0, 1.0), (1, 4), (2, jnp.float32(3.0))):
        options = SMALL | {"key": jax.random.key(seed)}
        objective = both(temperature=temperature)
        run(model, objective, ADAM, DATA, **options, teachers={"big": big(seed)}, per_step=False)
        in_training.append(sum(traces))
    assert in_training[0] > 0
    assert in_training == [in_training[0]] * 3


def test_data_and_teachers_are_no_constants_of_the_program():
    def go(key, columns, teacher):
        return run(STUDENT, both(), ADAM, columns, **SMALL | {"key": key}, teachers={"t": teacher})

    arrays = {name: jnp.asarray(x) for name, x in DATA.items()}
    closed = jax.make_jaxpr(go)(KEY, arrays, big())
    assert max([0, *(np.size(c) for c in closed.consts)]) < 40


def test_student_runs_once_and_teacher_once_a_step_in_evaluation_mode():
    calls = []

    def spy(name, model):
        def apply(params, state, inputs, *, key=None, train=False):
            jax.debug.callback(lambda: calls.append((name, train)))
            return model.apply(params, state, inputs, key=key, train=train)

        return Model(model.init, apply)

    student, teacher = spy("student", STUDENT), spy("teacher", TEACHER)
    params, state = TEACHER.init(KEY, DATA["inputs"])
    taught = {"big": teachers.teacher(teacher, params, state)}
    # SGD needs no look-ahead: whatever runs twice here runs twice for nothing.
    run(student, both(), optax.sgd(0.1), DATA, key=KEY, steps=3, batch_size=8, teachers=taught)
    jax.effects_barrier()
    assert sorted(calls) == [("student", True)] * 3 + [("teacher", False)] * 3


def test_a_teacher_cached_in_a_column_is_the_teacher():
    cached = dict(DATA, teacher_logits=teachers.precompute(big(), DATA["inputs"]))
    live = run(STUDENT, both(), ADAM, DATA, **SMALL, teachers={"big": big()})
    chex.assert_trees_all_close(
        run(STUDENT, both(), ADAM, cached, **SMALL)[0].params, live[0].params, atol=1e-6
    )


def test_teachers_may_look_at_inputs_of_their_own():
    wide = teachers.from_function(lambda params, inputs: inputs @ params, jnp.ones((7, 3)))
    two = dict(DATA, teacher_inputs=np.ones((40, 7), np.float32))
    objective = weighted_sum(term("kl", 1.0, forward_kl))
    _, metrics = run(STUDENT, objective, ADAM, two, **SMALL, teachers={"wide": wide})
    assert metrics["kl"][0] < 1e-9, "a student at zero and an even teacher agree"


def test_the_moving_average_teaches_and_is_training_state():
    objective = weighted_sum(term("labels", 1.0, cross_entropy), term("average", 1.0, forward_kl))
    state, metrics = run(STUDENT, objective, ADAM, DATA, **SMALL, average_decay=0.5)
    assert metrics["average"][0] == 0
    assert metrics["average"][-1] > 0
    params, _ = state.average
    gap = jnp.abs(params["kernel"] - state.params["kernel"]).max()
    assert 0 < gap < 0.05


def test_a_term_trains_its_own_parameters():
    def init(key, context):
        return {"log_t": jnp.zeros(())}, {"calls": jnp.zeros(())}

    def learned(params, state, context):
        teacher = context.teachers["big"].logits / jnp.exp(params["log_t"])
        return forward_kl(context.student.logits, teacher), {"calls": state["calls"] + 1}

    objective = weighted_sum(term("learned", 1.0, learned, init=init))
    state, _ = run(STUDENT, objective, ADAM, DATA, **SMALL, teachers={"big": big()})
    assert state.term_params["learned"]["log_t"] != 0
    assert state.term_state["learned"]["calls"] == 10


def test_rows_that_do_not_count_may_hold_nan_in_their_inputs():
    keep = np.arange(40) % 4 != 0
    dirty = dict(DATA, where=keep, inputs=np.where(keep[:, None], DATA["inputs"], np.nan))
    clean = dict(DATA, where=keep)
    options = SMALL | {"steps": 3}
    same(run(TEACHER, LABELS, ADAM, dirty, **options), run(TEACHER, LABELS, ADAM, clean, **options))
    assert np.isfinite(run(TEACHER, LABELS, ADAM, dirty, **options)[1]["loss"]).all()


@pytest.mark.parametrize("train", [run, fit])
def test_rows_that_a_term_leaves_out_need_no_label(train):
    labelled = np.arange(40) % 4 == 0
    few = dict(DATA, labelled=labelled, labels=np.where(labelled, DATA["labels"], -1))
    objective = weighted_sum(term("labels", 1.0, cross_entropy, where="labelled"))
    _, metrics = train(STUDENT, objective, ADAM, few, **SMALL)
    assert np.isfinite(metrics["loss"]).all()


def test_the_average_does_not_take_the_place_of_a_teacher():
    cached = dict(DATA, teacher_logits=teachers.precompute(big(), DATA["inputs"]))
    objective = weighted_sum(term("t", 1.0, soft_targets))
    plain = run(STUDENT, objective, ADAM, cached, **SMALL)
    averaged = run(STUDENT, objective, ADAM, cached, **SMALL, average_decay=0.9)
    chex.assert_trees_all_close(plain[1], averaged[1], atol=1e-6)


def test_augmentation_may_change_types_and_shapes_and_make_columns():
    raw = dict(DATA, inputs=(100 + 20 * DATA["inputs"]).astype(np.uint8))

    def ready(key, batch):
        cropped = batch["inputs"][:, :4].astype(jnp.float32) / 255
        return dict(batch, inputs=cropped, keep=jax.random.bernoulli(key, 0.5, cropped.shape[:1]))

    objective = weighted_sum(term("labels", 1.0, cross_entropy, where="keep"))
    state, metrics = run(STUDENT, objective, ADAM, raw, **SMALL, augment=ready)
    assert state.params["kernel"].shape == (4, 3)
    assert np.isfinite(metrics["loss"]).all()


def test_a_vmapped_optimizer_is_enough_to_scan_a_convnet():
    model = models.convnet([2], 3, batch_norm=False)

    def trial(rate):
        options = {"key": KEY, "steps": 2, "batch_size": 6}
        return run(model, LABELS, optax.sgd(rate), images(), **options)[1]["loss"]

    losses = jax.vmap(trial)(jnp.array([0.0, 0.1]))
    assert losses.shape == (2, 2)
    assert losses[0, 1] != losses[1, 1]


def test_augmentation_draws_anew_each_step():
    def shuffle_labels(key, batch):
        return dict(batch, labels=jax.random.randint(key, batch["labels"].shape, 0, 3))

    frozen = optax.set_to_zero()
    tilted = Model(
        lambda key, inputs: ({"bias": jnp.array([0.0, 1.0, 2.0])}, {}),
        lambda p, s, x, *, key=None, train=False: (
            Outputs(jnp.broadcast_to(p["bias"][None], (len(x), 3))), s
        ),
    )  # fmt: skip
    _, metrics = run(tilted, LABELS, frozen, DATA, **SMALL, augment=shuffle_labels)
    assert len(set(np.asarray(metrics["loss"]).tolist())) > 5


def test_unrolled_is_the_same_training():
    plain = run(STUDENT, LABELS, ADAM, DATA, **SMALL)
    chex.assert_trees_all_close(run(STUDENT, LABELS, ADAM, DATA, **SMALL, unroll=5)[1], plain[1])


def test_history_evaluation_and_callbacks():
    seen = []
    _, history = fit(
        STUDENT, LABELS, ADAM, DATA, **SMALL, steps_per_call=2, evaluate_every=4,
        evaluate=lambda state: {"norm": float(jnp.abs(state.params["kernel"]).sum())},
        callbacks=[lambda state, metrics: seen.append((int(state.step), len(metrics["loss"])))],
    )  # fmt: skip
    assert history["loss"].shape == (10,)
    assert history["evaluated_at"].tolist() == [4, 8, 10]
    assert (np.diff(history["norm"]) > 0).all()
    assert seen == [(2, 2), (4, 2), (6, 2), (8, 2), (10, 2)]


def test_uneven_last_batch_and_data_that_ends():
    batches = [{n: x[a : a + 16] for n, x in DATA.items()} for a in (0, 16, 32)]
    with pytest.warns(UserWarning, match="data ended after 3 of 100 steps"):
        state, history = fit(STUDENT, LABELS, ADAM, batches, key=KEY, steps=100)
    assert int(state.step) == 3
    assert history["loss"].shape == (3,)


def test_stops_on_a_loss_that_is_not_finite_and_names_the_term():
    def breaks(context):
        bad = jnp.where(context.step == 5, jnp.nan, 1.0)
        return bad * context.student.logits.sum(-1)

    objective = weighted_sum(term("labels", 1.0, cross_entropy), term("breaks", 1.0, breaks))
    with pytest.raises(NonFiniteLoss, match=r"step 6: term 'breaks' is nan \(labels ") as info:
        fit(STUDENT, objective, ADAM, DATA, **SMALL, steps_per_call=2)
    assert (info.value.step, info.value.terms) == (6, ["breaks"])
    assert len(info.value.history["loss"]) == 6


def test_the_message_counts_steps_as_logs_do():
    def breaks(context):
        return jnp.where(context.step == 2, jnp.inf, context.student.logits.sum(-1) ** 2)

    objective, logged = weighted_sum(term("breaks", 1.0, breaks)), []
    for train, more in (
        (run, {}),
        (fit, {"log": lambda step, x: logged.append((step, x["loss"]))}),
    ):
        with pytest.raises(NonFiniteLoss, match="at step 3: term 'breaks' is inf") as info:
            train(STUDENT, objective, ADAM, DATA, **SMALL, **more)
        assert info.value.step == 3 and len(info.value.history["loss"]) in (3, 10)
    assert [step for step, loss in logged if np.isfinite(loss)][:2] == [1, 2]
    assert logged[2] == (3, np.inf)


@pytest.mark.parametrize("term_owns_it", [False, True], ids=["student", "term"])
@pytest.mark.parametrize("train", [run, fit])
def test_an_update_that_overflows_in_the_last_step_is_an_error(train, term_owns_it):
    """Its loss was finite: it was computed before the update."""
    objective, optimizer = LABELS, optax.sgd(lambda step: jnp.where(step == 9, jnp.inf, 0.1))
    if term_owns_it:
        own = term(
            "own", 1.0, lambda params, state, labels: (labels * params**2, state),
            init=lambda key: (jnp.ones(()), None),
        )  # fmt: skip
        objective = weighted_sum(*LABELS.terms, own)
        optimizer = {"student": optax.sgd(0.1), "terms": optimizer}
    evaluations = []
    more = {} if train is run else {"evaluate": lambda state: evaluations.append(1) or {"a": 1}}
    with pytest.raises(NonFiniteLoss, match="after step 10: .* an update too large") as info:
        train(STUDENT, objective, optimizer, DATA, **SMALL, **more)
    assert info.value.step == 10 and info.value.terms == []
    assert np.isfinite(info.value.history["loss"]).all() and len(info.value.history["loss"]) == 10
    assert not evaluations, "such a state is not evaluated"
    jax.jit(lambda key: run(STUDENT, LABELS, ADAM, DATA, **SMALL | {"key": key})[1])(KEY)


@pytest.mark.usefixtures("library_errors")
class TestMessages:
    @pytest.mark.parametrize("train", [run, fit])
    def test_data(self, train):
        def go(columns, **more):
            return train(STUDENT, LABELS, ADAM, columns, **SMALL | more)

        with pytest.raises(ValueError, match="must have a row or more"):
            go({n: x[:0] for n, x in DATA.items()})
        with pytest.raises(ValueError, match="batch_size must"):
            go(DATA, batch_size=41)
        with pytest.raises(ValueError, match="labels must lie in 0 ... 2"):
            go(dict(DATA, labels=DATA["labels"] + 1))
        with pytest.raises(ValueError, match="inputs must be finite, got NaN or inf in 1 of 40"):
            go(dict(DATA, inputs=np.where(np.arange(40)[:, None] == 3, np.nan, DATA["inputs"])))
        with pytest.raises(ValueError, match="must have a column 'inputs'"):
            go({"labels": DATA["labels"]})
        with pytest.raises(ValueError, match=r"got -100: .* where=labels >= 0"):
            go(dict(DATA, labels=np.where(DATA["labels"] == 0, -100, DATA["labels"])))
        with pytest.raises(TypeError, match="augment must return the batch, .* got NoneType"):
            go(DATA, augment=lambda key, batch: None)
        with pytest.raises(TypeError, match="key must be a random key"):
            go(DATA, key=0)

    @pytest.mark.parametrize("train", [run, fit])
    def test_teachers(self, train):
        def go(teacher, model=STUDENT, name="big"):
            return train(model, both(), ADAM, DATA, **SMALL, teachers={name: teacher})

        def four(params, inputs):
            return inputs[:, :4]

        def three(params, inputs):
            return inputs[:, :3]

        with pytest.raises(ValueError, match=r"teachers\['big'\] has 4 classes, the student 3"):
            go(teachers.from_function(four, ()))
        with pytest.raises(TypeError, match=r"teachers\['big'\] must be a Teacher, got function"):
            go(four)
        with pytest.raises(ValueError, match="may not be named 'average'"):
            go(teachers.from_function(three, ()), name="average")
        named = models.logistic_regression(3, classes=("a", "b", "c"))
        with pytest.raises(ValueError, match="reorder"):
            go(teachers.from_function(three, (), classes=("b", "a", "c")), named)
        with pytest.raises(ValueError, match="has the classes"):
            go(teachers.from_function(three, (), classes=("x", "a", "c")), named)

    def test_slips(self):
        labels = term("labels", 1.0, cross_entropy)
        with pytest.raises(TypeError, match="got a Term: wrap it in weighted_sum"):
            run(STUDENT, labels, ADAM, DATA, **SMALL)
        with pytest.raises(TypeError, match="teachers must be a dictionary .* got Teacher"):
            run(STUDENT, both(), ADAM, DATA, **SMALL, teachers=big())
        with pytest.raises(TypeError, match="optimizer must be .* call it: optax.adam"):
            run(STUDENT, LABELS, optax.adam, DATA, **SMALL)
        with pytest.raises(TypeError, match="model must be a Model, got function"):
            run(cross_entropy, LABELS, ADAM, DATA, **SMALL)
        with pytest.raises(ValueError, match="steps must be 1 or more"):
            run(STUDENT, LABELS, ADAM, DATA, **SMALL | {"steps": 0})

    def test_a_state_of_something_else(self):
        state, _ = run(STUDENT, LABELS, ADAM, DATA, **SMALL)
        with pytest.raises(ValueError, match="initial.average must have the structure"):
            run(STUDENT, LABELS, ADAM, DATA, **SMALL, initial=state, average_decay=0.5)
        with pytest.raises(ValueError, match="initial.opt_state must have the structure"):
            run(STUDENT, LABELS, optax.sgd(0.1), DATA, **SMALL, initial=state)
        wide = dict(DATA, inputs=np.ones((40, 6), np.float32))
        with pytest.raises(ValueError, match="initial.params must have the shapes"):
            fit(STUDENT, LABELS, ADAM, wide, **SMALL, initial=state)

    def test_names_that_evaluate_may_not_give(self):
        with pytest.raises(ValueError, match=r"must not use the names of metrics, got \['loss'\]"):
            fit(STUDENT, LABELS, ADAM, DATA, **SMALL, evaluate=lambda state: {"loss": 0.0})

    def test_integer_inputs(self):
        with pytest.raises(TypeError, match="inputs must be float"):
            run(STUDENT, LABELS, ADAM, dict(DATA, inputs=np.ones((40, 5), np.uint8)), **SMALL)

    def test_fit_arguments(self):
        with pytest.raises(ValueError, match="batch_size must be given"):
            fit(STUDENT, LABELS, ADAM, DATA, key=KEY, steps=1)
        with pytest.raises(ValueError, match="have a size of their own"):
            fit(STUDENT, LABELS, ADAM, [DATA], **SMALL)
        with pytest.raises(ValueError, match="data has no batch"):
            fit(STUDENT, LABELS, ADAM, [], key=KEY, steps=1)
        with pytest.raises(ValueError, match="steps must be 1 or more"):
            fit(STUDENT, LABELS, ADAM, DATA, key=KEY, steps=0, batch_size=4)
        with pytest.raises(
            ValueError, match="evaluate_every is 5, and there is nothing to evaluate"
        ):
            fit(STUDENT, LABELS, ADAM, DATA, **SMALL, evaluate_every=5)
        with pytest.raises(ValueError, match="average_decay must lie in"):
            fit(STUDENT, LABELS, ADAM, DATA, **SMALL, average_decay=1.5)


def test_a_model_that_knows_missing_values_may_be_given_nan() -> None:
    def known(inputs):
        return jnp.where(jnp.isnan(inputs), 0.0, inputs)

    def make(missing):
        return models.from_function(
            lambda key, inputs: jnp.zeros((inputs.shape[-1], 2)),
            lambda params, inputs: known(inputs) @ params,
            missing=missing,
        )

    columns = {"inputs": np.array([[1.0], [np.nan]], np.float32), "labels": np.array([1, 0])}
    how = {"key": jax.random.key(0), "steps": 1, "batch_size": 2}
    objective = weighted_sum(term("labels", 1.0, cross_entropy))
    viewed = {**columns, "inputs:other": columns["inputs"]}
    for given in (columns, viewed):
        state, _ = run(make(True), objective, optax.sgd(0.1), given, **how)
        assert np.isfinite(state.params).all()
    with pytest.raises(ValueError, match="inputs must be finite, got NaN"):
        run(make(False), objective, optax.sgd(0.1), columns, **how)
    worse = {**columns, "inputs": np.array([[np.inf], [0.0]], np.float32)}
    with pytest.raises(ValueError, match="finite or NaN"):
        run(make(True), objective, optax.sgd(0.1), worse, **how)


def test_a_loss_sees_the_students_outputs_on_other_views_without_gradient() -> None:
    seen = {}

    def loss(student_logits, views, columns):
        assert columns.ndim == 2
        seen["names"] = sorted(views)
        return (student_logits + views["clause"].logits).sum(-1)

    model = models.from_function(
        lambda key, inputs: jnp.ones((1, 2)), lambda params, inputs: inputs @ params
    )
    columns = {
        "inputs": jnp.ones((3, 1)),
        "inputs:clause": 2 * jnp.ones((3, 1)),
        "columns": jnp.full((3, 1), jnp.nan),  # a missing value there is no error
    }
    how = {"key": jax.random.key(0), "steps": 1, "batch_size": 3}
    objective = weighted_sum(term("views", 1.0, loss))
    state, history = run(model, objective, optax.sgd(1.0), columns, **how)
    assert seen["names"] == ["clause"]
    np.testing.assert_allclose(history["loss"], 6.0)  # 2 of the sentence, 4 of the clause
    np.testing.assert_allclose(state.params, 0.0, atol=1e-6)  # the gradient of the sentence alone
    with pytest.raises(ValueError, match="inputs:clause must be finite"):
        bad = {**columns, "inputs:clause": jnp.full((3, 1), jnp.nan)}
        run(model, objective, optax.sgd(1.0), bad, **how)

"""What fit adds to the step: streams, resumption, logs, layouts, an orderly end."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import os
import signal
import threading
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from distill_jax import data, evaluation, models, teachers
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import (
    Checkpoints,
    NonFiniteLoss,
    data_parallel,
    fit,
    fsdp,
    json_lines,
    run,
)
from distill_jax.training.checkpoints.saving import Saver
from distill_jax.training.devices import _preemption

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(40, 5)).astype(np.float32)
DATA = {"inputs": INPUTS, "labels": np.argmax(INPUTS[:, :3], axis=1).astype(np.int32)}
STUDENT = models.mlp([4], 3, dropout=0.1)
TEACHERS = {"big": teachers.teacher(STUDENT, *STUDENT.init(jax.random.key(5), INPUTS[:1]))}
OBJECTIVE = weighted_sum(term("labels", 0.5, cross_entropy), term("big", 0.5, soft_targets))
ADAM = optax.adam(1e-2)
KEY = jax.random.key(0)
HOW = {"key": KEY, "teachers": TEACHERS, "steps_per_call": 2}
ARRAYS = {**HOW, "batch_size": 8}


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def stream(**options):
    return data.batches(DATA, key=jax.random.key(1), batch_size=8, **options)


def skipping(start):
    return stream(start=start)


def test_runs_of_several_keys_may_share_their_batches():
    how = {"steps": 1, "batch_size": 8, "order_key": jax.random.key(7), "teachers": TEACHERS}
    seen = weighted_sum(term("sum", 1.0, lambda inputs: inputs.sum(-1)))
    first, second = (
        run(STUDENT, seen, ADAM, DATA, key=jax.random.key(i), **how)[1]["sum"] for i in range(2)
    )
    np.testing.assert_array_equal(first, second)
    fitted = fit(STUDENT, seen, ADAM, DATA, key=KEY, **how)[1]["sum"]
    np.testing.assert_array_equal(first, fitted)
    del how["order_key"]
    other = run(STUDENT, seen, ADAM, DATA, key=jax.random.key(1), **how)[1]["sum"]
    assert other != first


@pytest.mark.parametrize("source", ["arrays", "a stream with a state", "a generator", "a function"])
def test_the_same_call_again_goes_on_to_the_bit(tmp_path, source):
    def make():
        kinds = {
            "arrays": DATA,
            "a stream with a state": stream(),
            "a generator": iter(list(stream(steps=12))),
            "a function": lambda start: stream(start=start),
        }
        return kinds[source]

    how = ARRAYS if source == "arrays" else HOW
    whole, history = fit(STUDENT, OBJECTIVE, ADAM, make(), **how, steps=8)
    checkpoints = Checkpoints(tmp_path, every=2)
    _, first = fit(STUDENT, OBJECTIVE, ADAM, make(), **how, steps=4, checkpoints=checkpoints)
    resumed, rest = fit(STUDENT, OBJECTIVE, ADAM, make(), **how, steps=8, checkpoints=checkpoints)
    same(resumed, whole)
    np.testing.assert_array_equal([*first["loss"], *rest["loss"]], history["loss"])
    # A finished run is not run again.
    how = {**how, "checkpoints": checkpoints, "evaluate": lambda state: {"bias": 1}}
    again, nothing = fit(STUDENT, OBJECTIVE, ADAM, make(), **how, steps=8)
    same(again, whole)
    assert nothing == {"evaluated_at": [8], "bias": [1.0]}
    with pytest.raises(ValueError, match="steps must be 8 or more, .* got 4"):
        fit(STUDENT, OBJECTIVE, ADAM, make(), **how, steps=4)


def test_prefetching_changes_nothing():
    for ahead in (0, 3):
        got, _ = fit(STUDENT, OBJECTIVE, ADAM, stream(), **HOW, steps=5, prefetch=ahead)
        want, _ = fit(STUDENT, OBJECTIVE, ADAM, list(stream(steps=5)), **HOW, steps=5)
        same(got, want)


@pytest.mark.quick
def test_a_short_batch_is_filled_up_with_rows_that_do_not_count():
    batches = list(stream(steps=2))
    short = {name: x[:5] for name, x in batches[1].items()}
    where = {**batches[1], "where": np.arange(8) < 5}
    plain = [{**batches[0], "where": np.ones(8, bool)}, where]
    linear = models.logistic_regression(3)
    how = {"key": KEY, "teachers": TEACHERS, "steps": 2}
    got, history = fit(linear, OBJECTIVE, ADAM, [batches[0], short], **how)
    want, _ = fit(linear, OBJECTIVE, ADAM, plain, **how)
    chex.assert_trees_all_close(got.params, want.params, rtol=1e-6)
    alone, _ = fit(linear, OBJECTIVE, ADAM, [batches[0]], **how | {"steps": 1})
    rest, _ = fit(linear, OBJECTIVE, ADAM, [short], **how | {"steps": 1}, initial=alone)
    chex.assert_trees_all_close(got.params, rest.params, rtol=1e-5)
    assert len(history["loss"]) == 2


def test_evaluations_fall_on_the_same_steps_after_a_resumption(tmp_path):
    def evaluate(state):
        return {"accuracy": float(jnp.abs(state.params["head"]["bias"]).sum())}

    how = {**ARRAYS, "evaluate": evaluate, "evaluate_every": 4}
    _, whole = fit(STUDENT, OBJECTIVE, ADAM, DATA, **how, steps=12)
    checkpoints = Checkpoints(tmp_path, every=2, best="accuracy", keep=1)
    _, first = fit(STUDENT, OBJECTIVE, ADAM, DATA, **how, steps=6, checkpoints=checkpoints)
    _, rest = fit(STUDENT, OBJECTIVE, ADAM, DATA, **how, steps=12, checkpoints=checkpoints)
    assert whole["evaluated_at"].tolist() == [4, 8, 12]
    assert first["evaluated_at"].tolist() == [4, 6]  # its last state, too
    assert rest["evaluated_at"].tolist() == [8, 12]
    np.testing.assert_array_equal(rest["accuracy"], whole["accuracy"][1:])


def test_logs_get_floats_of_each_step_a_call_late(tmp_path):
    seen, at = [], []

    def log(step, metrics):
        seen.append((step, metrics))

    def batches():
        for batch in stream(steps=6):
            at.append(len(seen))
            yield batch

    path = tmp_path / "run.jsonl"
    logs = [log, json_lines(path)]
    _, history = fit(
        STUDENT, OBJECTIVE, ADAM, batches(), **HOW, steps=6, log=logs, prefetch=0,
        evaluate=lambda state: {"accuracy": jnp.float32(0.5)},
    )  # fmt: skip
    # The first batch is looked at beforehand; a call is logged while the next one runs.
    assert at == [0, 0, 0, 0, 2, 2]
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6, 6]
    assert all(type(x) is float for _, metrics in seen for x in metrics.values())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    np.testing.assert_allclose([line["loss"] for line in lines[:6]], history["loss"], rtol=1e-6)
    assert lines[6] == {"step": 6, "accuracy": 0.5}


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    objective = weighted_sum(term("bad", lambda step: jnp.where(step < 3, 1.0, jnp.inf), positive))
    checkpoints = Checkpoints(tmp_path, every=2)
    with pytest.raises(NonFiniteLoss, match="step 4"):
        fit(STUDENT, objective, ADAM, DATA, **ARRAYS, steps=8, checkpoints=checkpoints)
    saved = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    assert saved == [2]


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    def zero(student_logits):  # its gradient is NaN
        return jnp.sqrt(jnp.abs(student_logits - student_logits)).sum(-1)

    objective = weighted_sum(term("root", 1.0, zero))
    how = {**ARRAYS, "steps_per_call": 1, "checkpoints": Checkpoints(tmp_path, every=1)}
    with pytest.raises(NonFiniteLoss, match="after step 1: .* parameters are not"):
        fit(STUDENT, objective, ADAM, DATA, **how, steps=8)
    assert not [path for path in tmp_path.iterdir() if path.name.isdigit()]


def positive(student_logits):
    return (student_logits**2).sum(-1)


def interrupt(number):
    os.kill(os.getpid(), number)


def ending(how, error=None, *, at=3):
    """A stream in which something happens before a batch is there, and what it is to raise."""
    hung = threading.Event()

    def batches(start):
        for i, batch in enumerate(stream(start=start), start=start):
            if i == at and not start:
                if how == "error":
                    raise RuntimeError("out of luck")
                if how.startswith("hang"):
                    threading.Timer(0.3, interrupt, [signal.SIGTERM]).start()
                    assert hung.wait(30) and how == "hang in a thread"
                else:
                    interrupt(signal.SIGINT if how == "ctrl-c" else signal.SIGTERM)
            yield batch

    return batches, hung


WHOLE = functools.cache(lambda: fit(STUDENT, OBJECTIVE, ADAM, stream(), **HOW, steps=8)[0])


@pytest.mark.parametrize(
    "how, error",
    [
        ("sigterm", SystemExit),
        ("hang", SystemExit),
        ("hang in a thread", SystemExit),
        ("ctrl-c", KeyboardInterrupt),
        ("error", RuntimeError),
    ],
)
def test_an_end_while_data_are_waited_for_saves_first(tmp_path, how, error):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    batches, hung = ending(how)
    ahead = 2 if how == "hang in a thread" else 0
    options = {**HOW, "steps": 8, "checkpoints": Checkpoints(tmp_path, every=100)}
    with pytest.raises(error) as left:
        fit(STUDENT, OBJECTIVE, ADAM, batches, **options, prefetch=ahead)
    hung.set()
    assert "state after step 2 is saved" in left.value.__notes__[-1]
    assert error is not SystemExit or left.value.code == 143
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    resumed, history = fit(STUDENT, OBJECTIVE, ADAM, batches, **options)
    assert len(history["loss"]) == 6
    same(resumed, WHOLE())


@pytest.mark.parametrize("where", ["evaluate", "callback", "log"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, None])
def test_an_end_in_the_code_of_others_saves_first(tmp_path, where, number):
    def ends(*_):
        if number is None:
            raise RuntimeError("out of luck")
        interrupt(number)
        return {"a": 1.0}

    places = {
        "evaluate": {"evaluate": ends, "evaluate_every": 4},
        "callback": {"callbacks": [lambda state, _: ends() if int(state.step) == 4 else None]},
        "log": {"log": lambda step, _: ends() if step == 3 else None},
    }
    options = {**HOW, "steps": 8, "checkpoints": Checkpoints(tmp_path, every=100)}
    errors = {signal.SIGTERM: SystemExit, signal.SIGINT: KeyboardInterrupt, None: RuntimeError}
    with pytest.raises(errors[number]):
        fit(STUDENT, OBJECTIVE, ADAM, skipping, **options, **places[where])
    resumed, history = fit(STUDENT, OBJECTIVE, ADAM, skipping, **options)
    assert len(history["loss"]) in ((4, 2) if where == "log" else (4,))
    same(resumed, WHOLE())


@pytest.mark.parametrize("asynchronous", [True, False])
def test_sigterm_during_the_last_save_is_not_swallowed(tmp_path, monkeypatch, asynchronous):
    real = Saver.wait if asynchronous else Saver.save

    def save(self, *args, **kwargs):
        if self._saving == 4 if asynchronous else args[0] == 4:
            interrupt(signal.SIGTERM)
        return real(self, *args, **kwargs)

    options = {**HOW, "steps": 4}
    options["checkpoints"] = Checkpoints(tmp_path, every=100, asynchronous=asynchronous)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(Saver, "wait" if asynchronous else "save", save)
        fit(STUDENT, OBJECTIVE, ADAM, skipping, **options)
    assert left.value.code == 143
    assert (tmp_path / "4").is_dir()
    _, history = fit(STUDENT, OBJECTIVE, ADAM, skipping, **options)
    assert "loss" not in history


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_call_which_may_compile_for_minutes_is_not_waited_for(
    tmp_path, monkeypatch, number
):
    def compiles(*_):
        interrupt(number)
        raise AssertionError("must not be reached")

    monkeypatch.setattr("distill_jax.training.fitting.steps_of", compiles)
    saved = Checkpoints(tmp_path)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        fit(STUDENT, OBJECTIVE, ADAM, skipping, **HOW, steps=4, checkpoints=saved)
    assert os.listdir(tmp_path) == []


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    stop = _preemption.Stopping()
    stop.handle(signal.SIGINT, None)
    assert stop(1) and isinstance(stop.error(), KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT, None)
    stop.handle(signal.SIGTERM, None)  # which says more
    assert isinstance(stop.error(), SystemExit)
    with pytest.raises(SystemExit), stop.at_once():
        raise AssertionError("must not be entered")


def test_two_threads_train_into_two_folders(tmp_path):
    """Saves of one process share what their library keeps for the whole process."""

    def train(i):
        options = {**HOW, "steps": 8, "steps_per_call": 1}
        saved = Checkpoints(tmp_path / str(i), every=1)
        return fit(STUDENT, OBJECTIVE, ADAM, skipping, **options, checkpoints=saved)[0]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        states = list(pool.map(train, range(2)))
    for i, state in enumerate(states):
        same(state, WHOLE())
        assert (tmp_path / str(i) / "8").is_dir()


@pytest.mark.parametrize("make", [data_parallel, fsdp])
def test_a_layout_of_one_device_changes_nothing(make):
    layout = make(jax.devices()[:1])
    got, history = fit(STUDENT, OBJECTIVE, ADAM, DATA, **ARRAYS, steps=4, layout=layout)
    want, expected = fit(STUDENT, OBJECTIVE, ADAM, DATA, **ARRAYS, steps=4)
    chex.assert_trees_all_close(got.params, want.params, rtol=1e-6)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-6)


def test_a_trace_is_written(tmp_path):
    fit(STUDENT, OBJECTIVE, ADAM, DATA, **ARRAYS, steps=6, trace=tmp_path)
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.usefixtures("library_errors")
def test_a_log_that_is_none_is_refused_before_the_first_step():
    with pytest.raises(TypeError, match="log must be a callable"):
        fit(STUDENT, OBJECTIVE, ADAM, DATA, **ARRAYS, steps=4, log="run.jsonl")


def test_precision_and_recomputation_are_flags_of_both_loops():
    how = {**ARRAYS, "steps": 4, "microbatches": 2, "compute_dtype": jnp.bfloat16, "remat": True}
    fitted, history = fit(STUDENT, OBJECTIVE, ADAM, DATA, **how)
    del how["steps_per_call"]
    ran, metrics = run(STUDENT, OBJECTIVE, ADAM, DATA, **how)
    same(ran, fitted)
    assert {x.dtype for x in jax.tree.leaves(fitted.params)} == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.float32
    plain, _ = run(STUDENT, OBJECTIVE, ADAM, DATA, **how | {"compute_dtype": None})
    chex.assert_trees_all_close(ran.params, plain.params, atol=0.02)
    assert (ran.params["head"]["kernel"] != plain.params["head"]["kernel"]).any()


class Slow:
    """Iterating opens something that must be closed; each batch takes longer than is waited for."""

    def __init__(self, seconds):
        self.seconds, self.closed = seconds, False

    def __iter__(self):
        try:
            for i, batch in enumerate(stream(steps=8)):
                time.sleep(self.seconds if i > 1 else 0.0)
                yield batch
        finally:
            self.closed = True


def test_an_error_comes_out_as_it_is_where_the_stream_is_slow():
    def evaluate(state):
        raise RuntimeError("out of luck")

    how = {**HOW, "steps": 8, "evaluate": evaluate, "evaluate_every": 2}
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(STUDENT, OBJECTIVE, ADAM, Slow(1.5), **how)
    quick = Slow(0.0)
    with pytest.raises(ValueError, match="microbatches must divide"):  # before any step
        fit(STUDENT, OBJECTIVE, ADAM, quick, **HOW, steps=8, microbatches=3)
    assert quick.closed


def test_a_batch_norm_sees_no_rows_that_fill_up():
    model = models.from_nnx(lambda rngs: Normed(rngs))
    batches = [{name: x[:n] + 5 for name, x in DATA.items()} for n in (8, 2)]
    for batch in batches:
        batch["labels"] = batch["labels"] - 5
    labels = weighted_sum(term("labels", 1.0, cross_entropy))
    state, _ = fit(model, labels, ADAM, batches, key=KEY, steps=2)
    (mean,) = [x for x in jax.tree.leaves(state.state) if np.allclose(x, INPUTS[:2].mean(0) + 5)]
    assert mean.shape == (5,)


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(5, momentum=0.0, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(x))


def test_another_start_data_or_precision_is_another_run(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=2)
    start, _ = fit(STUDENT, OBJECTIVE, ADAM, DATA, **ARRAYS, steps=2)
    how = {**ARRAYS, "steps": 2, "checkpoints": checkpoints, "initial": start}
    state, history = fit(STUDENT, OBJECTIVE, ADAM, DATA, **how)
    assert int(state.step) == 4 and len(history["loss"]) == 2
    other = dataclasses.replace(start, params=jax.tree.map(lambda x: x + 1, start.params))
    labels = DATA["labels"].copy()
    labels[17] = (labels[17] + 1) % 3
    changes = {
        "settings/initial": ({"initial": other}, DATA),
        "settings/data": ({}, DATA | {"labels": labels}),
        "settings/compute_dtype was None": (
            {"compute_dtype": jnp.bfloat16},
            DATA,
        ),
    }
    for named, (change, data_) in changes.items():
        with pytest.raises(ValueError, match=named):
            fit(STUDENT, OBJECTIVE, ADAM, data_, **how | change)


@pytest.mark.usefixtures("library_errors")
class TestMessages:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"callbacks": print}, TypeError, "callbacks must be a list"),
            ({"checkpoints": "folder"}, TypeError, "checkpoints must be Checkpoints, got str"),
            ({"checkpoints": Checkpoints("x", best="a")}, ValueError, "no evaluate that gives it"),
            ({"initial": {"a": 1}}, TypeError, "initial must be a TrainState, got dict"),
            ({"remat": "full"}, TypeError, "remat must be True or False"),
            ({"prefetch": -1}, ValueError, "prefetch must be 0 or more"),
            ({"steps": 2.5}, TypeError, "steps must be an integer, got 2.5"),
            ({"evaluate": lambda state: None}, TypeError, "evaluate must return a dictionary"),
        ],
    )
    def test_names_the_argument(self, change, error, message):
        with pytest.raises(error, match=message):
            fit(STUDENT, OBJECTIVE, ADAM, DATA, **{**ARRAYS, "steps": 2, **change})

    def test_no_batch_may_be_larger_than_the_first_where_sizes_must_be_even(self):
        batches = [{name: x[:n] for name, x in DATA.items()} for n in (8, 10)]
        with pytest.raises(ValueError, match="10 rows, 1 after the first"):
            fit(STUDENT, OBJECTIVE, ADAM, batches, **HOW, steps=2, microbatches=4)

    def test_numpy_integers_are_integers(self):
        how = {**ARRAYS, "steps": np.int64(2), "microbatches": np.int64(2)}
        assert len(fit(STUDENT, OBJECTIVE, ADAM, DATA, **how)[1]["loss"]) == 2


def spoilt(column, value, **more):
    """Three batches, the last of which has a bad value in its row 5."""
    made = list(stream(steps=3))
    made[2] = {**made[2], column: np.array(made[2][column]), **more}
    made[2][column][5] = value
    return made


class TestLateRows:
    """What is wrong in a batch of a stream is named with column, batch and row."""

    @pytest.mark.parametrize(
        ("column", "value", "said"),
        [
            ("labels", 3, "labels must lie in 0 ... 2"),
            ("labels", -100, "labels must"),
            ("inputs", np.nan, "inputs must be finite"),
            ("inputs", -np.inf, "inputs must be finite"),
        ],
    )
    def test_are_named(self, column, value, said):
        how = {**HOW, "steps": 3}
        with pytest.raises(ValueError, match=rf"batch 0 \(from 0\) of data, row 5: {said}"):
            fit(STUDENT, OBJECTIVE, ADAM, spoilt(column, value)[2:], **how)
        for kind in (list, iter):
            with pytest.raises(ValueError, match=rf"batch 2 \(from 0\) of data, row 5: {said}"):
                fit(STUDENT, OBJECTIVE, ADAM, kind(spoilt(column, value)), **how)
        with pytest.raises(ValueError, match=r"batch 2 \(from 0\) of data, row 5"):
            augmented = {"augment": lambda key, batch: batch} if column == "inputs" else {}
            device = [jax.device_put(batch) for batch in spoilt(column, value)]
            fit(STUDENT, OBJECTIVE, ADAM, device, **how, **augmented)

    def test_masked_rows_may_hold_anything(self):
        where = np.arange(8) != 5
        batches = spoilt("labels", -1, where=where)
        batches[2]["inputs"] = np.where(where[:, None], batches[2]["inputs"], np.nan)
        batches = [{"where": np.ones(8, bool), **batch} for batch in batches]
        _, history = fit(STUDENT, OBJECTIVE, ADAM, batches, **HOW, steps=3)
        assert np.isfinite(history["loss"]).all()

    def test_a_column_that_nobody_reads_may_too(self):
        batches = [{**b, "note": np.full(8, np.nan)} for b in stream(steps=3)]
        assert len(fit(STUDENT, OBJECTIVE, ADAM, batches, **HOW, steps=3)[1]["loss"]) == 3

    def test_a_resumed_run_counts_batches_from_the_beginning(self, tmp_path):
        how = {**HOW, "checkpoints": Checkpoints(tmp_path, every=2)}
        fit(STUDENT, OBJECTIVE, ADAM, spoilt("labels", 3), **how, steps=2)
        with pytest.raises(ValueError, match=r"batch 2 \(from 0\) of data, row 5"):
            fit(STUDENT, OBJECTIVE, ADAM, spoilt("labels", 3), **how, steps=3)


@pytest.mark.usefixtures("library_errors")
@pytest.mark.parametrize("loop", ["run", "fit", "a stream", "evaluate"])
def test_columns_that_jax_cannot_hold(loop):
    def go(columns):
        if loop == "evaluate":
            return evaluation.evaluate(STUDENT, *STUDENT.init(KEY, INPUTS), columns)
        how = {"key": KEY, "teachers": TEACHERS, "steps": 1}
        if loop == "a stream":
            return fit(STUDENT, OBJECTIVE, ADAM, [columns], **how)
        return (run if loop == "run" else fit)(
            STUDENT, OBJECTIVE, ADAM, columns, **how, batch_size=40
        )

    for name, column in {
        "labels": np.array(["a", "b"] * 20),
        "inputs": DATA["inputs"].astype(object),
        "note": np.zeros(40, "datetime64[s]"),
    }.items():
        if loop == "evaluate" and name == "note":
            continue  # it looks at the columns of its metrics alone
        with pytest.raises(TypeError, match=rf"{name} in .*data must hold numbers or booleans"):
            go({**DATA, name: column})
    hidden = np.ma.masked_array(DATA["inputs"], DATA["inputs"] > 2)
    with pytest.raises(ValueError, match="inputs in .*data has .* masked entries"):
        go({**DATA, "inputs": hidden})
    foreign = {name: x.astype(x.dtype.newbyteorder(">")) for name, x in DATA.items()}
    same(*(jax.tree.map(jnp.asarray, go(columns)) for columns in (foreign, DATA)))

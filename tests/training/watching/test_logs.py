"""Logs: whole lines, no step twice, no gap that stops a run, and what TensorBoard reads back."""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import resource
import struct
import subprocess
import sys
import warnings

import jax
import numpy as np
import optax
import pandas as pd
import pytest

from distill_jax import models
from distill_jax.losses import cross_entropy
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import fit, json_lines, tensorboard
from distill_jax.training.watching import logs

MODEL, SGD = models.logistic_regression(2), optax.sgd(0.1)
OBJECTIVE = weighted_sum(term("labels", 1.0, cross_entropy))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_of(path):
    return [line["step"] for line in lines(path)]


@pytest.mark.quick
def test_a_line_for_each_record_is_there_at_once(tmp_path):
    path = tmp_path / "new folder" / "run.jsonl"
    log = json_lines(path)
    log(1, {"loss": 0.5, "teacher": np.float32(0.25)})
    assert lines(path) == [{"step": 1, "loss": 0.5, "teacher": 0.25}]
    log(1, {"accuracy": 1})
    log(2, {"loss": 0.125, "teacher": 0.0})
    assert path.read_text().endswith("\n") and steps_of(path) == [1, 1, 2]
    table = pd.read_json(path, lines=True)
    assert table["loss"].dropna().tolist() == [0.5, 0.125]


def test_numbers_that_json_lacks_come_back(tmp_path):
    path = tmp_path / "run.jsonl"
    json_lines(path)(1, {"a": math.nan, "b": math.inf, "c": -math.inf})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (line,) = [json.loads(x, parse_constant=refuse) for x in path.read_text().splitlines()]
    assert line == {"step": 1, "a": "nan", "b": "inf", "c": "-inf"}
    assert math.isnan(float(line["a"]))
    assert (float(line["b"]), float(line["c"])) == (math.inf, -math.inf)
    assert pd.to_numeric(pd.read_json(path, lines=True)["b"]).tolist() == [math.inf]


@pytest.mark.parametrize("make", [json_lines, tensorboard])
def test_every_leaves_out_steps_but_never_an_evaluation(make, tmp_path):
    log = make(tmp_path / "log", every=3)
    for step in range(1, 8):
        log(step, {"loss": 1.0})
        if step == 4:
            log(step, {"accuracy": 0.5})
    if make is json_lines:
        written = [(line["step"], "loss" in line) for line in lines(tmp_path / "log")]
    else:
        written = [
            (e.step, e.summary.value[0].tag == "loss")
            for e in events(tmp_path / "log")
            if e.HasField("summary")
        ]
    assert written == [(3, True), (4, False), (6, True)]


def test_a_resumed_run_leaves_no_step_twice(tmp_path):
    path = tmp_path / "run.jsonl"
    first = json_lines(path)
    for step in range(1, 8):
        first(step, {"loss": 1.0})
        if step in (4, 6):
            first(step, {"accuracy": 0.5})
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # killed while it wrote
    second = json_lines(path)
    assert steps_of_whole(path) == [1, 2, 3, 4, 4, 5, 6, 6, 7]  # nothing is cut before a record
    for step in (5, 6, 7):  # the checkpoint was of step 4
        second(step, {"loss": 2.0})
    assert steps_of(path) == [1, 2, 3, 4, 4, 5, 6, 7]
    assert [line.get("loss") for line in lines(path)] == [1, 1, 1, 1, None, 2, 2, 2]


def steps_of_whole(path):
    return [json.loads(x)["step"] for x in path.read_text().split("\n")[:-1]]


def test_a_torn_line_goes_where_the_run_goes_on_behind_it(tmp_path):
    path = tmp_path / "run.jsonl"
    whole = '{"step": 1, "loss": 0.5}\n'
    for torn, kept in ((whole + '{"st', [1, 3]), ('{"step": 1, "lo', [3]), ('{"st', [3])):
        path.write_text(torn)
        json_lines(path)(3, {"loss": 0.25})
        assert steps_of(path) == kept


def test_a_run_that_begins_anew_begins_the_file_anew(tmp_path):
    path = tmp_path / "run.jsonl"
    log = json_lines(path)
    for _ in range(2):
        for step in (1, 2, 3):
            log(step, {"loss": 0.5})
        assert steps_of(path) == [1, 2, 3]


@pytest.mark.parametrize(
    "content",
    ["a,b\n1,2\n", "[1]\n", "no newline", '{"loss": 1}\n', "\n", '{"loss": 1}', '{"steps": 3}'],
)
def test_another_kind_of_file_is_refused_and_left_alone(content, tmp_path):
    path = tmp_path / "precious.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match="path must be a new file or a log.*another path"):
        json_lines(path)
    assert path.read_text() == content


def test_errors_name_the_argument(tmp_path, library_errors):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="path must be a file"):
        json_lines(tmp_path)
    with pytest.raises(ValueError, match="folder must be a folder"):
        tensorboard(tmp_path / "file")
    for make in (json_lines, tensorboard):
        with pytest.raises(ValueError, match="every must be 1 or more, got 0"):
            make(tmp_path / "new", every=0)
    with pytest.raises(ValueError, match="'step'"):
        json_lines(tmp_path / "run.jsonl")(1, {"step": 0.5})
    for wrong in ("run.jsonl", [1], None):
        with pytest.raises(TypeError, match="log must be a callable"):
            logs.listed(wrong)


def test_without_tensorboardx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.proto", None)
    with pytest.raises(ImportError, match=r"distill_jax\[tensorboard\]"):
        tensorboard(tmp_path)


@pytest.fixture
def full_disk():
    """A function that lets files grow to so many bytes only."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_warned_of_once_and_leaves_whole_lines(tmp_path, full_disk):
    path = tmp_path / "run.jsonl"
    log = json_lines(path)
    log(1, {"loss": 0.5})
    line = path.stat().st_size
    full_disk(2 * line - 5)  # the next line does not fit in whole
    with pytest.warns(
        RuntimeWarning, match="run.jsonl cannot be written.*training continues"
    ) as met:
        for step in (2, 3, 4):
            log(step, {"loss": 0.5})
    assert len(met) == 1 and steps_of(path) == [1]
    full_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    log(5, {"loss": 0.5})
    assert steps_of(path) == [1, 5]


@pytest.mark.parametrize("make", [json_lines, tensorboard])
def test_a_file_that_is_closed_or_gone_is_warned_of(make, tmp_path):
    log = make(tmp_path / "folder" / "log")
    log(1, {"loss": 0.5})
    log.target.file.close()
    with pytest.warns(RuntimeWarning, match="closed file") as met:
        log(2, {"loss": 0.5})
        log(3, {"loss": 0.5})
    assert len(met) == 1


def test_nothing_has_to_be_closed(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in (json_lines, tensorboard):
            log = make(tmp_path / make.__name__)
            log(1, {"loss": 0.5})
            file = log.target.file
            del log
            gc.collect()
            assert file.closed


def test_a_killed_process_loses_no_record(tmp_path):
    program = f"""
import os, signal
from distill_jax.training import json_lines
log = json_lines({str(tmp_path / "run.jsonl")!r})
for step in range(1, 6):
    log(step, {{"loss": 1.0 / step}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == -9
    assert steps_of(tmp_path / "run.jsonl") == [1, 2, 3, 4, 5]


def events(folder):
    """What is in a folder's event files, read with their checksums."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length, check = struct.unpack_from("<QI", data, at)
            assert check == masked_crc32c(data[at : at + 8])
            body = data[at + 12 : at + 12 + length]
            assert struct.unpack_from("<I", data, at + 12 + length)[0] == masked_crc32c(body)
            found.append(Event.FromString(body))
            at += 16 + length
    return found


def test_events_are_as_tensorboard_wants_them(tmp_path):
    log = tensorboard(tmp_path)
    log(1, {"loss": 0.5, "teacher": math.nan})
    log(2, {"loss": 0.25, "teacher": 1.0})
    version, start, *points = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == start.session_log.START and start.step == 1
    read = [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in points]
    np.testing.assert_equal(
        read, [(1, {"loss": 0.5, "teacher": math.nan}), (2, {"loss": 0.25, "teacher": 1.0})]
    )
    assert all(e.wall_time > 1e9 for e in points)


def test_tensorboard_shows_a_resumed_run_once(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for value, steps in ((1.0, range(1, 7)), (2.0, range(4, 8))):
        log = tensorboard(tmp_path)
        for step in steps:
            log(step, {"loss": value})
    shown = reader.EventAccumulator(str(tmp_path)).Reload()
    points = [(e.step, e.value) for e in shown.Scalars("loss")]
    assert points == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2)]


def test_several_steps_are_told_in_order_as_python_floats():
    told = []
    metrics = {"loss": np.array([0.5, 0.25], np.float32), "teacher": np.array([1.0, 2.0])}
    both = logs.listed([lambda *x: told.append(("a", *x)), lambda *x: told.append(("b", *x))])
    logs.tell(both, 17, metrics)
    want = {17: {"loss": 0.5, "teacher": 1.0}, 18: {"loss": 0.25, "teacher": 2.0}}
    assert told == [(who, step, want[step]) for step in (17, 18) for who in "ab"]
    assert all(type(x) is float for *_, row in told for x in row.values())
    assert logs.listed(print) == (print,) and logs.listed(()) == ()


STEPS, CALL = 12, 4


def small_fit(batches=None, **options):
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 3)).astype(np.float32),
        "labels": rng.integers(0, 2, 8).astype(np.int32),
    }
    options = {"key": jax.random.key(0), "steps": STEPS, "steps_per_call": CALL} | options
    batches = itertools.repeat(batch) if batches is None else batches(batch)
    return fit(MODEL, OBJECTIVE, SGD, batches, prefetch=0, **options)


def test_fit_tells_each_step_and_each_evaluation_in_order(tmp_path):
    path = tmp_path / "run.jsonl"
    _, history = small_fit(
        log=json_lines(path), evaluate=lambda state: {"at": float(state.step)}, evaluate_every=8
    )
    want = [{"step": i + 1, "loss": x, "labels": x} for i, x in enumerate(history["loss"].tolist())]
    want.insert(8, {"step": 8, "at": 8.0})
    assert lines(path) == [*want, {"step": 12, "at": 12.0}]


def test_logs_never_wait_for_the_device(monkeypatch):
    """Metrics are told when the next call is under way, and fetched no more often with logs."""
    drawn, fetched = [], []
    asarray = np.asarray

    def counting(x, *arguments, **options):
        if isinstance(x, jax.Array):
            fetched.append(x.shape)
        return asarray(x, *arguments, **options)

    monkeypatch.setattr(np, "asarray", counting)

    def batches(batch):
        for step in itertools.count():
            drawn.append(step)
            yield batch

    told = []

    def log(step, metrics):
        told.append((step, len(drawn), [type(x) for x in metrics.values()]))

    counts = []
    for given in ((), log, [log, log, log]):
        fetched.clear(), drawn.clear(), told.clear()
        small_fit(batches, log=given)
        counts.append(fetched.count((CALL,)))
    assert counts[0] == counts[1] == counts[2] == 2 * STEPS / CALL  # the loss and one term, a call
    assert [step for step, *_ in told] == [step for step in range(1, STEPS + 1) for _ in range(3)]
    for step, at, _ in told:  # all batches of the next call have been drawn
        assert at >= min(((step - 1) // CALL + 2) * CALL, STEPS)
    assert {kind for *_, kinds in told for kind in kinds} == {float}

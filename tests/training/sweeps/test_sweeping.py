"""Sweeps: the same results in every way of running them, few programs, nothing finished is lost."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.models import mlp
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import best, read_sweep, run, summary, sweep
from distill_jax.training.sweeps import _blocks
from distill_jax.training.watching._progress import Progress

KEY = jax.random.key(7)
SHARED = {"data": {"x": jnp.linspace(-1.0, 2.0, 12)}}
GRID = {"rate": [0.05, 0.1, 0.2], "pull": [0.0, 1.0]}
TRACED: list[dict] = []


def descend(key, *, rate, pull=0.0, power=2, name="plain", data):
    """A few steps towards the data, counting how often it is traced."""
    TRACED.append({"power": power, "name": name})
    assert isinstance(data["x"], jax.core.Tracer)

    def step(w, x):
        w = w - rate * ((w - x) + pull * w)
        return w, jnp.abs(w - data["x"].mean()) ** power

    w, curve = jax.lax.scan(step, jax.random.normal(key), data["x"])
    return {"loss": curve[-1], "curve": curve, "steps": jnp.asarray(len(curve)), "low": w < 0}


def one_by_one(rows, power=2):
    """What each row should hold: the trial alone, not compiled with others."""
    alone = jax.jit(descend, static_argnames=("power", "name"))
    for row in rows:
        key = jax.random.fold_in(KEY, row["seed"])
        numbers = {name: jnp.float32(row[name]) for name in GRID}
        yield alone(key, **numbers, power=row.get("power", power), **SHARED)


def check(rows):
    before = len(TRACED)
    wanted = list(one_by_one(rows))
    del TRACED[before:]
    for row, want in zip(rows, wanted, strict=True):
        for name in ("loss", "curve"):
            np.testing.assert_allclose(row[name], want[name], rtol=1e-4, atol=1e-5)
        assert (row["steps"], row["low"]) == (12, bool(want["low"]))


@pytest.fixture(autouse=True)
def _nothing_known():
    """Programs and choices of other tests are forgotten, and traces not counted."""
    _blocks._KNOWN.clear()
    TRACED.clear()


@pytest.mark.parametrize("how", ["vmap", "sequential", None])
def test_rows_are_those_of_trials_alone(how):
    rows = sweep(descend, GRID, key=KEY, seeds=2, shared=SHARED, mode=how)
    places = [(row["rate"], row["pull"], row["seed"]) for row in rows]
    assert places == [(r, p, s) for r in GRID["rate"] for p in GRID["pull"] for s in (0, 1)]
    assert list(rows[0]) == ["rate", "pull", "seed", "loss", "curve", "steps", "low", "mode"]
    assert [type(rows[0][name]) for name in ("loss", "steps", "low")] == [float, int, bool]
    assert rows[0]["curve"].shape == (12,) and rows[0]["curve"].dtype == np.float32
    assert {row["mode"] for row in rows} <= ({how} if how else {"vmap", "sequential"})
    check(rows)


def test_a_value_compiles_nothing_and_a_fixed_one_a_program():
    def compiled():
        return sum(len(known.programs) for known in _blocks._KNOWN.values())

    # Blocks of 4 hold the 18 trials of a group: the last one is filled up.
    how = {"key": KEY, "seeds": [0, 5, 3], "mode": "vmap", "block": 4}
    grid = {**GRID, "power": [1, 2]}
    rows = sweep(descend, grid, shared=SHARED, static=["power"], **how)
    assert TRACED == [{"power": 1, "name": "plain"}, {"power": 2, "name": "plain"}]
    check(rows)
    others = {"rate": [0.3, 0.4], "pull": [3.0], "power": [2]}
    data = {"data": {"x": SHARED["data"]["x"] + 1.0}}
    moved = sweep(descend, others, shared=data, static="power", **how)
    assert compiled() == 2  # other values, other data
    assert [row["seed"] for row in moved] == [0, 5, 3, 0, 5, 3]
    named = {"rate": [0.1], "name": ["a", "b"]}
    sweep(descend, named, shared=SHARED, key=KEY, mode="vmap")
    assert [t["name"] for t in TRACED[3:]] == ["a", "b"] and compiled() == 3


def test_whole_numbers_stay_whole():
    def kinds(key, *, n, x):
        assert (n.dtype, x.dtype) == (jnp.int32, jnp.float32)
        return {"n2": n * 2, "half": jnp.bfloat16(x), "halves": x[None].astype(jnp.bfloat16)}

    [row] = sweep(kinds, [{"n": 3, "x": 1.5}], key=jax.random.PRNGKey(0), mode="vmap")
    assert (row["n2"], row["half"]) == (6, 1.5) and isinstance(row["n2"], int)
    assert row["halves"].dtype == np.float32


def test_a_sweep_over_run():
    model = mlp([4], 3)
    rng = np.random.default_rng(0)
    data = {
        "inputs": rng.standard_normal((20, 5), np.float32),
        "labels": rng.integers(0, 3, 20).astype(np.int32),
        "teacher_logits": rng.standard_normal((20, 3), np.float32),
    }

    def student(key, *, temperature, rate, data):
        objective = weighted_sum(
            term("teacher", 0.9, soft_targets, temperature=temperature),
            term("labels", 0.1, cross_entropy),
        )
        adam = optax.adam(rate)
        _, metrics = run(model, objective, adam, data, key=key, steps=3, batch_size=5)
        return {"loss": metrics["loss"]}

    grid = {"temperature": [1.0, 4.0], "rate": [0.01]}
    rows = sweep(student, grid, key=KEY, seeds=2, shared={"data": data}, mode="vmap")
    for row in rows:
        key = jax.random.fold_in(KEY, row["seed"])
        temperature, rate = jnp.float32(row["temperature"]), jnp.float32(row["rate"])
        want = jax.jit(student)(key, temperature=temperature, rate=rate, data=data)["loss"]
        np.testing.assert_allclose(row["loss"], want, rtol=1e-4)


# How a block is cut, and which way is taken


def first_draws(key, *, rate, order=None):
    init, dropped = jax.random.split(key)
    shuffled = 0.0 if order is None else jax.random.uniform(order)
    return {
        "init": jax.random.normal(init, (3,)),
        "rate_": rate,
        "dropped": jax.random.bernoulli(dropped, 0.5, (8,)),
        "order": shuffled,
    }


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg", "threefry2x32"])
def test_equal_seeds_start_equal_whatever_generates_their_bits(impl):
    key = jax.random.key(3, impl=impl)
    rows = sweep(first_draws, {"rate": [0.1, 0.2, 0.3]}, key=key, seeds=[5, 2])
    for row in rows:
        alone = first_draws(jax.random.fold_in(key, row["seed"]), rate=row["rate"])
        for name in ("init", "dropped"):
            np.testing.assert_allclose(row[name], alone[name], rtol=1e-6)
    side_by_side = functools.partial(
        sweep, first_draws, {"rate": [0.1, 0.2]}, key=key, seeds=2, mode="vmap"
    )
    if impl == "threefry2x32":
        first, _, second, _ = side_by_side()
        np.testing.assert_array_equal(first["init"], second["init"])
    else:
        with pytest.raises(ValueError, match=f"mode='vmap'.*{impl}.*threefry2x32"):
            side_by_side()


def test_a_shared_key_of_any_generator_may_be_drawn_from_side_by_side():
    order = jax.random.key(1, impl="rbg")
    grid = {"rate": [0.1, 0.2]}
    rows = sweep(first_draws, grid, key=KEY, seeds=2, shared={"order": order}, mode="vmap")
    assert {row["order"] for row in rows} == {float(jax.random.uniform(order))}


def known():
    """What the process has learned about the only group there is."""
    [found] = _blocks._KNOWN.values()
    return found


def test_blocks_fit_the_memory():
    def roomy(key, *, scale, data):
        big = jnp.sort(scale * data + jax.random.normal(key, (20_000,)))  # 80 KB a trial or more
        return {"median": big[10_000], "big": big[::2]}

    how = {"key": KEY, "seeds": 4, "shared": {"data": jnp.arange(20_000.0)}, "mode": "vmap"}
    grid = {"scale": [1.0, 2.0, 3.0, 4.0]}
    whole = sweep(roomy, grid, **how, memory=1e9)
    [(_, slots)] = known().programs
    assert slots == 16
    need = known().programs["vmap", 16].bytes
    cut = sweep(roomy, grid, **how, memory=need / 3)
    fitting = [p.slots for p in known().programs.values() if p.bytes <= need / 3]
    assert fitting and max(fitting) < 16
    np.testing.assert_allclose([r["median"] for r in cut], [r["median"] for r in whole], rtol=1e-5)
    size = r"[\d.]+ [KMG]B"
    alone = (
        rf"would take about {size} on each device \(80 KB of it shared data\), more than the 90 KB"
    )
    with pytest.raises(ValueError, match=f"one trial of '.*roomy' {alone} of memory="):
        sweep(roomy, grid, **how, memory=9e4)
    with pytest.raises(ValueError, match=rf"block of 12 trials.*about {size}.*lower block="):
        sweep(roomy, grid, **how, memory=need / 3, block=12)
    with pytest.raises(ValueError, match="one trial of"):
        sweep(roomy, grid, **how | {"mode": "sequential"}, memory=9e4)


@pytest.mark.parametrize("faster", ["vmap", "sequential"])
def test_the_faster_way_is_taken_and_remembered(monkeypatch, faster):
    real, timed = _blocks._Group.timed, []

    def measured(group, program, todo):  # the clock of a test machine says nothing
        done, rest, _ = real(group, program, todo)
        timed.append(program.mode)
        return done, rest, 1e9 if program.mode != faster else 1e6

    monkeypatch.setattr(_blocks._Group, "timed", measured)
    how = {"key": KEY, "seeds": 2, "shared": SHARED, "block": 4}
    rows = sweep(descend, GRID, **how)
    assert timed == ["sequential", "vmap"]
    assert [row["mode"] for row in rows] == ["sequential"] + ["vmap"] * 4 + [faster] * 7
    check(rows)
    again = sweep(descend, GRID, **how)
    assert {row["mode"] for row in again} == {faster} and len(timed) == len(known().programs) == 2


FACTOR = jnp.ones(3)


def test_a_program_is_used_again_only_for_what_it_computes(monkeypatch):
    def kind(key, *, a, b):
        a = a[0] if isinstance(a, tuple) else a
        return {"kind": [int, float, bool].index(type(a)), "sum": (b * FACTOR).sum()}

    how = {"key": KEY, "mode": "sequential", "static": "a"}

    def result(a, trial=kind):
        [row] = sweep(trial, {"a": [a], "b": [2.0]}, **how)
        return row["kind"], row["sum"]

    equal = (1, 1.0, True, (1,), (1.0,), (True,))  # for Python
    assert [result(a)[0] for a in equal] == [0, 1, 2, 0, 1, 2]
    assert len(_blocks._KNOWN) == 3  # the tuples compute the same
    assert result(2, lambda key, *, a, b: kind(key, a=a, b=b)) == (0, 6.0)
    assert len(_blocks._KNOWN) == 3  # and so does the same code made again
    monkeypatch.setitem(globals(), "FACTOR", jnp.full(3, 10.0))
    assert result(1) == (0, 60.0)


def test_a_callback_to_the_host_belongs_to_what_is_computed():
    def made(number):
        def trial(key, *, a):
            kind = jax.ShapeDtypeStruct((), jnp.float32)
            return {"m": jax.pure_callback(lambda a: np.float32(number), kind, a)}

        return trial

    how = {"key": KEY, "mode": "sequential"}
    assert [sweep(made(n), {"a": [1.0]}, **how)[0]["m"] for n in (3, 4)] == [3.0, 4.0]


def test_vmap_is_not_compiled_for_little_work(monkeypatch):
    real = _blocks._Group._compiled

    def slowly(group, mode, slots):
        return dataclasses.replace(real(group, mode, slots), seconds=1e9)

    monkeypatch.setattr(_blocks._Group, "_compiled", slowly)
    rows = sweep(descend, GRID, key=KEY, seeds=2, shared=SHARED)
    assert {row["mode"] for row in rows} == {"sequential"}
    assert list(known().programs) == [("sequential", 1)] and known().mode is None
    [row] = sweep(descend, {"rate": [0.1]}, key=KEY, shared=SHARED)
    assert row["mode"] == "sequential"  # nothing to put side by side


def test_a_block_that_holds_one_trial_only_is_none():
    need = sweep(descend, GRID, key=KEY, shared=SHARED, mode="sequential") and known()
    tight = need.programs["sequential", 1].bytes + 1
    rows = sweep(descend, GRID, key=KEY, shared=SHARED, memory=tight)
    assert {row["mode"] for row in rows} == {"sequential"}


# The file


FILED = {"key": KEY, "seeds": 2, "shared": SHARED, "mode": "sequential"}


def same(rows, others):
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert list(row) == list(other)
        for name, value in row.items():
            assert type(value) is type(other[name])
            if isinstance(value, tuple):
                assert value == other[name]
            else:
                np.testing.assert_array_equal(value, other[name])


def test_what_is_in_the_file_is_not_run_again(tmp_path):
    file = tmp_path / "folder" / "sweep.jsonl"
    rows = sweep(descend, GRID, **FILED, file=file)
    lines = file.read_text().splitlines()
    assert len(lines) == 2 + 12
    same(read_sweep(file), rows)
    same(sweep(descend, GRID, **FILED, file=file), rows)
    assert file.read_text().splitlines() == lines
    # More values and seeds: only these run. Less: only these are returned.
    more = sweep(descend, GRID | {"rate": [0.05, 0.7]}, **FILED | {"seeds": 3}, file=file)
    assert len(file.read_text().splitlines()) == 2 + 12 + 8
    same([row for row in more if row["seed"] < 2 and row["rate"] == 0.05], rows[:4])
    same(sweep(descend, GRID, **FILED, file=file), rows)
    # The file is one of JSON, whatever the numbers were.
    for line in file.read_text().splitlines():
        json.loads(line, parse_constant=lambda x: pytest.fail(x))


def test_numbers_that_are_not_finite_and_fixed_values_come_back(tmp_path):
    def odd(key, *, a, shape, kind):
        bad = jnp.stack([jnp.nan * a, jnp.inf, -jnp.inf])
        return {"nan": jnp.nan * a, "bad": bad, "none": jnp.zeros((0, 2)), "flags": a > bad}

    grid = {"a": [1.0], "shape": [(2, (3,))], "kind": [None, True, "x"]}
    file = tmp_path / "sweep.jsonl"
    with pytest.raises(TypeError, match="one kind"):
        sweep(odd, grid, key=KEY, file=file)
    assert not file.exists()
    rows = sweep(odd, grid, key=KEY, file=file, static=["kind"], mode="vmap")
    assert rows[0]["flags"].dtype == bool and rows[0]["none"].shape == (0, 2)
    same(read_sweep(file), rows)
    same(sweep(odd, grid, key=KEY, file=file, static=["kind"], mode="vmap"), rows)


def test_infinite_parameters_come_back_as_numbers_and_strings_as_strings(tmp_path):
    file, inf = tmp_path / "sweep.jsonl", float("inf")
    grid = {"clip": [1.0, inf, -inf], "ends": [(0.0, inf)], "name": ["inf", "nan"]}

    def clipped(key, *, clip, ends, name):
        return {"m": jnp.minimum(clip, 3.0)}

    rows = sweep(clipped, grid, key=KEY, file=file, mode="vmap")
    same(read_sweep(file), sorted(rows, key=lambda row: row["name"] == "nan"))
    before = file.read_bytes()
    same(sweep(clipped, grid, key=KEY, file=file, mode="vmap"), rows)
    assert file.read_bytes() == before


def test_a_line_cut_off_is_run_again(tmp_path):
    file = tmp_path / "sweep.jsonl"
    rows = sweep(descend, GRID, **FILED, file=file)
    whole = file.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    # In the header, right behind a line, and within one: each once.
    for length in (10, ends[0], ends[3] + 1, ends[7] + 25, len(whole) - 1):
        file.write_bytes(whole[:length])
        same(sweep(descend, GRID, **FILED, file=file), rows)
        assert file.read_bytes() == whole


def flipped(content, stride):
    """The content with each of its bits the other way, or every few of them, one at a time."""
    for i in range(0, 8 * len(content), stride):
        byte = content[i // 8] ^ 1 << i % 8
        yield i // 8, content[: i // 8] + bytes([byte]) + content[i // 8 + 1 :]


@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_no_flipped_bit_gives_another_row(tmp_path, stride):
    """The bits of a small file: intact rows come back, a damaged one is named, none is altered."""

    def trial(key, *, rate):
        return {"error": 0.5 * rate, "at": jnp.stack([rate, rate])}

    file, how = tmp_path / "sweep.jsonl", {"key": KEY, "mode": "sequential"}
    rows = sweep(trial, {"rate": [1.0, 2.0, 4.0]}, **how, file=file)
    content = file.read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    shown = {json.dumps(row, default=np.ndarray.tolist) for row in rows}
    for place, other in flipped(content, stride):
        file.write_bytes(other)
        line = 1 + sum(end < place for end in ends)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = read_sweep(file)
        assert {json.dumps(row, default=np.ndarray.tolist) for row in found} <= shown
        lost = 1 if line > 2 else 0
        if place in ends[2:-1]:
            lost = 2  # two lines have become one
        assert len(found) >= 3 - max(lost, place == ends[1])
        if place != ends[-1]:  # an incomplete last line
            (warning,) = caught
            assert str(warning.message).startswith((f"line {line} of", f"lines {line},"))
    # The same for the sweep: it runs what is missing, or says why it cannot.
    for line, remedy in ((1, "use another file"), (2, "which program made"), (4, None)):
        middle = (ends[line - 1] + (ends[line - 2] if line > 1 else 0)) // 2
        file.write_bytes(content[:middle] + b"?" + content[middle + 1 :])
        before = file.read_bytes()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if remedy is None:
                same(sweep(trial, {"rate": [1.0, 2.0, 4.0]}, **how, file=file), rows)
                assert file.read_bytes() == before + content[ends[2] + 1 : ends[3] + 1]
            else:
                with pytest.raises(ValueError, match=f"{remedy}.*read_sweep still reads"):
                    sweep(trial, {"rate": [1.0, 2.0, 4.0]}, **how, file=file)
                assert file.read_bytes() == before
        assert bool(caught) == (line > 1)
        assert all(f"line {line} of" in str(w.message) for w in caught)


def test_a_file_of_another_version_says_so(tmp_path):
    file = tmp_path / "sweep.jsonl"
    file.write_text('{"sweep": 1, "trial": "descend"}\n{"parameters": {}, "seed": 0}\n')
    for call in (lambda: sweep(descend, GRID, **FILED, file=file), lambda: read_sweep(file)):
        with pytest.raises(ValueError, match=r"another version of distill_jax \(format 1, this on"):
            call()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit to set there")
@pytest.mark.parametrize("room", [100, 900, 1400])
def test_when_the_disk_is_full_the_rows_come_with_the_error(tmp_path, room):
    file = tmp_path / "sweep.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    whole = sweep(descend, GRID, **FILED)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            sweep(descend, GRID, **FILED, file=file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    kept = file.read_bytes()
    assert kept.endswith(b"\n") or not kept
    if room > 100:  # else there was no room for the first line
        rows = caught.value.rows
        same(rows, whole[: len(rows)])
        in_file = read_sweep(file)
        same(in_file, rows[: len(in_file)])
        assert len(rows) == len(in_file) + 1  # one block
        assert f"{len(in_file)} of them in the file" in caught.value.__notes__[0]
    same(sweep(descend, GRID, **FILED, file=file), whole)


def renamed(key, *, rate, pull=0.0, data):
    return descend(key, rate=rate, pull=pull, data=data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trial": renamed}, "its trial is 'descend', here 'renamed'"),
        ({"key": jax.random.key(8)}, r"whose key data differ \(words\)"),
        ({"grid": {"rate": [0.1]}}, r"its parameters is \['pull', 'rate'\], here \['rate'\]"),
        (
            {"shared": {"data": {"x": jnp.linspace(-1.0, 2.1, 12)}}},
            r"whose shared data differ \(data\)",
        ),
    ],
)
def test_a_file_of_another_sweep_is_refused(tmp_path, change, message):
    file = tmp_path / "sweep.jsonl"
    one = {"grid": {"rate": [0.1], "pull": [0.0]}, **FILED}
    trial = change.pop("trial", descend)
    sweep(descend, **one, file=file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=message):
        sweep(trial, **one | change, file=file)
    assert file.read_bytes() == before


def test_a_file_of_another_program_is_refused(tmp_path):
    def made(steps):
        def train(key, *, rate):
            return {"w": jax.lax.fori_loop(0, steps, lambda i, w: w * rate, jnp.ones(()))}

        return train

    file = tmp_path / "sweep.jsonl"
    how = {"key": KEY, "file": file, "mode": "sequential"}
    rows = sweep(made(3), {"rate": [0.5]}, **how)
    same(sweep(made(3), {"rate": [0.5, 0.25]}, **how)[:1], rows)  # the same code made again
    with pytest.raises(ValueError, match="program of the trial that made .* differs from this one"):
        sweep(made(4), {"rate": [0.5]}, **how)
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    for call in (lambda f: sweep(made(3), {"rate": [0.5]}, key=KEY, file=f), read_sweep):
        with pytest.raises(ValueError, match="not a file of a sweep"):
            call(tmp_path / "other.jsonl")


@pytest.mark.parametrize(
    "content", [b'{"precious": 1}', b"precious", b'{"sweep": 1, "trial": "other"', b"\xff\x00"]
)
def test_a_file_of_something_else_without_a_newline_is_left_alone(tmp_path, content):
    file = tmp_path / "results.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="results.json' is not a file of a sweep"):
        sweep(descend, GRID, **FILED, file=file)
    assert file.read_bytes() == content


def test_an_interruption_keeps_what_was_finished(tmp_path, monkeypatch):
    real = Progress.update

    def interrupted(bar, done, parts):
        real(bar, done, parts)
        if done >= 8:
            raise KeyboardInterrupt

    rows = sweep(descend, GRID, **FILED | {"mode": "vmap"}, block=4)
    file = tmp_path / "sweep.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupted)
        for where in (None, file):
            with pytest.raises(KeyboardInterrupt) as caught:
                sweep(descend, GRID, **FILED | {"mode": "vmap"}, block=4, file=where)
            same(caught.value.rows, rows[:8])
            assert "8 of 12 trials have finished" in caught.value.__notes__[0]
    same(read_sweep(file), rows[:8])
    same(sweep(descend, GRID, **FILED | {"mode": "vmap"}, block=4, file=file), rows)


SLOW = """
import sys, time
import jax, jax.numpy as jnp
from distill_jax.training import sweep

def slow(key, *, rate):
    w = jax.lax.fori_loop(0, 200_000, lambda i, w: jnp.sin(w + rate), jax.random.normal(key))
    return {"w": w}

def finished(file):
    how = dict(key=jax.random.key(0), seeds=20, mode="sequential", progress=False)
    return sweep(slow, {"rate": [0.1, 0.2, 0.3]}, file=file, **how)
"""


def test_kill_9_loses_nothing_that_was_finished(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    file = tmp_path / "sweep.jsonl"

    def start(call):
        command = [sys.executable, "-c", f"import slow; {call}"]
        root = str(pathlib.Path(__file__).parents[3])
        path = os.pathsep.join([str(tmp_path), root])
        return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path)

    def lines():
        return file.read_bytes().count(b"\n") if file.exists() else 0

    first = start(f"slow.finished({str(file)!r})")
    deadline = time.monotonic() + 120
    while lines() < 5 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    first.kill()
    first.wait()
    kept = read_sweep(file)
    assert len(kept) >= 3  # and not all, unless this process was held up for long
    again = start(
        f"rows = slow.finished({str(file)!r}); whole = slow.finished(None); "
        f"assert rows == whole, (rows, whole); assert rows[: {len(kept)}] == {kept!r}"
    )
    assert again.wait(timeout=120) == 0
    assert lines() == 2 + 60  # none was run twice


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_two_sweeps_do_not_write_one_file(tmp_path):
    file = tmp_path / "sweep.jsonl"

    other = jax.random.key(0)

    def nested(key, *, rate):
        with pytest.raises(ValueError, match="being written by another sweep"):
            with jax.core.eval_context():
                sweep(lambda key, *, rate: {"a": rate}, {"rate": [1.0]}, key=other, file=file)
        return {"a": rate}

    sweep(nested, {"rate": [1.0]}, key=KEY, file=file)


# What trials return, and other bad input


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda rate: rate, TypeError, "must return a dictionary of metrics.*got"),
        (lambda rate: {}, TypeError, "got an empty one"),
        (lambda rate: {"a": {"b": rate}}, TypeError, "metric 'a' of the trial.*got dict"),
        (lambda rate: {"a": None}, TypeError, "got NoneType"),
        (lambda rate: {"a": "high"}, TypeError, "got str"),
        (lambda rate: {"a": 1j * rate}, TypeError, "must be real"),
        (lambda rate: {"a": jax.random.key(0)}, TypeError, r"got key<"),
        (lambda rate: {1: rate}, TypeError, "must have names, got 1"),
        (
            lambda rate: {"rate": rate},
            ValueError,
            "name of another column.*'mode', 'rate', 'seed'",
        ),
    ],
)
def test_metrics_that_are_none(result, error, message):
    def trial(key, *, rate):
        return result(rate)

    with pytest.raises(error, match=message):
        sweep(trial, {"rate": [0.1]}, key=KEY)


def test_plain_numbers_are_metrics_too():
    rows = sweep(lambda key, *, a: {"one": 1, "yes": True, "half": 0.5}, {"a": [1, 2]}, key=KEY)
    assert [rows[1][name] for name in ("one", "yes", "half")] == [1, True, 0.5]


@pytest.mark.usefixtures("library_errors")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"grid": {"rte": [0.1]}}, ValueError, r"'rte'.*did you mean 'rate'.*parameters are"),
        ({"grid": {"rate": []}}, ValueError, "one value or more"),
        ({"seeds": 0}, ValueError, "seeds must be 1 or more"),
        ({"seeds": [1, 1]}, ValueError, "seeds must differ"),
        ({"seeds": [-1]}, ValueError, "seeds must differ and lie in"),
        (
            {"mode": "fast"},
            ValueError,
            "mode must be one of 'vmap', 'sequential' or None, got 'fast'",
        ),
        ({"block": 0}, ValueError, "block must be finite and > 0"),
        ({"memory": -1.0}, ValueError, "memory must be finite and > 0"),
        ({"seeds": "two"}, TypeError, "seeds must be a number of trials, or a list of integers"),
        ({"seeds": [0, 1.5]}, TypeError, "seeds must be a number of trials"),
        ({"seeds": 1.0}, TypeError, "seeds must be a number of trials"),
        ({"memory": "1GB"}, TypeError, "memory must be a number of bytes.* got '1GB'"),
        ({"block": 2.5}, TypeError, "block must be an integer, or None, got 2.5"),
        ({"devices": []}, ValueError, "devices must be one or more"),
        ({"shared": {"data": "mnist"}}, TypeError, r"shared\['data'\] must hold arrays, got str"),
        ({"static": ["power"]}, ValueError, "static names 'power', which is not in grid"),
    ],
)
def test_arguments_that_are_none(change, error, message):
    with pytest.raises(error, match=message):
        sweep(descend, **{"grid": {"rate": [0.1]}, "key": KEY, "shared": SHARED, **change})
    assert TRACED == []


@pytest.mark.usefixtures("library_errors")
def test_a_width_that_is_traced_gets_the_hint_whatever_is_raised():
    def wide(key, *, width):
        return {"size": len(mlp([width], 3).init(key, jnp.zeros((1, 2))))}

    with pytest.raises(TypeError, match=r"sizes\[0\] must be a Python int, not traced") as caught:
        sweep(wide, {"width": [4, 8]}, key=KEY)
    assert "static=" in caught.value.__notes__[0]


@pytest.mark.usefixtures("library_errors")
def test_numbers_of_numpy_are_taken_for_numbers():
    how = {"key": KEY, "block": np.int32(2), "memory": np.float32(1e9), "mode": "vmap"}
    for seeds in (np.int64(2), np.asarray(2), np.arange(2), [np.int8(0), np.uint8(1)]):
        rows = sweep(lambda key, *, a: {"m": a}, {"a": [1.0]}, seeds=seeds, **how)  # pyright: ignore
        assert [row["seed"] for row in rows] == [0, 1]
        assert {type(row["seed"]) for row in rows} == {int}


def test_a_number_that_decides_a_shape_must_be_static():
    def wide(key, *, width):
        return {"norm": jnp.linalg.norm(jax.random.normal(key, (width,)))}

    with pytest.raises(TypeError) as caught:
        sweep(wide, {"width": [4, 8]}, key=KEY)
    assert "['width'] are traced" in caught.value.__notes__[0]
    assert "static=" in caught.value.__notes__[0]
    assert len(sweep(wide, {"width": [4, 8]}, key=KEY, static=["width"])) == 2


# Choosing


def rows_of(**accuracies):
    return [
        {"name": name, "rate": 0.1, "seed": s, "accuracy": a, "curve": np.ones(3), "mode": "vmap"}
        for name, values in accuracies.items()
        for s, a in enumerate(values)
    ]


@pytest.mark.quick
def test_summaries_have_mean_and_spread_over_seeds():
    rows = rows_of(a=[1.0, 3.0], b=[5.0])
    assert summary(rows) == [
        {"name": "a", "rate": 0.1, "accuracy": {"mean": 2.0, "std": 2**0.5, "n": 2}},
        {"name": "b", "rate": 0.1, "accuracy": {"mean": 5.0, "std": None, "n": 1}},
    ]
    [row] = summary(rows, over=("seed", "name"))
    assert row["accuracy"]["mean"] == 3.0 and row["accuracy"]["n"] == 3
    with pytest.raises(ValueError, match=r"over names \['depth'\]"):
        summary(rows, over="depth")
    with pytest.raises(ValueError, match="must have a column 'seed'"):
        summary([{"a": 1.0}])


@pytest.mark.quick
def test_the_best_is_chosen_by_means_of_validation_alone():
    nan, inf = float("nan"), float("inf")
    rows = rows_of(lucky=[0.9, 0.1], steady=[0.6, 0.7], broken=[1.0, nan], endless=[inf, 1.0])
    assert best(rows, by="accuracy", better="higher")["name"] == "steady"
    assert best(rows, by="accuracy", better="lower")["name"] == "lucky"
    assert best(summary(rows), by="accuracy", better="higher")["accuracy"]["n"] == 2
    for name in ("test_accuracy", "Test accuracy", "test", "acc_test", "a/test/b"):
        with pytest.raises(ValueError, match="a metric of test data"):
            best([{"seed": 0, name: 1.0}], by=name, better="higher")
    with pytest.raises(
        ValueError, match="must be a metric that all rows have as a number, got 'loss'"
    ):
        best(rows, by="loss", better="lower")
    with pytest.raises(ValueError, match="no configuration has a finite mean"):
        best(rows_of(a=[nan], b=[inf]), by="accuracy", better="higher")
    with pytest.raises(ValueError, match="rows must be one or more, got none"):
        best([], by="accuracy", better="higher")
    assert best([{"latest": 1.0}], by="latest", better="higher") == {"latest": 1.0}


# Several devices


DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from distill_jax.training import sweep
from distill_jax.training.sweeps import _blocks

assert len(jax.devices()) == 8
placed = []

def trial(key, *, rate, pull, data):
    def step(w, x):
        return w - rate * (w - x + pull * w), w
    order = jax.random.permutation(key, 12)
    w, curve = jax.lax.scan(step, jax.random.normal(key), data["x"][order])
    return {"loss": w, "curve": curve}

how = dict(key=jax.random.key(7), seeds=3, shared={"data": {"x": jnp.linspace(-1, 2, 12)}})
grid = {"rate": [0.05, 0.1, 0.2], "pull": [0.0, 1.0]}
alone = sweep(trial, grid, **how, devices=jax.devices()[:1], mode="sequential")
for options in ({"mode": "vmap"}, {"mode": "sequential"}, {"mode": "vmap", "block": 3}, {},
                {"mode": "vmap", "devices": jax.devices()[2:5]}):
    _blocks._KNOWN.clear()
    rows = sweep(trial, grid, **how, **options)
    assert [(r["rate"], r["pull"], r["seed"]) for r in rows] == [
        (r["rate"], r["pull"], r["seed"]) for r in alone]
    for row, want in zip(rows, alone):
        np.testing.assert_allclose(row["curve"], want["curve"], rtol=1e-5, atol=1e-6)
    [known] = _blocks._KNOWN.values()
    for (mode, slots), program in known.programs.items():
        count = len(options.get("devices", jax.devices()))
        assert slots % count == 0 and (mode == "vmap" or slots == count)
        # 18 trials on 8 devices: three on each, of which six fill up.
        wanted = 8 if "block" in options else -(-18 // count) * count
        assert mode == "sequential" or slots == wanted
        [output] = {o for o in jax.tree.leaves(program.call.output_shardings)}
        assert len(output.device_set) == count and not output.is_fully_replicated
    if options.get("devices"):
        # What one device began, eight go on with.
        file = "sweep.jsonl"
        begun = sweep(trial, grid, **how | {"seeds": 1}, devices=jax.devices()[3:4], file=file)
        rows = sweep(trial, grid, **how, mode="vmap", file=file)
        assert [r["loss"] for r in rows if r["seed"] == 0] == [r["loss"] for r in begun]
        np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in alone], rtol=1e-4)
print("done")
"""


def test_blocks_are_spread_over_devices(tmp_path):
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[3]),
    }
    command = [sys.executable, "-c", DEVICES]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "done" in done.stdout, done.stderr

"""Runs killed in the middle, as real processes: started again, they end in the same bits."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[3]
STEPS = 1200

RUN = """
import hashlib, os, sys
import jax, jax.numpy as jnp, numpy as np, optax
from distill_jax import models, teachers, training
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import term, weighted_sum

source, folder, every, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng = np.random.default_rng(0)
data = {"inputs": rng.normal(size=(50, 5)).astype(np.float32)}
data["labels"] = np.argmax(data["inputs"][:, :3], axis=1).astype(np.int32)


class Stream:
    at = 0

    def __iter__(self):
        return self

    def __next__(self):
        rows = np.random.default_rng(self.at).integers(0, 50, 8)
        self.at += 1
        return {name: column[rows] for name, column in data.items()}

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


def init(key, context):
    return {"scale": jax.random.normal(key, (3,))}, {"seen": jnp.zeros((), jnp.int32)}


def own(params, state, context):
    off = context.student.logits * params["scale"][None] - context.batch["inputs"][:, :3]
    return (off**2).mean(-1), {"seen": state["seen"] + 1}


def shown(state, metrics):
    print(int(state.step), flush=True)


big = models.mlp([6], 3)
wise = {"big": teachers.teacher(big, *big.init(jax.random.key(1), data["inputs"]))}
state, _ = training.fit(
    models.mlp([4], 3, dropout=0.3),
    weighted_sum(
        term("labels", 0.5, cross_entropy),
        term("big", lambda step: 0.5 / (1 + step), soft_targets, temperature=2.0),
        term("own", 0.1, own, init=init),
    ),
    optax.adam(optax.linear_schedule(1e-2, 0.0, 2000)),
    data if source == "arrays" else Stream(),
    batch_size=8 if source == "arrays" else None,
    key=jax.random.key(0),
    steps=steps,
    steps_per_call=4,
    teachers=wise,
    average_decay=0.9,
    checkpoints=training.Checkpoints(folder, every=every, keep=2),
    callbacks=(shown,),
    progress=False,
)
bits = hashlib.sha256()
for x in jax.tree.leaves(state):
    x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    bits.update(np.asarray(x).tobytes())
print("end", int(state.step), bits.hexdigest(), flush=True)
"""


class Runs:
    """Starts runs that share compiled programs, which one undisturbed run has put on disk."""

    def __init__(self, folder):
        self.cache = folder / "programs"
        self.whole = {"arrays": end(self.start("arrays", folder / "arrays", STEPS, compile=True))}
        self.whole["stream"] = end(self.start("stream", folder / "stream", STEPS))

    def start(self, source, folder, every, *, compile=False):
        code = [sys.executable, "-W", "error", "-c", RUN]
        return subprocess.Popen(
            [*code, source, str(folder), str(every), str(STEPS)],
            cwd=ROOT,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": str(self.cache),
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
                # One that is killed while it writes a program would leave half of it.
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0" if compile else "1000",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("whole"))


def end(process):
    """What a process that nobody kills says of its last state."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert errors == ""
    return output.splitlines()[-1]


def kill(process, folder, chance):
    """Kills a process that has started to train, at a random moment or in the middle of a save."""
    assert process.stdout is not None
    with process:
        if process.stdout.readline():
            moment = chance.uniform(0.0, 0.3)
            if chance.random() < 0.5:
                deadline = time.monotonic() + 10
                while not saving(folder) and time.monotonic() < deadline:
                    pass
                moment = chance.uniform(0.0, 0.02)
            time.sleep(moment)
        process.kill()
        caught = saving(folder)
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    return caught


def saving(folder):
    return any(".orbax-checkpoint-tmp" in name for name in os.listdir(folder))


def killed(runs, source, folder, times):
    """Starts a run again and again, and kills it that many times.

    Returns what the last one says, and how many were cut off in the middle of a save.
    """
    chance, caught = random.Random(0), 0
    for _ in range(times):
        caught += kill(runs.start(source, folder, every=4), folder, chance)
    return end(runs.start(source, folder, every=STEPS)), caught


@pytest.mark.parametrize("source, times", [("arrays", 3), ("stream", 2)])
def test_a_run_that_is_killed_ends_in_the_same_bits(tmp_path, runs, source, times):
    said, caught = killed(runs, source, tmp_path, times)
    assert said == runs.whole[source] and said.startswith(f"end {STEPS} ")
    assert caught, "one of them must be cut off in the middle of a save"


@pytest.mark.slow
@pytest.mark.parametrize("source", ["arrays", "stream"])
def test_a_run_that_is_killed_twenty_times_ends_in_the_same_bits(tmp_path, runs, source):
    said, caught = killed(runs, source, tmp_path, 20)
    assert said == runs.whole[source]
    assert caught >= 5


def test_sigterm_saves_and_the_next_run_goes_on(tmp_path, runs):
    with runs.start("arrays", tmp_path, STEPS) as process:
        assert process.stdout is not None and process.stderr is not None
        said = process.stdout.readline()
        process.terminate()
        # Not by communicate, which passes over what was read ahead with the first line.
        output, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM and errors == ""
    last = int((said + output).splitlines()[-1])
    assert sorted(os.listdir(tmp_path)) == [str(last), "configuration.json"]
    assert 0 < last < STEPS
    assert end(runs.start("arrays", tmp_path, STEPS)) == runs.whole["arrays"]

"""What each process does in ``test_processes.py``.

``python -m tests.training.devices.one_of_several PORT PROCESSES PROCESS FOLDER JOB ...`` runs the
jobs one after another, and writes what each gave into the folder, as ``JOB-PROCESS.json``.
"""

from __future__ import annotations

import functools
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from distill_jax import models, teachers
from distill_jax._fingerprints import digest
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import Checkpoints, data_parallel, fit, fsdp

ROWS, STEPS, EVERY = 16, 12, 3
FOLDER = "run[0.1]"  # no pattern
STUDENT, BIG = models.mlp([32], 3, dropout=0.1), models.mlp([64], 3)
SGD = optax.sgd(0.1, momentum=0.9)


def objective(weight=1.0):
    return weighted_sum(
        term("labels", weight, cross_entropy), term("big", 1.0, soft_targets, temperature=2.0)
    )


@functools.cache
def taught():
    """A teacher with the same bits whatever it is compiled with: checkpoints compare them."""
    rng, inputs = np.random.default_rng(0), jnp.zeros((1, 8))
    shapes = jax.eval_shape(BIG.init, jax.random.key(1), inputs)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    return {"big": teachers.teacher(BIG, *variables)}


def batch(number, process=0, processes=1):
    """The rows of one batch that a process holds."""
    rows = ROWS - number % 4  # where some are missing, the last process has fewer than the others
    inputs = np.random.default_rng(number).normal(size=(rows, 8)).astype(np.float32)
    whole = {"inputs": inputs, "labels": inputs[:, :3].argmax(1).astype(np.int32)}
    size = ROWS // processes
    return {name: x[process * size : (process + 1) * size] for name, x in whole.items()}


def stream(process=0, processes=1, pause=0.0):
    def batches(start):
        for number in range(start, STEPS):
            time.sleep(pause if number > EVERY else 0.0)
            yield batch(number, process, processes)

    return batches


def trained(data, weight=1.0, **options):
    options = {
        "key": jax.random.key(0),
        "teachers": taught(),
        "steps": STEPS,
        "steps_per_call": 2,
        **options,
    }
    return fit(STUDENT, objective(weight), SGD, data, **options)


def arrays():
    batches = [batch(i) for i in range(3)]
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def numbers(found):
    """Parameters and losses as lists, whole ones."""
    state, history = found
    params = multihost_utils.process_allgather(state.params, tiled=True)
    return {"params": jax.tree.map(lambda x: np.asarray(x).tolist(), params)} | {
        name: np.asarray(x).tolist() for name, x in history.items()
    }


def job_disagree(folder, process, processes):
    """Each of these is refused by all processes; what they say."""
    whole = arrays()
    if process == 1:
        whole["labels"] = whole["labels"][::-1]
    layout = data_parallel()
    few = {name: x[: 2 + 2 * process] for name, x in batch(0).items()}
    runs = {
        "options": {"data": whole, "batch_size": 8, "weight": 1.0 + process},
        "data": {"data": whole, "batch_size": 8},
        "steps": {"data": stream(process, processes), "steps": 4 + process},
        "rows": {"data": [few]},
    }
    said = {}
    for name, options in runs.items():
        try:
            trained(**options, layout=layout)
        except ValueError as error:
            said[name] = str(error)
    return said


def job_arrays(folder, process, processes):
    """Every process holds all rows."""
    return numbers(trained(arrays(), batch_size=8, layout=data_parallel()))


def job_stream(folder, process, processes):
    """Each process holds rows of its own, and its part of parameters and teacher."""
    layout = fsdp(least=16)
    found = trained(stream(process, processes), layout=layout)
    kernel = found[0].params["hidden"]["0"]["kernel"]
    held = [kernel.shape, kernel.addressable_shards[0].data.shape]
    # A hash is that of the whole arrays, which no process holds.
    whole = multihost_utils.process_allgather(found[0].params, tiled=True)
    assert not kernel.is_fully_addressable
    assert digest(found[0].params) == digest(jax.tree.map(np.asarray, whole))
    return {**numbers(found), "held": held}


def job_resumable(folder, process, processes, pause=0.0):
    """Saves as it goes, and goes on from what was saved."""
    found = trained(
        stream(process, processes, pause),
        layout=fsdp(least=16),
        checkpoints=Checkpoints(folder / FOLDER, every=EVERY, asynchronous=pause == 0.0),
        callbacks=[lambda state, metrics: print("step", int(state.step), flush=True)],
    )
    return numbers(found)


def job_slow(folder, process, processes):
    """The same, with time to be ended. What is saved is whole before the next step."""
    return job_resumable(folder, process, processes, pause=1.0)


def main(port, processes, process, folder, *jobs):
    process, processes, folder = int(process), int(processes), pathlib.Path(folder)
    jax.distributed.initialize(
        f"127.0.0.1:{port}",
        processes,
        process,
        heartbeat_timeout_seconds=15,
        shutdown_timeout_seconds=30,
    )
    jax.config.update("jax_numpy_rank_promotion", "raise")
    for job in jobs:
        gave = globals()[f"job_{job}"](folder, process, processes)
        (folder / f"{job}-{process}.json").write_text(json.dumps(gave))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Several real processes on this machine, joined by ``jax.distributed``."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from distill_jax.training import Checkpoints
from distill_jax.training.devices import _hosts
from tests.training.devices.one_of_several import (
    EVERY,
    FOLDER,
    STEPS,
    arrays,
    numbers,
    stream,
    trained,
)

ROOT = pathlib.Path(__file__).parents[3]
PATIENCE = 300  # seconds until a test gives up


class Group:
    """Processes that run the same jobs."""

    def __init__(self, folder, processes, *jobs, devices=1):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = (
            f"--xla_force_host_platform_device_count={devices} "
            "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        )
        command = [sys.executable, "-m", "tests.training.devices.one_of_several", port, processes]
        self.outputs = [folder / f"output-{i}" for i in range(processes)]
        self.processes = []
        for i, output in enumerate(self.outputs):
            with output.open("wb") as file:
                process = subprocess.Popen(
                    [str(x) for x in (*command, i, folder, *jobs)],
                    cwd=ROOT,
                    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
                    stdout=file,
                    stderr=file,
                )
            self.processes.append(process)

    def wait(self):
        """The exit codes."""
        deadline = time.monotonic() + PATIENCE
        return [p.wait(max(deadline - time.monotonic(), 1)) for p in self.processes]

    def until(self, text):
        """Waits until every process has written a line."""
        deadline = time.monotonic() + PATIENCE
        while not all(text in self.said(i).splitlines() for i in range(len(self.processes))):
            running = all(p.poll() is None for p in self.processes)
            assert running and time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def said(self, process=None):
        which = range(len(self.outputs)) if process is None else [process]
        return "\n".join(self.outputs[i].read_text(errors="replace") for i in which)

    def gave(self, job):
        """What a job gave, the same in every process."""
        paths = [self.folder / f"{job}-{i}.json" for i in range(len(self.processes))]
        found = [json.loads(path.read_text()) for path in paths]
        assert all(x == found[0] for x in found)
        return found[0]


@contextlib.contextmanager
def group(*arguments, **options):
    started = Group(*arguments, **options)
    try:
        yield started
    finally:
        for process in started.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def alone():
    """What one process makes of the stream."""
    return numbers(trained(stream()))


def close(got, want):
    assert got.keys() >= want.keys()
    for name in want:
        pairs = zip(jax.tree.leaves(got[name]), jax.tree.leaves(want[name]), strict=True)
        for x, y in pairs:
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6, err_msg=name)


def resumed(folder):
    """The run that others began, ended by this process alone; how many steps that took."""
    found = numbers(trained(stream(), checkpoints=Checkpoints(folder / FOLDER, every=EVERY)))
    return found["params"], len(found["loss"])


def test_two_processes_then_one_is_killed(tmp_path, alone):
    with group(tmp_path, 2, "disagree", "arrays", "stream", "slow", devices=2) as two:
        two.until("step 8")
        two.processes[1].kill()
        codes = two.wait()
        said = two.gave("disagree")
        assert said.keys() == {"options", "data", "steps", "rows"}
        words = {
            "options": ["objective/labels/weight", "1.0 in process 0", "2.0 in process 1"],
            "data": ["data/labels", "process 0", "process 1"],
            "steps": ["steps is 4 in process 0; 5 in process 1"],
            "rows": ["process 0", "process 1"],
        }
        for name, expected in words.items():
            assert all(word in said[name] for word in expected), said[name]
        held = two.gave("stream")
        assert held.pop("held") == [[8, 32], [8, 8]]
        close(held, alone)
        close(two.gave("arrays"), numbers(trained(arrays(), batch_size=8)))
        # The other one ended too, and says why.
        assert codes[1] == -signal.SIGKILL and codes[0] not in (0, -signal.SIGKILL)
        assert "another task died" in two.said(0) or "another process" in two.said(0)
        assert not (tmp_path / "slow-0.json").exists()
    params, steps = resumed(tmp_path)
    assert 0 < steps < STEPS
    close({"params": params}, {"params": alone["params"]})


def test_sigterm_to_one_stops_both_at_one_step(tmp_path, alone):
    with group(tmp_path, 2, "slow") as two:
        two.until("step 4")
        two.processes[1].terminate()
        assert two.wait() == [143, 143], two.said()
        last = [two.said(i).split("step ")[-1].split()[0] for i in range(2)]
        assert last[0] == last[1]
        assert (tmp_path / FOLDER / last[0]).is_dir()
    params, steps = resumed(tmp_path)
    assert steps == STEPS - int(last[0]) > 0
    close({"params": params}, {"params": alone["params"]})


@pytest.mark.slow
def test_four_processes_of_which_two_go_on(tmp_path, alone):
    with group(tmp_path, 4, "stream", "slow") as four:
        four.until("step 8")
        four.processes[3].kill()
        codes = four.wait()
        assert 0 not in codes
        held = four.gave("stream")
        assert held.pop("held") == [[8, 32], [8, 8]]
        close(held, alone)
    with group(tmp_path, 2, "resumable") as two:
        assert two.wait() == [0, 0], two.said()
        found = two.gave("resumable")
    assert 0 < len(found["loss"]) < STEPS
    close({"params": found["params"]}, {"params": alone["params"]})


def test_one_process_agrees_with_itself():
    _hosts.agree(configuration={"a": [1, {"b": None}]}, data=np.zeros(3))
    with pytest.raises(TypeError, match="configuration/a must be a value of JSON or an array"):
        _hosts.agree(configuration={"a": object()})


def test_an_error_of_the_runtime_points_to_the_other_processes(monkeypatch):
    def fail():
        with _hosts.together():
            raise jax.errors.JaxRuntimeError("Connection closed by peer")

    with pytest.raises(jax.errors.JaxRuntimeError) as alone:
        fail()
    assert not hasattr(alone.value, "__notes__")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(jax.errors.JaxRuntimeError) as joined:
        fail()
    assert "another process may have ended" in joined.value.__notes__[0]


@pytest.mark.quick
def test_disagreements_are_told_by_value():
    one = dict(_hosts._flat({"a": {"b": [1, 2]}, "x": np.zeros(3), "long": "y" * 100}))
    two = dict(_hosts._flat({"a": {"b": [1, 3]}, "x": np.ones(3), "long": "y" * 101, "c": 1.5}))
    lines = _hosts.disagreements([one, two, one, one])
    assert lines[0] == "a/b is [1, 2] in processes 0, 2, 3; [1, 3] in process 1"
    assert lines[1].startswith("x is float64[3] with hash")
    assert lines[2].startswith('long is "yyy') and lines[2].count("(hash ") == 2
    assert lines[3] == "c is not there in processes 0, 2, 3; 1.5 in process 1"
    assert len(lines) == 4
    assert _hosts.disagreements([one, one]) == []
    # Equal numbers of another kind are other arrays, and text is no number.
    kinds = [np.zeros(3), np.zeros(3, np.float32), "0", 0, 0.0, [0], {}]
    assert len({dict(_hosts._flat(x, "x"))["x"] for x in kinds}) == len(kinds)
    with pytest.raises(TypeError, match="x must be an array of numbers or text"):
        dict(_hosts._flat({"x": np.array([object()])}))

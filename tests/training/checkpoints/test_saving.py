"""Checkpoints: bit for bit, whole or not at all, and errors that say what is left."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import models, teachers
from distill_jax.losses import soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import CheckpointError, Checkpoints, Recipe, TrainState
from distill_jax.training.checkpoints import _orbax

ROOT = pathlib.Path(__file__).parents[3]
ADAM = optax.adam(optax.linear_schedule(1e-2, 0.0, 10))
SETTINGS = {"objective": {"teacher": {"temperature": 4.0}}}


def state(seed=0, size=6, step=None):
    """A state with a leaf of every kind."""
    params = {
        "kernel": jax.random.normal(jax.random.key(seed), (size, 4)),
        "half": jnp.arange(3, dtype=jnp.bfloat16) + seed,
        "nothing": jnp.zeros((0, 2)),
    }
    return TrainState(
        step=jnp.int32(seed if step is None else step),
        params=params,
        state={"a/b": jnp.array([True, False]), "a": {"b": jnp.uint8(seed)}},
        term_params={},
        term_state={"labels": {}, "memory": (jnp.float8_e4m3fn(1.5), None)},
        opt_state=ADAM.init(params),
        average=None,
        key={
            "one": jax.random.key(seed),
            "other": jax.random.key(seed, impl="rbg"),
            "many": jax.random.split(jax.random.key(seed), 3),
        },
    )


def abstract(tree):
    return jax.eval_shape(lambda: tree)


def bits(tree):
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(tree))
    is_key = jax.dtypes.prng_key
    plain = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, is_key) else x
        for x in jax.tree.leaves(tree)
    ]
    return [np.asarray(x) for x in plain]


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert [x.dtype for x in jax.tree.leaves(a)] == [x.dtype for x in jax.tree.leaves(b)]
    for x, y in zip(bits(a), bits(b), strict=True):
        assert x.tobytes() == y.tobytes()


def filled(folder, steps=(1, 2, 3), **options):
    with Checkpoints(folder, **options).open(SETTINGS) as saver:
        for step in steps:
            saver.save(step, state(step), {"batches": step})
    return folder


def read(folder, like=None, **options):
    with Checkpoints(folder, **options).open(SETTINGS) as saver:
        return saver.restore(abstract(state()) if like is None else like)


@pytest.mark.quick
def test_a_state_comes_back_to_the_bit(tmp_path, capfd):
    with Checkpoints(tmp_path / "new" / "run").open(SETTINGS) as saver:
        assert saver.latest() is None and saver.restore(abstract(state())) is None
        saver.save(7, state(7), {"epoch": 1, "names": ["a", None], "at": 0.1})
    with Checkpoints(tmp_path / "new" / "run").open(SETTINGS) as saver:
        assert saver.latest() == 7
        for like in (abstract(state()), state(3)):
            restored, position = saver.restore(like)
            same(restored, state(7))
            assert position == {"epoch": 1, "names": ["a", None], "at": 0.1}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_was_saved_may_be_donated(tmp_path, asynchronous):
    @functools.partial(jax.jit, donate_argnums=0)
    def next_(x):
        return jax.tree.map(lambda a: a + 1, x)

    start = {"a": jnp.arange(300_000.0), "b": jnp.zeros(3, jnp.bfloat16)}
    now = jax.tree.map(jnp.copy, start)
    with Checkpoints(tmp_path, keep=9, asynchronous=asynchronous).open({}) as saver:
        for step in range(5):
            saver.save(step, now, None)
            for _ in range(3):
                now = next_(now)
    for step in reversed(range(5)):
        with Checkpoints(tmp_path, keep=9).open({}) as saver:
            same(
                saver.restore(abstract(start))[0], jax.tree.map(lambda a, s=step: a + 3 * s, start)
            )
        shutil.rmtree(tmp_path / str(step))


@pytest.mark.parametrize(
    "options, metrics, kept",
    [
        ({"keep": 2}, {}, [4, 5]),
        ({"keep": 1, "best": "accuracy"}, {1: 0.5, 2: 0.9, 4: 0.1}, [2, 5]),
        ({"keep": 1, "best": "accuracy", "better": "lower"}, {1: 0.5, 2: 0.9, 4: 0.1}, [4, 5]),
        ({"keep": 2, "best": "accuracy", "keep_best": 2}, {1: 0.3, 2: np.nan, 3: 0}, [1, 3, 4, 5]),
        ({"keep": 1, "best": "accuracy"}, {}, [5]),
    ],
)  # fmt: skip
def test_the_last_ones_and_the_best_are_kept(tmp_path, options, metrics, kept):
    tiny = {"a": jnp.zeros(2)}
    for steps in ((1, 2, 3), (4, 5)):  # what the first process knew, the second reads
        with Checkpoints(tmp_path, **options).open({}) as saver:
            for step in steps:
                known = {step: metrics[step]} if step in metrics else None
                saver.save(step, tiny, None, known and {"accuracy": known[step], "more": 1.0})
    with Checkpoints(tmp_path, **options).open({}) as saver:
        assert saver.steps() == kept


def test_best_must_be_a_metric_that_there_is(tmp_path):
    with Checkpoints(tmp_path, best="acuracy").open({}) as saver:
        with pytest.raises(ValueError, match="'acuracy'; it gives .'accuracy', 'loss'"):
            saver.save(1, {"a": jnp.zeros(2)}, None, {"loss": 1.0, "accuracy": 0.5})


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path).open(SETTINGS) as saver:
        saver.save(1, state(1), "first")
        saver.save(1, state(2), "second")
        restored, position = saver.restore(abstract(state()))
    assert position == "first"
    same(restored, state(1))


def test_positions_are_values_of_json(tmp_path):
    with Checkpoints(tmp_path).open(SETTINGS) as saver:
        with pytest.raises(
            TypeError, match="position in the data must consist of values of JSON.*set"
        ):
            saver.save(1, state(), {"at": {1, 2}})
        saver.save(2, state(), {10: (1, 2), 9: float("nan")})
        _, position = saver.restore(abstract(state()))
    assert position["10"] == [1, 2] and np.isnan(position["9"])


def test_due_at_each_multiple_that_was_passed(tmp_path):
    with Checkpoints(tmp_path, every=10).open(SETTINGS) as saver:
        assert [step for step in range(0, 40, 4) if saver.due(step)][:1] == [12]
        saver.save(12, state(), None)
        assert not saver.due(16) and saver.due(20) and saver.due(24)
    with Checkpoints(tmp_path, every=10).open(SETTINGS) as saver:
        assert not saver.due(16) and saver.due(20)


def test_a_teacher_is_not_on_disk(tmp_path):
    objective = weighted_sum(term("teacher", 1.0, soft_targets))
    batch = {"inputs": jnp.ones((4, 5))}
    student = models.logistic_regression(3)
    sizes = {}
    for width in (2, 2000):
        big = models.mlp([width], 3)
        wise = {"big": teachers.teacher(big, *big.init(jax.random.key(1), batch["inputs"]))}
        start = Recipe(student, ADAM).init(objective, batch, wise, jax.random.key(0))
        with Checkpoints(tmp_path / str(width)).open(SETTINGS) as saver:
            saver.save(1, start, None)
        files = (tmp_path / str(width)).rglob("*")
        sizes[width] = sum(path.stat().st_size for path in files if path.is_file())
    assert sizes[2000] < sizes[2] + 10_000  # the teacher has 72 kB; sizes of files vary a little


def test_another_configuration_is_refused(tmp_path):
    other = {"objective": {"teacher": {"temperature": 2.0}}}
    with Checkpoints(tmp_path).open(other):
        pass  # nothing was saved: nobody is bound
    filled(tmp_path)
    assert json.loads((tmp_path / "configuration.json").read_text()) == SETTINGS
    with pytest.raises(ValueError, match="objective/teacher/temperature was 4.0, is 2.0") as caught:
        with Checkpoints(tmp_path).open(other):
            raise AssertionError("must not open")
    assert str(tmp_path) in str(caught.value) and "another folder" in str(caught.value)
    (tmp_path / "configuration.json").unlink()
    with pytest.warns(UserWarning, match="assumed to be of this configuration"):
        with Checkpoints(tmp_path).open(other) as saver:
            assert saver.latest() == 3


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    own, other = filled(tmp_path / "own"), tmp_path / "other"
    with Checkpoints(other).open({"key": 1}) as saver:
        saver.save(4, state(4), None)
    shutil.copytree(other / "4", own / "4")
    with pytest.raises(ValueError, match=r"step 4 in .*4 cannot .* another configuration.*delete"):
        read(own)
    shutil.rmtree(own / "4")
    (own / "3").rename(own / "9")
    with pytest.raises(ValueError, match="step 9 in .* saved after step 3, and its folder was ren"):
        read(own)
    shutil.copytree(own / "9", own / "10")
    (own / "9").rename(own / "3")
    shutil.rmtree(own / "10")
    same(read(own)[0], state(3))
    # Without the configuration, any is taken on trust, but not under another number.
    (own / "configuration.json").unlink()
    shutil.copytree(other / "4", own / "4")
    with pytest.warns(UserWarning, match="assumed to be of this configuration"):
        same(read(own)[0], state(4))
    (own / "4").rename(own / "5")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="saved after step 4"):
        read(own)


def test_a_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch):
    filled(tmp_path, [1])
    monkeypatch.setattr("distill_jax.training.checkpoints._contents.FORMAT", 9)
    with pytest.raises(ValueError, match=r"another version of distill_jax \(format 2, this"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"another version of distill_jax \(format 1, this"):
        with Checkpoints(tmp_path).open(SETTINGS | {"format": 9}):
            pass


def test_a_configuration_with_a_flipped_bit_is_named(tmp_path):
    filled(tmp_path, [1])
    path = tmp_path / "configuration.json"
    path.write_text(path.read_text().replace("4.0", "5.0"))
    with pytest.raises(CheckpointError, match="is damaged: .*\n.*was 5.0, is 4.0"):
        read(tmp_path)


NAMES = ["lr[0.1]", "run*", "run?", "[!a]b", "größe", "100%25#1", "~", "a\\b", "c\n", b"\xff\xfe"]


def test_what_is_written_can_be_read_from_any_path(tmp_path, monkeypatch):
    for name in map(os.fsdecode, NAMES):
        (tmp_path / (name[:-1] or "x")).mkdir(exist_ok=True)
        folder = tmp_path / name / "in"
        filled(folder, [1, 2])
        restored, position = read(folder)
        assert position == {"batches": 2}, name
        same(restored, state(2))
        assert sorted(os.listdir(folder)) == ["1", "2", "configuration.json"]
        (folder / "2" / "about" / "metadata").unlink()
        with pytest.raises(CheckpointError) as caught:
            read(folder)
        assert str(folder / "2") in str(caught.value) and "step 1 is intact" in str(caught.value)
        assert "distill_jax-" not in str(caught.value)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    filled(tmp_path / "[1]", [1])
    assert os.listdir(temporary) == []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=r"folder must be a path of letters.*\[2\].*rename it"):
        filled(tmp_path / "[2]", [1])
    assert not _orbax._is_plain(pathlib.Path("/s3/run")) and not _orbax._is_plain(tmp_path / "a[")
    assert _orbax._is_plain(pathlib.Path("/mnt/s3/run-1_a.b=c"))


def test_other_versions_are_warned_of_once(tmp_path):
    def opened(**other):
        return Checkpoints(tmp_path).open(SETTINGS | other)

    with opened(versions={"jax": "0.0.1"}, program="a") as saver:
        saver.save(1, state(1), None)
    with pytest.warns(UserWarning, match="jax was 0.0.1, is 0.0.2.*cannot be compared") as caught:
        with opened(versions={"jax": "0.0.2"}, program="b") as saver:
            saver.restore(abstract(state()))
            saver.save(2, state(2), None)
    assert len(caught) == 1 and str(tmp_path) in str(caught[0].message)
    with opened(versions={"jax": "0.0.1"}, program="a"):
        pass  # and of the same, nothing


@pytest.mark.parametrize("text", ["[]", "3", "null", '"a"', "{", "\x00"])
def test_a_damaged_configuration_is_named(tmp_path, text):
    filled(tmp_path, [1])
    (tmp_path / "configuration.json").write_text(text)
    with pytest.raises(CheckpointError, match="configuration.json is damaged.*assumed to be"):
        read(tmp_path)


def test_another_state_is_refused(tmp_path):
    filled(tmp_path)
    with pytest.raises(
        ValueError, match=r"params/kernel was 'float32\[6, 4\]', is 'float32\[5, 4\]'"
    ):
        read(tmp_path, abstract(state(size=5)))


def test_a_half_written_checkpoint_is_thrown_away(tmp_path):
    filled(tmp_path, [1])
    half = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1" / "state", half / "state.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path).open(SETTINGS) as saver:
        assert saver.latest() == 1
        saver.save(2, state(2), {"batches": 2})
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "configuration.json"]
    restored, _ = read(tmp_path)
    same(restored, state(2))


def arrays_of(folder):
    """The file that holds the array's values."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut_to(path, size):
    path.write_bytes(path.read_bytes()[:size])


def cut(path):
    cut_to(path, 100)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, pathlib.Path.unlink, flip])
@pytest.mark.parametrize("which", ["arrays", "position", "index"])
def test_damage_is_named_and_never_passed_over(tmp_path, harm, which):
    with Checkpoints(tmp_path).open(SETTINGS) as saver:
        for step in (1, 2, 3):
            saver.save(step, state(step, size=500), {"batches": step})
    paths = {
        "arrays": arrays_of(tmp_path / "3" / "state"),
        "position": tmp_path / "3" / "about" / "metadata",
        "index": tmp_path / "3" / "state" / "manifest.ocdbt",
    }
    harm(paths[which])
    like = abstract(state(size=500))
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, like)
    message = str(caught.value)
    assert "the checkpoint of step 3" in message and str(tmp_path / "3") in message
    assert "step 2 is intact" in message
    shutil.rmtree(tmp_path / "3")
    restored, position = read(tmp_path, like)
    assert position == {"batches": 2}
    same(restored, state(2, size=500))


def test_damaged_metrics_are_named(tmp_path):
    filled(tmp_path, [1])
    with Checkpoints(tmp_path, best="accuracy").open(SETTINGS) as saver:
        saver.save(2, state(2), None, {"accuracy": 0.5})
    path = tmp_path / "2" / "metrics" / "metrics"
    whole = path.read_text()
    for other in (whole.replace("0.5", "0.7"), whole.replace("accuracy", "accuracx")):
        path.write_text(other)
        with pytest.raises(CheckpointError, match="2/metrics/metrics, is damaged .other values"):
            read(tmp_path, best="accuracy")
    path.write_text(whole)
    assert read(tmp_path, best="accuracy") is not None
    cut_to(path, 5)
    with pytest.raises(CheckpointError, match="metrics in .* is damaged"):
        read(tmp_path, best="accuracy")


def test_with_nothing_whole_left_the_error_says_so(tmp_path):
    filled(tmp_path, [1, 2])
    for step in ("1", "2"):
        (tmp_path / step / "about" / "metadata").unlink()
    with pytest.raises(CheckpointError, match="no older one is intact"):
        read(tmp_path)


@contextlib.contextmanager
def full_disk(folder):
    """No file may grow beyond a few kB, as if that were all that is left."""
    del folder
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextlib.contextmanager
def small_disk(folder):
    """A file system of a few kB in memory, filled; only root may mount it."""
    rest = folder / "rest"
    rest.write_bytes(bytes(max(shutil.disk_usage(folder).free - 50_000, 0)))
    yield
    rest.unlink()


@pytest.fixture(params=["limit", "mounted"])
def disk(request, tmp_path):
    """A folder, and a context in which there is no room in it."""
    if request.param == "limit":
        yield tmp_path, full_disk
        return
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield tmp_path, small_disk
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def large(step):
    return state(step, size=25_000)  # 400 kB, which do not compress


def test_a_full_disk_ends_a_run_that_asks_for_it(disk):
    folder, full = disk[0] / "run", disk[1]
    with Checkpoints(folder).open(SETTINGS) as saver:
        saver.save(1, large(1), 1)
        saver.wait()
        with full(disk[0]):
            saver.save(2, large(2), 2)
            with pytest.raises(CheckpointError, match="step 2 could not be saved") as caught:
                saver.save(3, large(3), 3)
        assert saver.steps() == [1]
    message = str(caught.value)
    assert "MB are free (that of step 1 is kept)" in message and str(folder) in message
    assert "Make room" in message and ("too large" in message or "No space left" in message)
    assert sorted(os.listdir(folder)) == ["1", "configuration.json"]
    restored, position = read(folder, abstract(large(1)))
    assert position == 1
    same(restored, large(1))


def test_a_full_disk_is_tried_again_where_that_is_asked_for(disk):
    folder, full = disk[0] / "run", disk[1]
    with Checkpoints(folder, on_failure="warn", keep=2).open(SETTINGS) as saver:
        with full(disk[0]), pytest.warns(UserWarning, match="there is no earlier one"):
            saver.save(1, large(1), 1)
            saver.wait()
        saver.save(2, large(2), 2)
        saver.save(3, large(3), 3)
        saver.wait()
        for step in (4, 5, 6):  # more than are kept: those that failed push no good one out
            with (
                full(disk[0]),
                pytest.warns(UserWarning, match="that of step 3 is kept.*again later"),
            ):
                saver.save(step, large(step), step)
                saver.wait()
        assert saver.steps() == [2, 3]
        saver.save(7, large(7), 7)
    assert sorted(os.listdir(folder)) == ["3", "7", "configuration.json"]


def test_a_failure_comes_out_on_leaving_and_hides_no_other_error(tmp_path):
    with pytest.raises(CheckpointError, match="step 1 could not be saved"):
        with full_disk(tmp_path), Checkpoints(tmp_path).open(SETTINGS) as saver:
            saver.save(1, large(1), 1)
    with pytest.raises(KeyError), pytest.warns(UserWarning, match="step 1 could not be saved"):
        with full_disk(tmp_path), Checkpoints(tmp_path).open(SETTINGS) as saver:
            saver.save(1, large(1), 1)
            raise KeyError("loss")


def test_a_failure_before_the_first_file(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, on_failure="warn").open(SETTINGS) as saver:
        with monkeypatch.context() as patch, pytest.warns(UserWarning, match="No space left"):

            def full(*_, **__):
                raise OSError(28, "No space left on device")

            patch.setattr("distill_jax._files.os.fsync", full)
            saver.save(1, state(1), 1)
        saver.save(2, state(2), 2)
        assert saver.latest() is None or saver.latest() == 2
        saver.wait()
        assert saver.steps() == [2]


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_not_for_want_of_room_is_said(tmp_path, monkeypatch, inside):
    def broken(*_, **__):
        try:
            raise OSError(28, "No space left on device") if inside else OSError(5, "I/O error")
        except OSError as error:
            raise RuntimeError("cannot be synced") from error

    with Checkpoints(tmp_path).open(SETTINGS) as saver:
        with monkeypatch.context() as patch, pytest.raises(CheckpointError) as caught:
            patch.setattr("distill_jax._files.os.fsync", broken)
            saver.save(1, state(1), 1)
    message = str(caught.value)
    assert "cannot be synced" in message and "start again" in message
    assert ("MB are free" in message) == ("Make room" in message) == inside


HOLDS = """
import os, sys, time
from distill_jax.training import Checkpoints
with Checkpoints(sys.argv[1]).open({}):
    worker = os.fork()  # as one that loads data, which may live longer
    if worker:
        print(worker, flush=True)
    time.sleep(100)
    os._exit(0)
"""


def test_one_run_a_folder(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    with child, child.stdout:
        worker = int(child.stdout.readline())
        try:
            with pytest.raises(ValueError, match=f"another run has .*process {child.pid} on .*oth"):
                filled(tmp_path)
            child.kill()
            child.wait()
            assert os.listdir(tmp_path) == [".lock"]  # left behind, and in nobody's way
            filled(tmp_path, [1])
        finally:
            child.kill()
            os.kill(worker, signal.SIGKILL)
    assert sorted(os.listdir(tmp_path)) == ["1", "configuration.json"]


def test_one_run_a_folder_within_a_process_too(tmp_path):
    with Checkpoints(tmp_path).open(SETTINGS) as saver:
        with pytest.raises(ValueError, match="another run has"):
            filled(tmp_path)
        saver.save(1, state(1), 1)
    with pytest.raises(KeyError):
        with Checkpoints(tmp_path).open(SETTINGS):
            raise KeyError
    with pytest.raises(ValueError, match="another configuration"):
        with Checkpoints(tmp_path).open({}):
            pass
    with Checkpoints(tmp_path).open(SETTINGS) as saver:
        assert saver.steps() == [1]


def test_without_locks_a_run_goes_on(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unknown)
    with Checkpoints(tmp_path).open(SETTINGS) as saver:
        saver.save(1, state(1), 1)
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    restored, _ = read(tmp_path)
    same(restored, state(1))


def test_a_folder_that_cannot_be_used(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError, match="folder must be a folder"):
        with Checkpoints(file).open(SETTINGS):
            pass
    for folder in (file / "below", "/proc/checkpoints"):
        with pytest.raises(OSError, match="folder must be one that can be written"):
            with Checkpoints(folder).open(SETTINGS):
                pass


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"every": 0}, ValueError, "every must be 1 or more, got 0"),
        ({"keep": 0}, ValueError, "keep must be"),
        ({"keep_best": 1.5}, TypeError, "keep_best must be"),
        ({"every": True}, TypeError, "every must be an integer, got True"),
        ({"keep": np.bool_(True)}, TypeError, "keep must be"),
        ({"every": np.int64(-1)}, ValueError, "every must be"),
        ({"every": None}, TypeError, "every must be"),
        ({"better": "less"}, ValueError, "better must be one of"),
        ({"on_failure": "ignore"}, ValueError, "on_failure must be one of"),
    ],
)
def test_options_are_checked(options, error, message, tmp_path, library_errors):
    with pytest.raises(error, match=message):
        Checkpoints(tmp_path, **options)


def test_numbers_may_be_of_numpy(tmp_path, library_errors):
    checkpoints = Checkpoints(tmp_path, every=np.int64(5), keep=np.int8(2), keep_best=np.array(1))
    numbers = (checkpoints.every, checkpoints.keep, checkpoints.keep_best)
    assert numbers == (5, 2, 1) and {type(x) for x in numbers} == {int}
    assert hash(checkpoints) == hash(Checkpoints(tmp_path, every=5, keep=2))


@pytest.mark.parametrize("folder", [None, b"run", 3])
def test_a_folder_is_a_path(folder, library_errors):
    with pytest.raises(TypeError, match=f"folder must be a path.*got {folder!r}"):
        Checkpoints(folder)


@pytest.mark.parametrize(
    "folder", ["gs://bucket/run", "s3://bucket", "file:///run", pathlib.Path("gs://bucket/run")]
)
def test_an_address_is_no_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="got the address .*: mount the bucket as a folder"):
        Checkpoints(folder)
    assert os.listdir(tmp_path) == []
    Checkpoints("runs:1/a"), Checkpoints("C:/runs")


ON_DEVICES = """
import sys, warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from distill_jax.training import Checkpoints
from distill_jax._fingerprints import checksum, digest

devices = np.array(jax.devices())
assert len(devices) == 8
host = {
    "w": np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32),
    "h": np.arange(64, dtype=np.float32).reshape(8, 8).astype(jnp.bfloat16),
    "s": np.int32(3),
}
layouts = {
    "8": (Mesh(devices, "x"), {"w": P("x"), "h": P(None, "x"), "s": P(), "key": P()}),
    "4": (Mesh(devices[2:6], "x"), {"w": P(None, "x"), "h": P("x"), "s": P(), "key": P()}),
    "2x4": (Mesh(devices.reshape(2, 4), ("a", "b")),
            {"w": P("a", "b"), "h": P(("a", "b")), "s": P(), "key": P()}),
}

def placed(name):
    mesh, specs = layouts[name]
    whole = host | {"key": jax.random.key(5, impl="rbg")}
    return {n: jax.device_put(x, NamedSharding(mesh, specs[n])) for n, x in whole.items()}

def like(tree):
    return {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in tree.items()}

for start in layouts:
    folder = f"{sys.argv[1]}/{start}"
    with Checkpoints(folder).open({}) as saver:
        saver.save(1, placed(start), {"at": 1})
    for end in [*layouts, None]:
        wanted = placed(end) if end else None
        abstract = like(wanted) if end else jax.eval_shape(lambda: placed("8"))
        if end is None:
            abstract = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in abstract.items()}
        with Checkpoints(folder).open({}) as saver:
            found, position = saver.restore(abstract)
        for n, x in host.items():
            np.testing.assert_array_equal(np.asarray(found[n]), x)
            assert end is None or found[n].sharding == wanted[n].sharding, (start, end, n)
        data = np.asarray(jax.random.key_data(found["key"]))
        np.testing.assert_array_equal(data, jax.random.key_data(jax.random.key(5, impl="rbg")))
        assert str(jax.random.key_impl(found["key"])) == "rbg"
        assert end is None or found["key"].sharding == wanted["key"].sharding
        assert end is not None or len(found["w"].devices()) == 1

for made in (lambda x: tuple(checksum(x).tolist()), digest):
    sums = {tuple(made(x) for x in placed(name).values()) for name in layouts}
    assert sums == {tuple(made(x) for x in [*host.values(), jax.random.key(5, impl="rbg")])}
print("done")
"""


def test_onto_another_number_of_devices(tmp_path):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", ON_DEVICES, str(tmp_path)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr

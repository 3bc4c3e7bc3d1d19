"""Drawing ahead: the same pairs in the same order, and no thread is left behind."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import textwrap
import threading
import time

import jax
import numpy as np
import pytest

from distill_jax.data import batches, padded, positions, prefetch


def threads():
    return [t for t in threading.enumerate() if t.name == "distill_jax prefetch"]


def until(condition):
    """Waits for what another thread does; far longer than it can take."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    until(lambda: not threads())


def pairs(n):
    return ((i, {"batches": i + 1}) for i in range(n))


@pytest.mark.quick
@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_pairs_and_their_order_are_kept(size):
    found = list(prefetch(pairs(20), lambda i: i * i, size))
    assert found == [(i * i, {"batches": i + 1}) for i in range(20)]
    assert not threads()


@pytest.mark.parametrize("size", [0, 2])
def test_positions_are_those_after_the_batch_taken(size):
    def stream():
        return padded(batches({"inputs": np.arange(7)}, key=jax.random.key(0), batch_size=3))

    ahead = prefetch(positions(stream()), jax.device_put, size)
    taken = list(itertools.islice(ahead, 4))
    ahead.close()
    _, position = taken[1]
    again = itertools.islice(positions(stream(), position=position), 2)
    for (batch, after), (wanted, wanted_after) in zip(again, taken[2:], strict=True):
        assert after == wanted_after
        assert isinstance(wanted["inputs"], jax.Array)
        np.testing.assert_array_equal(batch["inputs"], wanted["inputs"])


@pytest.mark.parametrize("size", [1, 3])
def test_no_more_than_size_are_ready(size):
    drawn, put = [], []
    source = ((drawn.append(i) or i, None) for i in itertools.count())
    ahead = prefetch(source, put.append, size)
    assert not threads() and drawn == []  # nothing happens before the first is asked for
    for taken in range(1, 5):
        next(ahead)
        until(lambda taken=taken: len(put) == taken + size)
        time.sleep(0.01)
        assert len(drawn) == taken + size
    ahead.close()
    assert not threads()


def test_batches_are_drawn_while_the_caller_works():
    second = threading.Event()

    def source():
        yield 0, None
        second.set()
        yield 1, None

    ahead = prefetch(source(), lambda x: x, 1)
    next(ahead)
    assert second.wait(30)  # without another call of next
    assert [batch for batch, _ in ahead] == [1]


@pytest.mark.parametrize("size", [0, 1, 4])
@pytest.mark.parametrize("error", [OSError("disk on fire"), SystemExit(3)])
def test_an_error_of_the_source_comes_after_the_pairs_before_it(size, error):
    def source():
        yield from pairs(3)
        raise error

    ahead, found = prefetch(source(), lambda x: x, size), []
    with pytest.raises(type(error)) as caught:
        for batch, _ in ahead:
            found.append(batch)
    assert found == [0, 1, 2]
    assert caught.value is error
    assert any(entry.name == "source" for entry in caught.traceback)
    assert next(ahead, None) is None  # it is over


@pytest.mark.parametrize("size", [0, 2])
def test_an_error_of_put_is_raised_too(size):
    ahead = prefetch(pairs(3), lambda i: 1 // (1 - i), size)
    assert next(ahead)[0] == 1
    with pytest.raises(ZeroDivisionError):
        next(ahead)


@pytest.mark.parametrize("leave", ["close", "break", "error", "interrupt", "drop", "cycle"])
def test_however_the_caller_leaves_the_thread_ends(leave):
    ahead = prefetch(((i, None) for i in itertools.count()), lambda x: x, 2)
    assert next(ahead)[0] == 0
    assert len(threads()) == 1
    if leave == "close":
        ahead.close()
        assert not threads()
    elif leave in ("error", "interrupt"):
        error = KeyboardInterrupt if leave == "interrupt" else ValueError
        with pytest.raises(error):
            ahead.throw(error())  # as when a signal arrives while the next is waited for
        assert not threads()
    elif leave == "break":
        for _ in ahead:
            break
        del ahead
        assert not threads()
    elif leave == "drop":
        del ahead
        assert not threads()
    else:
        cycle = [ahead]
        cycle.append(cycle)
        del ahead, cycle  # the fixture collects it


def test_closing_does_not_wait_for_a_source_that_waits_for_ever():
    never = threading.Event()

    def source():
        yield 0, None
        never.wait()
        yield 1, None

    ahead = prefetch(source(), lambda x: x)
    next(ahead)
    ahead.close()
    assert len(threads()) == 1  # it was left behind, and is a daemon
    never.set()
    until(lambda: not threads())


def test_nothing_is_drawn_after_closing():
    drawn = []
    source = ((drawn.append(i), None) for i in itertools.count())
    ahead = prefetch(source, lambda x: x, 2)
    next(ahead)
    ahead.close()
    before = len(drawn)
    next(source)  # the thread holds it no more
    assert len(drawn) == before + 1


def test_the_thread_runs_in_the_callers_context():
    wide = {"inputs": np.float64(1)}
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        found = prefetch(((wide, None) for _ in range(1)), jax.device_put)
        ((batch, _),) = found
        assert batch["inputs"].dtype == np.float64
        ((state, _),) = prefetch([(None, None)], lambda _: np.geterr()["divide"])
        assert state == "ignore"


@pytest.mark.usefixtures("library_errors")
def test_a_bad_size_is_an_error_at_the_call():
    with pytest.raises(ValueError, match="size must be 0 or more, got -1"):
        prefetch(pairs(1), lambda x: x, -1)
    with pytest.raises(TypeError, match="size must be an integer, got 1.5"):
        prefetch(pairs(1), lambda x: x, 1.5)


def test_a_process_that_ends_amid_a_stream_ends_cleanly():
    code = """
    import itertools, jax, numpy as np
    from distill_jax.data import positions, prefetch
    source = ({"inputs": np.ones((64, 64))} for _ in itertools.count())
    ahead = prefetch(positions(source), jax.device_put, 2)
    for (batch, position), _ in zip(ahead, range(20)):
        pass
    raise SystemExit(5)  # the generator is alive, and so is its thread
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (5, "")

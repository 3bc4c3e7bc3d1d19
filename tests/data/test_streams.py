"""Streams: the same position gives the same batches, and what is unsound is named."""

from __future__ import annotations

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.data import batch_indices, batches, padded, padded_batches, positions

KEY = jax.random.key(7)


def rows(*sizes):
    """Batches of these sizes, whose rows are numbered through."""
    ends = np.cumsum(sizes)
    return [
        {"inputs": np.arange(end - size, end, dtype=np.float32)[:, None], "labels": np.arange(size)}
        for size, end in zip(sizes, ends, strict=True)
    ]


def values(stream):
    return [np.asarray(batch["inputs"]).ravel().tolist() for batch in stream]


def stored(position):
    return json.loads(json.dumps(position))


class Stateful:
    """An iterator with a state, as Grain's are: a dictionary, or bytes."""

    def __init__(self, items, as_bytes=False):
        self.items, self.next, self.as_bytes, self.closed = items, 0, as_bytes, False

    def __iter__(self):
        return Stateful(self.items, self.as_bytes)

    def __next__(self):
        if self.next == len(self.items):
            raise StopIteration
        self.next += 1
        return self.items[self.next - 1]

    def get_state(self):
        state = {"next": np.int64(self.next), "sizes": (1, None, 0.5), "blob": b"\x00\xff"}
        return str(self.next).encode() if self.as_bytes else state

    def set_state(self, state):
        if not self.as_bytes:
            assert state["sizes"] == [1, None, 0.5] and state["blob"] == b"\x00\xff"
        self.next = int(state) if self.as_bytes else state["next"]


class Owned:
    """A source that notes which of its iterators were closed."""

    def __init__(self):
        self.closed = []

    def __iter__(self):
        try:
            yield from rows(2, 2, 2)
        finally:
            self.closed.append(True)


EXAMPLES = [{"inputs": np.float32([i]), "labels": i % 3} for i in range(7)]
ARRAYS = {"inputs": np.arange(7, dtype=np.float32)[:, None], "labels": np.arange(7) % 3}
SOURCES = {
    "list": lambda: rows(2, 2, 2, 1),
    "iterator": lambda: iter(rows(2, 2, 2, 1)),
    "generator": lambda: (batch for batch in rows(2, 2, 2, 1)),
    "function": lambda: lambda start: rows(2, 2, 2, 1)[start:],
    "stateful": lambda: Stateful(rows(2, 2, 2, 1)),
    "state in bytes": lambda: Stateful(rows(2, 2, 2, 1), as_bytes=True),
    "arrays": lambda: batches(ARRAYS, key=KEY, batch_size=3, steps=4),
    "examples": lambda: batches(EXAMPLES, key=KEY, batch_size=3, steps=4),
    "padded": lambda: padded(rows(2, 2, 2, 1)),
    "padded with a state": lambda: padded(Stateful(rows(2, 2, 2, 1))),
    "padded with a state in bytes": lambda: padded(Stateful(rows(2, 2, 2, 1), True), 3),
}


@pytest.mark.quick
@pytest.mark.parametrize("kind", SOURCES)
def test_a_stream_goes_on_at_each_of_its_positions(kind):
    pairs = [(batch, stored(position)) for batch, position in positions(SOURCES[kind]())]
    assert len(pairs) == 4
    for i, (_, position) in enumerate(pairs):
        assert position["batches"] == i + 1
        rest = list(positions(SOURCES[kind](), position=position))
        assert len(rest) == 3 - i
        for (batch, after), (wanted, wanted_after) in zip(rest, pairs[i + 1 :], strict=True):
            assert stored(after) == wanted_after
            assert batch.keys() == wanted.keys()
            for name in batch:
                np.testing.assert_array_equal(batch[name], wanted[name])


@pytest.mark.parametrize("kind", SOURCES)
def test_start_leaves_batches_out(kind):
    (_, *rest) = positions(SOURCES[kind]())
    found = list(positions(SOURCES[kind](), start=1))
    assert [stored(position) for _, position in found] == [stored(p) for _, p in rest]
    assert values(batch for batch, _ in found) == values(batch for batch, _ in rest)


def test_a_position_is_that_after_its_batch_however_much_is_drawn_later():
    source = Stateful(rows(2, 2, 2))
    pairs = list(positions(source))
    assert [p["state"]["next"] for _, p in pairs] == [1, 2, 3]
    assert source.next == 0  # the iterator is one of its own


def test_no_batch_is_drawn_before_it_is_asked_for():
    drawn = []
    source = (drawn.append(i) or batch for i, batch in enumerate(rows(2, 2, 2)))
    pairs = positions(source)
    assert drawn == []
    next(pairs)
    assert drawn == [0]
    list(itertools.islice(pairs, 1))
    assert values(source) == [[4.0, 5.0]]  # what is left is the caller's


def test_only_iterators_made_here_are_closed():
    source = Owned()
    pairs = positions(source)
    next(pairs)
    pairs.close()
    assert source.closed == [True]
    given = iter(source)
    pairs = positions(padded(given))
    next(pairs)
    pairs.close()
    assert values(given) == [[2.0, 3.0], [4.0, 5.0]]
    pairs = positions(padded(source))
    next(pairs)
    pairs.close()
    assert len(source.closed) == 3


def test_an_endless_source_is_fine():
    source = (batch for _ in itertools.count() for batch in rows(2, 1))
    found = itertools.islice(positions(source, start=5), 2)
    assert values(batch for batch, _ in found) == [[2.0], [0.0, 1.0]]


def test_columns_of_other_kinds_become_numpy_arrays():
    ((batch, _),) = positions([{"inputs": [[1.0, 2.0]], "labels": jnp.array([1])}])
    assert isinstance(batch["inputs"], np.ndarray) and batch["inputs"].shape == (1, 2)
    assert isinstance(batch["labels"], jax.Array)
    ((batch, _),) = positions([{"keys": jax.random.split(KEY, 2), "half": jnp.ones(2, "bfloat16")}])
    assert batch["keys"].shape == (2,)


GOOD = {"inputs": np.zeros((2, 3), np.float32), "labels": np.zeros(2, np.int32)}


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ((GOOD["inputs"], GOOD["labels"]), TypeError, "must be a mapping from names .* got tuple"),
        ({}, ValueError, "must have a column or more"),
        (GOOD | {"labels": np.zeros(3, np.int32)}, ValueError, r"'inputs': 2, 'labels': 3"),
        (GOOD | {"labels": np.int32(1)}, ValueError, "labels in batch 1 .* got a scalar"),
        ({n: x[:0] for n, x in GOOD.items()}, ValueError, "must have a row or more"),
        (GOOD | {"labels": np.array(["a", "b"])}, TypeError, "labels in .* numbers .* got <U1"),
        (GOOD | {"labels": np.array([None, 1])}, TypeError, "labels in .* numbers .* got object"),
        (GOOD | {"where": np.ones(2)}, TypeError, "where in .* must be booleans .* got float64"),
        ({"inputs": GOOD["inputs"]}, ValueError, r"columns of the first one, .*, got \['inputs'\]"),
        (
            GOOD | {"labels": np.zeros(2, np.int64)},
            ValueError,
            "labels in batch 1 .* must be int32 with 1 axes, .* got int64 with 1",
        ),
        (
            GOOD | {"inputs": np.zeros((2, 3, 1), np.float32)},
            ValueError,
            "inputs in batch 1 .* must be float32 with 2 axes, .* got float32 with 3",
        ),
    ],
)
@pytest.mark.usefixtures("library_errors")
def test_an_unsound_batch_is_named(batch, error, message):
    pairs = positions([GOOD, batch])
    next(pairs)
    with pytest.raises(error, match=message) as caught:
        next(pairs)
    assert "batch 1 (from 0) of data" in str(caught.value)
    pairs = positions([GOOD, GOOD, GOOD, batch], start=2)  # numbers count from the beginning
    next(pairs)
    with pytest.raises(error, match=r"batch 3 \(from 0\)"):
        next(pairs)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (GOOD, TypeError, "must be a stream of batches, got named arrays: .* data.batches"),
        (3, TypeError, "must be a stream .* got int"),
        (lambda: iter([GOOD]), TypeError, "function must take the number of batches"),
    ],
)
@pytest.mark.usefixtures("library_errors")
def test_what_is_no_stream_is_an_error_at_the_call(source, error, message):
    with pytest.raises(error, match=message):
        positions(source)


def test_a_source_without_a_batch_is_an_error_and_one_that_has_ended_is_not():
    exhausted = iter(rows(2))
    next(exhausted)
    for source in ([], exhausted):
        with pytest.raises(ValueError, match="data has no batch: .* already exhausted"):
            list(positions(source))
    assert list(positions(rows(2), start=1)) == []
    with pytest.raises(ValueError, match="data ended after 1 of the 2 batches to skip"):
        list(positions(rows(2), position={"batches": 2}))


def test_an_error_of_the_source_says_where():
    def source():
        yield from rows(2, 2)
        raise OSError("disk on fire")

    pairs = positions(source(), start=1)
    next(pairs)
    with pytest.raises(OSError, match="disk on fire") as caught:
        next(pairs)
    assert "batch 2 (from 0)" in caught.value.__notes__[0]
    assert any(entry.name == "source" for entry in caught.traceback)


@pytest.mark.parametrize(
    "position",
    [3, {}, {"batches": -1}, {"batches": 1.5}, {"batches": 1, "step": 2}, {"state": {"next": 1}}],
)
@pytest.mark.usefixtures("library_errors")
def test_what_is_no_position_is_an_error(position):
    with pytest.raises(ValueError, match="position must come from data.positions"):
        positions(rows(2), position=position)


def test_a_position_of_another_kind_of_source_is_an_error():
    (_, counted), *_ = positions(rows(2, 2))
    (_, stateful), *_ = positions(Stateful(rows(2, 2)))
    (_, shuffled), *_ = positions(batches(ARRAYS, key=KEY, batch_size=3, steps=1))
    (_, filled), *_ = positions(padded(Stateful(rows(2, 2))))
    with pytest.raises(ValueError, match="that of data, list_iterator, has no set_state"):
        positions(rows(2, 2), position=stateful)
    with pytest.raises(ValueError, match="resumes from a state of its own"):
        positions(Stateful(rows(2, 2)), position=counted)
    with pytest.raises(ValueError, match="Batches.set_state.*must come from get_state"):
        positions(batches(ARRAYS, key=KEY, batch_size=3), position=stateful)
    with pytest.raises(ValueError, match="not padded"):
        positions(padded(Stateful(rows(2, 2))), position=stateful)
    with pytest.raises(ValueError, match="padded to 2 rows, .* padded to 5"):
        positions(padded(Stateful(rows(2, 2)), 5), position=filled)
    with pytest.raises(ValueError, match="same batch_size, 2, got 3"):
        positions(batches(ARRAYS, key=KEY, batch_size=2), position=shuffled)
    with pytest.raises(ValueError, match="start must be 0 where a position is given"):
        positions(rows(2, 2), start=1, position=counted)


def test_a_state_that_json_cannot_hold_is_an_error():
    class Strange(Stateful):
        def __iter__(self):
            return self

        def get_state(self):
            return {"rng": np.arange(3)}

    with pytest.raises(TypeError, match="must return JSON values .* got ndarray"):
        next(positions(Strange(rows(2))))


def test_many_shapes_are_warned_of_and_a_few_are_not():
    lengths = [{"inputs": np.zeros((2, n))} for n in range(1, 10)]
    assert len(list(positions(lengths[:8] * 2))) == 16
    with pytest.warns(UserWarning, match="9 different shapes so far"):
        list(positions(lengths))


@pytest.mark.quick
@pytest.mark.parametrize("size", [None, 3, 4])
def test_padded_is_padded_batches_for_streams(size):
    arrays = {"inputs": np.arange(8.0)[:, None], "labels": jnp.arange(8)}
    cut = [{name: x[i : i + 3] for name, x in arrays.items()} for i in (0, 3, 6)]
    if size == 4:
        arrays, cut = {n: x[:3] for n, x in arrays.items()}, cut[:1]
    found, wanted = list(padded(cut, size)), list(padded_batches(arrays, size or 3))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    for name, column in found[-1].items():
        assert type(column) is type(wanted[-1][name])


def test_padded_keeps_where_and_iterates_again():
    source = [{"where": np.array([[True, False]] * n)} for n in (2, 1)]
    stream = padded(source)
    for _ in range(2):
        full, short = (batch["where"].tolist() for batch in stream)
        assert full == [[True, False]] * 2
        assert short == [[True, False], [False, False]]


def test_padded_goes_on_at_a_short_batch_with_the_first_ones_size():
    (*_, (_, position), (last, _)) = positions(padded(Stateful(rows(3, 3, 1))))
    ((again, _),) = positions(padded(Stateful(rows(3, 3, 1))), position=stored(position))
    assert again["where"].tolist() == last["where"].tolist() == [True, False, False]


@pytest.mark.usefixtures("library_errors")
def test_padded_names_what_it_cannot_pad():
    with pytest.raises(ValueError, match="batch 1 of data has 3 rows, more than the 2 to pad to"):
        list(padded(rows(2, 3)))
    with pytest.raises(ValueError, match=r"batch 1 \(from 0\) of data must have a row"):
        list(padded(rows(2, 0)))
    with pytest.raises(TypeError, match="data must be an iterable of batches, got a function"):
        padded(lambda start: rows(2))
    with pytest.raises(TypeError, match="named arrays: split them with data.padded_batches"):
        padded(GOOD)
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        padded(rows(2), 0)


# Shuffled batches of arrays and of examples: one stream.


@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_examples_are_shuffled_as_arrays_are(batch_size):
    found = list(batches(EXAMPLES, key=KEY, batch_size=batch_size, steps=8, start=1))
    wanted = batch_indices(KEY, 7, batch_size, 8, start=1)
    assert values(found) == np.asarray(wanted).tolist()
    assert found[0]["inputs"].shape == (batch_size, 1)
    assert found[0]["labels"].shape == (batch_size,)


def test_a_source_that_reads_many_rows_at_once_is_asked_to():
    class Many(list):
        asked = []

        def __getitems__(self, index):
            self.asked.append(index)
            return [self[i] for i in index]

    source = Many(EXAMPLES)
    found = next(batches(source, key=KEY, batch_size=3))
    assert source.asked[-1] == found["inputs"].ravel().tolist()


def test_the_state_of_a_shuffled_stream_goes_back_and_forth():
    stream = batches(ARRAYS, key=KEY, batch_size=3, steps=5)
    begin = stream.get_state()
    whole = values(stream)
    end = stream.get_state()
    stream.set_state(begin)
    assert values(stream) == whole
    stream.set_state(end)
    assert next(stream, None) is None
    other = batches(ARRAYS, key=jax.random.key(8), batch_size=3)
    with pytest.raises(ValueError, match="same key"):
        other.set_state(begin)
    fewer = batches({n: x[:6] for n, x in ARRAYS.items()}, key=KEY, batch_size=3)
    with pytest.raises(ValueError, match="same rows, 6, got 7"):
        fewer.set_state(begin)


def test_a_row_that_cannot_be_read_leaves_no_hole():
    class Flaky(list):
        broken = False

        def __getitem__(self, i):
            if self.broken:
                raise OSError("try again")
            return super().__getitem__(i)

    source = Flaky(EXAMPLES)
    stream, wanted = (batches(s, key=KEY, batch_size=3, steps=3) for s in (source, EXAMPLES))
    next(stream)
    source.broken = True
    with pytest.raises(OSError, match="try again"):
        next(stream)
    source.broken = False
    assert values(stream) == values(wanted)[1:]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (iter(EXAMPLES), TypeError, "got list_iterator: shuffle a stream where it is made"),
        ([], ValueError, "data must have 1 to .* rows, got 0"),
        ([1, 2], TypeError, "example as a mapping of names to arrays, got int at row 0"),
        ([{"a": 1}, {"b": 1}], ValueError, "same columns in every row"),
        ([{"a": [1]}, {"a": [1, 2]}], ValueError, "a must have one shape in every row"),
        ([{"a": 1}], ValueError, "batch_size must lie between 1 and the 1 rows, got 2"),
    ],
)
@pytest.mark.usefixtures("library_errors")
def test_unsound_examples_are_named(source, error, message):
    with pytest.raises(error, match=message):
        next(batches(source, key=KEY, batch_size=2))

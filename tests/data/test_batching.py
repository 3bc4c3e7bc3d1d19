"""Batches: one stream on the host and under jit, nothing dropped, nothing counted twice."""

from __future__ import annotations

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.data import batch_indices, batches, check, padded_batches, split, take

KEY = jax.random.key(7)


def numbered(n):
    """Rows that carry their own number, on the host and on the device."""
    return {"inputs": np.arange(n, dtype=np.float32)[:, None], "labels": jnp.arange(n)}


@pytest.mark.quick
@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_host_and_compiled_streams_agree(impl, start):
    key = jax.random.key(7, impl=impl)
    jitted = jax.jit(batch_indices, static_argnums=(1, 2, 3), static_argnames="start")
    indices = jitted(key, 7, 3, 6, start=start)
    host = list(batches(numbered(7), key=key, batch_size=3, steps=6, start=start))
    chex.assert_shape(indices, (6, 3))
    assert indices.dtype == jnp.int32
    np.testing.assert_array_equal(indices, np.stack([b["labels"] for b in host]))
    np.testing.assert_array_equal(indices, np.stack([b["inputs"][:, 0] for b in host]))


def test_the_stream_is_whole_epochs_in_a_row():
    stream = np.asarray(batch_indices(KEY, 7, 3, 7)).reshape(3, 7)
    for epoch, rows in enumerate(stream):
        want = jax.random.permutation(jax.random.fold_in(KEY, epoch), 7)
        np.testing.assert_array_equal(rows, want)
    assert len({tuple(rows) for rows in stream}) == 3  # each epoch in an order of its own


def test_start_continues_a_stream():
    whole = batch_indices(KEY, 7, 3, 6)
    np.testing.assert_array_equal(batch_indices(KEY, 7, 3, 2, start=4), whole[4:])


def test_streams_under_vmap_over_keys_are_the_solo_streams():
    keys = jax.random.split(KEY, 3)
    many = jax.vmap(lambda key: batch_indices(key, 7, 3, 6))(keys)
    np.testing.assert_array_equal(many, np.stack([batch_indices(k, 7, 3, 6) for k in keys]))


def test_without_steps_the_stream_does_not_end():
    stream = batches(numbered(3), key=KEY, batch_size=3)
    for batch in itertools.islice(stream, 5):
        assert sorted(np.asarray(batch["labels"])) == [0, 1, 2]


def test_no_steps_is_no_batch():
    assert batch_indices(KEY, 7, 3, 0).shape == (0, 3)
    assert list(batches(numbered(7), key=KEY, batch_size=3, steps=0)) == []


def test_columns_stay_where_they_are():
    batch = next(batches(numbered(4), key=KEY, batch_size=2))
    assert isinstance(batch["inputs"], np.ndarray)
    assert isinstance(batch["labels"], jax.Array)
    assert list(batch) == ["inputs", "labels"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch_size": 8}, ValueError, "batch_size must be at most the 7 rows .* got 8"),
        ({"batch_size": 0}, ValueError, "batch_size must be 1 or more, got 0"),
        ({"n": 0}, ValueError, "n must be 1 or more"),
        ({"steps": -1}, ValueError, "steps must be 0 or more"),
        ({"start": -1}, ValueError, "start must be 0 or more"),
        ({"steps": 1.5}, TypeError, "steps must be an integer, got 1.5"),
    ],
)
@pytest.mark.usefixtures("library_errors")
def test_batch_indices_names_a_bad_number(change, error, message):
    with pytest.raises(error, match=message):
        batch_indices(KEY, **{"n": 7, "batch_size": 3, "steps": 2} | change)


@pytest.mark.usefixtures("library_errors")
def test_a_traced_number_is_an_error_that_says_what_to_do():
    with pytest.raises(TypeError, match="steps must be a Python int.*static_argnames"):
        jax.jit(lambda steps: batch_indices(KEY, 7, 3, steps))(2)


def test_batches_check_at_the_call_not_at_the_first_batch():
    with pytest.raises(ValueError, match="batch_size must lie between 1 and the 7 rows"):
        batches(numbered(7), key=KEY, batch_size=8)
    with pytest.raises(ValueError, match="steps must be 0 or more"):
        batches(numbered(7), key=KEY, batch_size=2, steps=-1)


@pytest.mark.quick
@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_padded_batches_count_every_row_once(size):
    parts = list(padded_batches(numbered(7), size))
    for part in parts:
        chex.assert_shape([part["labels"], part["where"]], (size,))
    labels = np.concatenate([np.asarray(p["labels"]) for p in parts])
    where = np.concatenate([p["where"] for p in parts])
    np.testing.assert_array_equal(labels[where], np.arange(7))
    np.testing.assert_array_equal(labels[~where], 6)


@pytest.mark.parametrize("shape", [(5,), (5, 2)])
def test_padding_keeps_the_datas_own_where(shape):
    mask = np.arange(np.prod(shape)).reshape(shape) % 2 == 0
    parts = list(padded_batches({"inputs": np.zeros(shape), "where": mask}, 3))
    got = np.concatenate([p["where"] for p in parts])
    np.testing.assert_array_equal(got[:5], mask)
    assert not got[5:].any()


def test_padded_batches_check_at_the_call():
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        padded_batches(numbered(3), 0)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("parts", "sizes"),
    [([2, 3, 4], [2, 3, 4]), ([0.2, 0.3], [2, 3]), ([1 / 3, 1 / 3, 1 / 3], [3, 4, 3])],
)
def test_split_parts_are_disjoint(parts, sizes):
    pieces = split(numbered(10), parts, key=KEY)
    assert [len(p["inputs"]) for p in pieces] == sizes
    rows = np.concatenate([p["labels"] for p in pieces])
    assert len(set(rows.tolist())) == sum(sizes)
    for piece in pieces:
        np.testing.assert_array_equal(piece["inputs"][:, 0], piece["labels"])


def test_split_depends_on_its_key_alone():
    first, again, other = (
        split(numbered(10), [5], key=jax.random.key(seed))[0]["labels"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ([], ValueError, "got none"),
        ([6, 5], ValueError, "at most the 10 rows"),
        ([5, 0], ValueError, "a row or more"),
        ([0.01], ValueError, "a row or more"),
        ([0.8, 0.3], ValueError, "sum to 1 or less"),
        ([float("nan")], ValueError, "sum to 1 or less"),
        ([5, 0.5], TypeError, "all ints .* or all floats"),
    ],
)
def test_split_names_bad_parts(parts, error, message):
    with pytest.raises(error, match=message):
        split(numbered(10), parts, key=KEY)


def test_take_gathers_every_column():
    rows = take(numbered(5), np.array([4, 0]))
    np.testing.assert_array_equal(rows["labels"], [4, 0])
    np.testing.assert_array_equal(rows["inputs"], [[4.0], [0.0]])


def test_where_a_stream_goes_on_may_be_traced():
    key, whole = jax.random.key(3), batch_indices(jax.random.key(3), 7, 3, 12)
    starts = jnp.array([0, 2, 5, 9])
    parts = jax.vmap(lambda start: batch_indices(key, 7, 3, 3, start=start))(starts)
    for start, part in zip(starts.tolist(), parts, strict=True):
        np.testing.assert_array_equal(part, whole[start : start + 3])


def test_columns_may_be_trees_of_arrays():
    tokens = np.arange(10).reshape(5, 2)
    columns = {
        "labels": np.arange(5),
        "inputs": {"tokens": tokens, "more": (jnp.asarray(tokens), tokens[:, 0])},
    }
    check(columns)
    found = take(columns, np.array([3, 0]))
    assert list(found) == ["labels", "inputs"] and found["labels"].tolist() == [3, 0]
    on_device, first = found["inputs"]["more"]
    assert isinstance(on_device, jax.Array) and isinstance(first, np.ndarray)
    for x in (found["inputs"]["tokens"], on_device):
        np.testing.assert_array_equal(x, tokens[[3, 0]])
    a, b = split(columns, [3, 2], key=jax.random.key(0))
    both = np.concatenate([a["inputs"]["more"][1], b["inputs"]["more"][1]])
    assert sorted(both.tolist()) == [0, 2, 4, 6, 8]
    *_, last = padded_batches(columns, 3)
    np.testing.assert_array_equal(last["inputs"]["tokens"], tokens[[3, 4, 4]])
    assert last["where"].tolist() == [True, True, False]
    stream = batches(columns, key=jax.random.key(0), batch_size=2, steps=3)
    rows = [batch["labels"] for batch in stream]
    assert sorted(np.concatenate(rows)[:5].tolist()) == [0, 1, 2, 3, 4]
    example = {"inputs": {"tokens": [1, 2], "pair": (1.0, 2.0)}, "labels": 1}
    batch = next(batches([example] * 3, key=jax.random.key(0), batch_size=2))
    assert batch["inputs"]["tokens"].shape == batch["inputs"]["pair"].shape == (2, 2)

"""Grain's datasets and loaders resume where they were, through their own protocol alone."""

from __future__ import annotations

import itertools
import json

import jax
import numpy as np
import pytest

from distill_jax.data import padded, positions, prefetch

grain = pytest.importorskip("grain")

ROWS = [{"inputs": np.full(3, i, np.float32), "labels": np.int32(i)} for i in range(11)]
# One thread is enough for eleven rows; Grain's default is sixteen for each iterator.
READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


def shuffled():
    return grain.MapDataset.source(ROWS).seed(3).shuffle()


def test_columns_may_be_trees():
    rows = [{"inputs": {"tokens": row["inputs"], "mask": row["inputs"] > 3}} for row in ROWS]
    source = grain.MapDataset.source(rows).batch(4).to_iter_dataset(READ)
    (first, position), (second, _), (_, _) = positions(source)
    np.testing.assert_array_equal(first["inputs"]["tokens"][:, 0], [0, 1, 2, 3])
    ((again, _), _) = positions(source, position=position)
    np.testing.assert_array_equal(again["inputs"]["mask"], second["inputs"]["mask"])
    *_, last = padded(source)
    assert last["inputs"]["mask"].shape == (4, 3) and last["where"].tolist() == [True] * 3 + [False]


def loader():
    return grain.DataLoader(
        data_source=ROWS,
        sampler=grain.samplers.IndexSampler(
            num_records=len(ROWS),
            shuffle=True,
            seed=1,
            num_epochs=2,
            shard_options=grain.sharding.NoSharding(),
        ),
        operations=[grain.transforms.Batch(4)],
        worker_count=0,
        read_options=READ,
    )


SOURCES = {
    "map dataset, for ever": lambda: shuffled().repeat().batch(4),
    "map dataset, one epoch": lambda: shuffled().batch(4),
    "iterator of it": lambda: iter(shuffled().batch(4).to_iter_dataset(READ)),
    "iter dataset": lambda: shuffled().repeat(2).to_iter_dataset(READ).batch(4),
    "windows shuffled": lambda: (
        grain.MapDataset.source(ROWS)
        .to_iter_dataset(READ)
        .pipe(grain.experimental.WindowShuffleIterDataset, window_size=5, seed=2)
        .batch(4)
    ),
    "mixed": lambda: grain.MapDataset.mix(
        [shuffled().repeat(), shuffled().map(lambda row: row).repeat()], weights=[0.7, 0.3]
    ).batch(4),
    "loader": loader,
    "padded": lambda: padded(shuffled().to_iter_dataset(READ).batch(4)),
    "padded loader": lambda: padded(loader(), 5),
}


@pytest.mark.quick
@pytest.mark.parametrize("kind", SOURCES)
def test_a_position_saved_in_the_middle_gives_the_same_batches(kind):
    pairs = list(itertools.islice(positions(SOURCES[kind]()), 5))
    assert len(pairs) >= 3
    position = json.loads(json.dumps(pairs[1][1]))
    again = list(itertools.islice(positions(SOURCES[kind](), position=position), len(pairs) - 2))
    for (batch, after), (wanted, wanted_after) in zip(again, pairs[2:], strict=True):
        assert after == wanted_after
        assert batch.keys() == wanted.keys() >= {"inputs", "labels"}
        for name in batch:
            np.testing.assert_array_equal(batch[name], wanted[name])
    assert again[0][0]["labels"].tolist() != pairs[0][0]["labels"].tolist()


def test_prefetching_does_not_move_the_position():
    source = shuffled().repeat().batch(4)
    alone = list(itertools.islice(positions(source), 4))
    ahead = prefetch(positions(source), jax.device_put, 3)
    together = list(itertools.islice(ahead, 4))
    ahead.close()
    for (batch, position), (wanted, wanted_position) in zip(together, alone, strict=True):
        assert position == wanted_position
        np.testing.assert_array_equal(batch["labels"], wanted["labels"])


def test_an_epoch_of_grain_is_padded_and_counts_every_row_once():
    batches = list(padded(shuffled().batch(4)))
    labels = np.concatenate([batch["labels"][batch["where"]] for batch in batches])
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 4]
    assert sorted(labels.tolist()) == list(range(11))


def test_a_state_of_another_loader_is_an_error():
    ((_, position),) = itertools.islice(positions(loader()), 1)
    other = grain.DataLoader(
        data_source=ROWS[:7],
        sampler=grain.samplers.IndexSampler(
            num_records=7, num_epochs=1, shard_options=grain.sharding.NoSharding()
        ),
        worker_count=0,
        read_options=READ,
    )
    with pytest.raises(
        ValueError, match="data cannot resume at this position .*Iterator.set_state"
    ):
        positions(other, position=position)

"""A book in another process."""

from __future__ import annotations

import pickle

import pytest

from distill_jax.rules import Column, Schema, bind


@pytest.mark.quick
def test_a_pickled_book_does_not_bring_its_hash_along():
    """Strings have other hashes in another process: equal books would not be found again."""
    book = bind("old: age > 60 => sick", Schema((Column("age"),), ("well", "sick")))
    before = hash(book.info)
    assert "_hash" in vars(book.info)
    again = pickle.loads(pickle.dumps(book)).info
    assert "_hash" not in vars(again)
    assert again == book.info and hash(again) == before

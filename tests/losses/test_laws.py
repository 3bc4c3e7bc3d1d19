"""The property battery: every law with every loss, one test a pair."""

from __future__ import annotations

import pytest

from distill_jax import losses
from tests import laws


@pytest.mark.parametrize(
    ("law", "entry"),
    [pytest.param(law, entry, id=f"{law.__name__}-{entry}") for law, entry in laws.pairs()],
)
def test_law(law, entry, request):
    if law is laws.complaints:
        request.getfixturevalue("library_errors")
    law(entry)


def test_every_loss_is_in_the_battery():
    assert {entry.name for entry in laws.LOSSES} == set(losses.__all__)

"""The property battery: every law with every loss, one test a pair."""

from __future__ import annotations

import pytest

from distill_jax import losses
from tests import laws

# The short set has the most telling law of each loss, once.
FIRST = {entry.name: entry for entry in reversed(laws.LOSSES)}


def pair(law, entry):
    short = law is laws.reference and entry is FIRST[entry.name]
    marks = [pytest.mark.quick] if short else []
    return pytest.param(law, entry, id=f"{law.__name__}-{entry}", marks=marks)


@pytest.mark.parametrize(("law", "entry"), [pair(*x) for x in laws.pairs()])
def test_law(law, entry, request):
    if law is laws.complaints:
        request.getfixturevalue("library_errors")
    law(entry)


@pytest.mark.quick
def test_every_loss_is_in_the_battery():
    assert {entry.name for entry in laws.LOSSES} == set(losses.__all__)

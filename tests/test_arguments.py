"""A public function names the argument that is of a wrong kind."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from jaxtyping import Array, Float

from distill_jax import data
from distill_jax._arguments import checked


class Made:
    made_by: ClassVar[str] = "make()"


@checked
def function(
    made: Made | None = None,
    many: Sequence[Made] = (),
    named: Mapping[str, Any] | None = None,
    words: Sequence[str] = (),
    which: Literal["higher", "lower"] = "higher",
    count: int = 1,
    scale: float = 1.0,
    path: str | os.PathLike[str] = "",
    call: Callable[..., Any] | None = None,
    flag: bool = False,
    x: Float[Array, "rows columns"] | None = None,
    absent: NotInstalled | None = None,  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
    anything: Any = None,
    *,
    key: Array | None = None,
) -> NotInstalled:  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
    """Fails far below, whatever it is given."""
    raise KeyError("deep")


@checked
def with_words(count: int, scale: float = 1.0) -> None:
    raise ValueError(f"count must be 1, 2 or 3 for a reason, got {count}")


GOOD = [
    {},
    {"made": Made(), "many": [Made(), Made()], "named": {"a": 1}, "words": ["a"]},
    {"count": np.int64(3), "scale": np.float32(2), "flag": np.True_},
    {"scale": jnp.ones(()), "count": jnp.asarray(2)},
    {"path": "a", "call": print, "x": np.ones((2, 2)), "absent": 3, "anything": object()},
    {"x": [[1.0]], "key": jax.random.key(0)},
    {"x": pd.DataFrame({"a": [1.0]}), "key": jax.random.PRNGKey(0)},
]

WRONG = [
    ({"made": "x"}, "made must be a Made (made by make()) or None, got 'x'"),
    ({"many": [Made(), 3]}, "many must be a sequence"),
    ({"many": Made()}, "many must be a sequence"),
    ({"named": [1]}, "named must be a dictionary by name or None, got list"),
    ({"words": "abc"}, "words must be a sequence of strings, got 'abc'"),
    ({"words": np.zeros(2)}, "words must be a sequence of strings, got ndarray of shape (2,)"),
    ({"which": "best"}, "which must be one of 'higher', 'lower', got 'best'"),
    ({"count": 2.0}, "count must be an integer, got 2.0"),
    ({"count": True}, "count must be an integer, got True"),
    ({"scale": "1"}, "scale must be a number, got '1'"),
    ({"scale": np.ones(2)}, "scale must be a number, got ndarray of shape (2,)"),
    ({"path": 3}, "path must be a string or a path, got 3"),
    ({"call": 3}, "call must be a function or None, got 3"),
    ({"flag": 1}, "flag must be True or False, got 1"),
    ({"x": "text" * 50}, "x must be an array or None, got 'texttext"),
    ({"x": object()}, "x must be an array or None, got object"),
    ({"key": 0}, "key must be a random key, such as jax.random.key(0) or None, got 0"),
    ({"key": jnp.zeros(2)}, "key must be a random key"),
]


PLAIN = {"which", "path", "call", "flag"}


@pytest.mark.quick
@pytest.mark.parametrize("arguments", GOOD)
def test_an_error_with_good_kinds_stays_as_it_is(arguments: dict[str, Any]) -> None:
    with pytest.raises(KeyError, match="deep"):
        function(**arguments)


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_names_the_argument_of_a_wrong_kind(arguments: dict[str, Any], message: str) -> None:
    # A word that is not one of those asked for is of the right type, and its value is wrong.
    error = ValueError if "which" in arguments else TypeError
    with pytest.raises(error, match=re.escape(message)) as caught:
        function(**arguments)
    assert len(str(caught.value)) < 150
    # Words, flags and functions are looked at before the call, all else after a failure.
    cause = caught.value.__cause__
    assert isinstance(cause, KeyError) or (cause is None and arguments.keys() & PLAIN)


def test_positional_arguments_have_names_too() -> None:
    with pytest.raises(TypeError, match="many must be a sequence"):
        function(None, 3)  # pyright: ignore[reportArgumentType]


def test_a_functions_own_words_come_first() -> None:
    with pytest.raises(ValueError, match="for a reason, got None"):
        with_words(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="scale must be a number, got 'x'"):
        with_words(1, "x")  # pyright: ignore[reportArgumentType]


def test_words_of_jax_are_not_the_functions_own() -> None:
    with pytest.raises(TypeError, match="key must be a random key, such as jax.random.key"):
        data.batch_indices(0, 5, 2, 1)  # pyright: ignore[reportArgumentType]


def test_traced_values_are_good_kinds() -> None:
    def traced(x: Array, key: Array) -> Array:
        with pytest.raises(KeyError, match="deep"):
            function(scale=x[0, 0], x=x, key=key)  # pyright: ignore[reportArgumentType]
        return x

    jax.jit(traced)(jnp.ones((2, 2)), jax.random.key(0))

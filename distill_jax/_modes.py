"""How a forward pass is told whether it is in training: by parameters with certain names."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

TRAINING = ("train", "training", "is_training", "is_train", "enable_dropout")
"""Parameters and fields that are True in training mode."""
EVALUATION = (
    "deterministic", "use_running_average", "inference", "is_inference", "eval", "is_eval",
    "evaluation",
)  # fmt: skip
"""Parameters and fields that are True in evaluation mode."""
KEYS = ("key", "rng", "rngs")
"""Parameters of a function that are given the key of a call."""
_MODE = frozenset(
    "train training trains eval evaluation evaluating inference infer deterministic stochastic "
    "test testing dropout".split()
)
_KEY = frozenset("rng rngs prng seed key".split())


def mode_arguments(
    call: Callable[..., Any],
    train: bool,
    *,
    skip_none: bool,
    own: int = 2,
    filled: tuple[str, ...] = (),
    who: str = "the module's __call__",
) -> dict[str, Any]:
    """The arguments that pass the mode to a module's ``__call__``, read from its signature.

    Args:
      call: The method or function.
      train: The mode.
      skip_none: Whether to leave out parameters of ``EVALUATION`` whose default is None: such a
        module has its mode from elsewhere.
      own: Number of first parameters that are filled by position: ``self`` and the inputs.
      filled: Parameters that the caller fills by name.
      who: What ``call`` is, for messages.

    Raises:
      TypeError: if ``call`` needs a parameter that nothing fills, or has one that looks like the
        mode or a random key and is not known.
    """
    values = dict.fromkeys(TRAINING, train) | dict.fromkeys(EVALUATION, not train)
    known = [*values, *filled]
    bound = call.keywords if isinstance(call, functools.partial) else {}
    found = {}
    for p in list(inspect.signature(call).parameters.values())[own:]:
        if p.kind is p.VAR_POSITIONAL or p.name in (*filled, *bound):
            continue
        if p.kind is p.VAR_KEYWORD:
            # Flax's Sequential has such a parameter, and a partial function was looked at.
            if not bound and not _module(call).startswith("flax"):
                raise TypeError(
                    f"{who} has the parameter **{p.name}, of which nothing is filled: name what it "
                    f"reads from there (it can be given {known})"
                )
        elif p.name in values and p.kind is not p.POSITIONAL_ONLY:
            if not (skip_none and p.default is None and p.name in EVALUATION):
                found[p.name] = values[p.name]
        elif p.default is p.empty:
            raise TypeError(
                f"{who} needs {p.name!r}, which nothing fills: besides the inputs it is given, by "
                f"name, what it has of {known}; give {p.name!r} a default, or pass it as a part of "
                "the inputs"
            )
        elif _looks_like_mode_or_key(p):
            raise TypeError(
                f"{who} has the parameter {p.name!r} (by default {p.default!r}), which looks like "
                f"the mode or a random key and is not filled: rename it to one of {known}, or bind "
                "it beforehand"
            )
    return found


def _module(call: Any) -> str:
    return str(getattr(call, "__module__", ""))


def _looks_like_mode_or_key(parameter: inspect.Parameter) -> bool:
    name, default = parameter.name.lower(), parameter.default
    words = set(name.split("_"))
    mode = name in ("mode", "phase") or bool(words & _MODE)
    if mode and (default is None or isinstance(default, bool | str)):
        return True
    key = bool(words & (_KEY - {"key"})) or name == "key" or name.endswith("_key")
    return key and (default is None or isinstance(default, int))

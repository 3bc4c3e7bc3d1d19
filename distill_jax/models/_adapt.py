"""What the adapters share: modes, outputs, features."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from jaxtyping import Array

from distill_jax._fingerprints import leaves_by_path
from distill_jax.logits import as_logits
from distill_jax.models._calling import WHO
from distill_jax.types import OutputKind, Outputs

Features = tuple[str, ...] | Literal["all"] | None
"""Which features an adapter keeps: paths, ``"all"`` of them, or None of them."""

Logits = str | int | Callable[[Any], Array] | None
"""Which entry of what a module returns holds the logits, if it returns several."""

TRAINING = ("train", "training", "is_training", "is_train", "enable_dropout")
"""Parameters and fields that are True in training mode."""
EVALUATION = (
    "deterministic", "use_running_average", "inference", "is_inference", "eval", "is_eval",
    "evaluation",
)  # fmt: skip
"""Parameters and fields that are True in evaluation mode."""
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
    own: int = 1,
    filled: tuple[str, ...] = (),
    given: tuple[str, ...] | None = (),
    who: str = WHO,
) -> dict[str, Any]:
    """The arguments that pass the mode to a module's ``__call__``, read from its signature.

    Args:
      call: The method or function.
      train: The mode.
      skip_none: Whether to leave out parameters of ``EVALUATION`` whose default is None: such a
        module has its mode from elsewhere.
      own: Number of first parameters that are filled by position, ``self`` for example.
      filled: Parameters that the caller fills by name: random keys.
      given: Parameters that the inputs fill; None where that is not known yet.
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
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        if p.name in (*filled, *bound, *(given or ())):
            continue
        if p.name in values and p.kind is not p.POSITIONAL_ONLY:
            if not (skip_none and p.default is None and p.name in EVALUATION):
                found[p.name] = values[p.name]
        elif p.default is p.empty:
            if given is None:
                continue
            raise TypeError(
                f"{who} needs {p.name!r}, which nothing fills: besides the inputs it is given, by "
                f"name, what it has of {known}; give {p.name!r} a default, or pass it as a part of "
                "the inputs" + (": in a dictionary, by its name" if who == WHO else "")
            )
        elif _looks_like_mode_or_key(p):
            raise TypeError(
                f"{who} has the parameter {p.name!r} (by default {p.default!r}), which looks like "
                f"the mode or a random key and is not filled: rename it to one of {known}, or bind "
                "it beforehand"
            )
    return found


def _looks_like_mode_or_key(parameter: inspect.Parameter) -> bool:
    name, default = parameter.name.lower(), parameter.default
    words = set(name.split("_"))
    mode = name in ("mode", "phase") or bool(words & _MODE)
    if mode and (default is None or isinstance(default, bool | str)):
        return True
    key = bool(words & (_KEY - {"key"})) or name == "key" or name.endswith("_key")
    return key and (default is None or isinstance(default, int))


def reserved(call: Callable[..., Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    """The parameters of a module's ``__call__`` that are its mode or random keys."""
    known = (*TRAINING, *EVALUATION, *keys)
    return tuple(name for name in inspect.signature(call).parameters if name in known)


def entries(made: Any, logits: Logits, inputs: Any) -> Any:
    """What a module returned, as its logits or Outputs.

    Args:
      made: An array, Outputs, or a structure of arrays: a dictionary, a tuple, a dataclass.
      logits: Which entry of a structure holds the logits.
      inputs: Their first array has the size of the batch.

    Raises:
      TypeError: if ``made`` is a structure, and it is not said which entry are the logits.
      ValueError: if it has no such entry.
    """
    if logits is None:
        if isinstance(made, Outputs | jax.Array) or jax.tree_util.all_leaves([made]):
            return made
        advice = "say which holds the logits, logits='name', an index or a function"
        raise TypeError(f"the module returned a {type(made).__name__} of {_names(made)}: {advice}")
    if isinstance(made, Outputs):
        return made
    own: str | None = None
    found: Any = None
    if isinstance(logits, str):
        own = logits
        by_key = isinstance(made, Mapping) and logits in made
        known = by_key or hasattr(made, logits)
        found = made[logits] if by_key else getattr(made, logits, None)
    elif isinstance(logits, int):
        listed = isinstance(made, tuple | list)
        known = listed and -len(made) <= logits < len(made)
        own = str(logits % len(made)) if known else ""
        found = made[logits] if known else None
    else:
        known, found = True, logits(made)
    if not known:
        raise ValueError(
            f"logits={logits!r} is no entry of what the module returned, a {type(made).__name__} "
            f"of {_names(made)}"
        )
    batch = jax.tree.leaves(inputs)[0].shape[:1]
    features = {
        name: x
        for name, x in leaves_by_path(made).items()
        if name.split("/")[0] != own and isinstance(x, jax.Array) and x.shape[:1] == batch
    }
    return Outputs(found, features)


def _names(made: Any) -> list[str]:
    return list(dict.fromkeys(name.split("/")[0] for name in leaves_by_path(made)))


def as_outputs(
    made: Any,
    kind: OutputKind,
    classes: tuple[str, ...] | None,
    features: Mapping[str, Array] | None = None,
) -> Outputs:
    """The result of a forward pass, as Outputs whose logits are those of their kind.

    Raises:
      TypeError: if it returned something other than logits or Outputs.
      ValueError: if the logits have no axis besides the batch, or if their number is not that of
        the declared classes.
    """
    outputs = made if isinstance(made, Outputs) else Outputs(made)
    logits = as_logits(outputs.logits, kind)
    if classes is not None and logits.shape[-1] != len(classes):
        raise ValueError(
            f"classes must name every logit, in order: got {len(classes)} names "
            f"for logits of shape {logits.shape}"
        )
    twice = sorted(outputs.features.keys() & (features or {}).keys())
    if twice:
        raise ValueError(
            f"features has {twice}, and the model returns entries of these names too: rename them"
        )
    return Outputs(logits, {**outputs.features, **(features or {})})


def select(found: Mapping[str, Any], features: Features, inputs: Any) -> dict[str, Array]:
    """The requested features, by path.

    Args:
      found: What the modules returned, by path, possibly nested.
      features: Which to keep.
      inputs: Their first array has the size of the batch.

    Raises:
      ValueError: if a path does not exist or does not lead to an array ``[batch, ...]``.
    """
    batch = jax.tree.leaves(inputs)[0].shape[:1]
    arrays = {
        path: x for path, x in found.items() if isinstance(x, jax.Array) and x.shape[:1] == batch
    }
    if features == "all":
        return arrays
    missing = [path for path in features or () if path not in arrays]
    if missing:
        raise ValueError(
            f"features has paths that lead to no array [batch, ...]: {missing}; "
            f"the model has these paths: {sorted(arrays)}"
        )
    return {path: arrays[path] for path in features or ()}


def by_call(name: str, calls: Sequence[Any]) -> dict[str, Any]:
    """One feature for a module that ran once; ``name[0]`` to ``name[n-1]`` if it ran n times."""
    if len(calls) == 1:
        return {name: calls[0]}
    return {f"{name}[{i}]": value for i, value in enumerate(calls)}


def check_logits(logits: Any) -> None:
    """Raises TypeError for what does not name an entry."""
    if logits is None or (isinstance(logits, str | int) and not isinstance(logits, bool)):
        return
    if not callable(logits):
        raise TypeError(
            "logits must be the name of an entry of what the module returns, its index, or a "
            f"function of it, got {logits!r}"
        )


def check_features(features: Features) -> None:
    """Raises TypeError for what names no arrays; a string would be read letter by letter."""
    if features is None or features == "all":
        return
    if isinstance(features, str) or not isinstance(features, Sequence):
        raise TypeError(f'features must be a tuple of paths, "all" or None, got {features!r}')

"""The configuration of a run: values of JSON that a resumed run is compared by."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from distill_jax import _batches
from distill_jax._files import json_values
from distill_jax._fingerprints import (
    digest,
    dtype_and_shape,
    is_key,
    key_words,
    leaves_by_path,
    shapes,
)
from distill_jax._text import printable
from distill_jax.objectives import Objective, Term
from distill_jax.teachers import Teacher
from distill_jax.training.checkpoints._contents import FORMAT
from distill_jax.training.step import Recipe, TrainState
from distill_jax.types import Batch

SHORT = 16  # longer arrays are listed by a hash


def configuration(
    recipe: Recipe,
    objective: Objective,
    teachers: Mapping[str, Teacher],
    batch: Batch,
    *,
    state: TrainState,
    programs: Sequence[str],
    key: Array,
    decay: Float[Array, ""] | Partial | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """What a resumed run must share with the run before, and every process with the others.

    What may change between the two is left out: the number of steps, folders, devices, logs. What
    cannot be listed because it is hidden in functions is caught by ``program``, a hash of the
    traced step, which can be compared only between equal ``versions``.

    Args:
      recipe: Student and optimizer. The layout may change.
      objective: Its weights and options are listed by value. An option with a method ``describe``
        is listed by what that returns.
      teachers: Listed by the shapes and a cryptographic hash of their variables.
      batch: One batch, of the size that a step takes; only shapes and dtypes matter.
      state: The state before the first step; only shapes and dtypes matter.
      programs: Hashes of the programs that make the state and take a step.
      key: The key of the run.
      decay: Of the moving average; a schedule is listed by its name and its options.
      settings: Further values to compare: values of JSON, NumPy's scalars, arrays, dtypes, and
        functions, which are compared by name.

    Returns:
      Nested dictionaries of strings, numbers and lists, the same in every process.
    """
    terms = {t.name: _term(t) for t in objective.terms}
    found = {
        "format": FORMAT,
        "student": {
            "params": shapes(state.params),
            "state": shapes(state.state),
            "classes": recipe.model.classes,
            "outputs": recipe.model.outputs,
            "missing values": recipe.model.missing,
            "trains": _paths_that_train(recipe, state),
        },
        "objective": {"terms": [t.name for t in objective.terms], **terms},
        "terms' own": {"params": shapes(state.term_params), "state": shapes(state.term_state)},
        "optimizer": shapes(state.opt_state),
        "microbatches": recipe.microbatches,
        "average": _decay(decay),
        "augment": None if recipe.augment is None else _name(recipe.augment),
        "batch": {
            name: f"{x.dtype}[{', '.join(['batch', *map(str, x.shape[1:])])}]"
            for name, x in _batches.arrays(batch).items()
        },
        "key": list(key_words(key).values()),
        "teachers": {name: _teacher(t) for name, t in teachers.items()},
        "settings": _plain(settings),
        "program": "".join(programs),
        "versions": {name: metadata.version(name) for name in ("jax", "flax", "optax")},
    }
    return json.loads(json.dumps(found))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences of two configurations, one line each: where, the old value, the new one.

    Example:
      >>> old = {"objective": {"teacher": {"weight": 1.0, "options": {"temperature": 4.0}}}}
      >>> new = {"objective": {"teacher": {"weight": 1.0, "options": {"temperature": 2.0}}}}
      >>> differences(old, new)
      ['objective/teacher/options/temperature was 4.0, is 2.0']
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    hidden = ("program", "versions")
    lines = []
    for path in [*before, *(p for p in after if p not in before)]:
        if path.partition("/")[0] in hidden or before.get(path, _NONE) == after.get(path, _NONE):
            continue
        if path not in after:
            lines.append(f"{path} was {_shown(before[path])}, is missing now")
        elif path not in before:
            lines.append(f"{path} was missing, is {_shown(after[path])}")
        else:
            lines.append(f"{path} was {_shown(before[path])}, is {_shown(after[path])}")
    comparable = old.get("versions") == new.get("versions")
    if not lines and comparable and old.get("program") != new.get("program"):
        lines.append(
            "the compiled step differs in something that is not listed: a learning rate, for "
            "example, or a constant in a loss"
        )
    return [printable(line) for line in lines]


def other_versions(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """A warning if other versions made the old configuration; empty if the same did.

    Example:
      >>> old, new = {"versions": {"jax": "0.9.0"}}, {"versions": {"jax": "0.10.0"}}
      >>> print(other_versions(old | {"program": "a"}, new | {"program": "a"}))
      jax was 0.9.0, is 0.10.0, so numbers may differ in their last bits
    """
    before, after = old.get("versions"), new.get("versions")
    if before == after:
        return ""
    # A file that was edited by hand may hold anything.
    before, after = (x if isinstance(x, Mapping) else {} for x in (before, after))
    names = [n for n in {**before, **after} if before.get(n) != after.get(n)]
    changes = ", ".join(
        f"{n} was {before.get(n, 'not noted')}, is {after.get(n, 'not noted')}" for n in names
    )
    text = f"{changes or 'their versions are not noted'}, so numbers may differ in their last bits"
    if old.get("program") == new.get("program"):
        return text
    return (
        f"{text}, and the compiled step cannot be compared: a change that is not listed, of the "
        "learning rate for example, would go unnoticed"
    )


def _term(t: Term) -> dict[str, Any]:
    weights = {"sample_weight": t.sample_weight, "divide_by": t.divide_by}
    return {
        "loss": _name(t.loss),
        "weight": _name(t.weight.schedule) if callable(t.weight) else _value(t.weight),
        "options": {name: _value(x) for name, x in t.options.items()},
        "settings": {name: _plain(x) for name, x in t.fixed.items()},
        "schedules": {name: _name(x) for name, x in t.schedules},
        "reads": {name: x if isinstance(x, str) else _name(x) for name, x in t.reads},
        "where": _name(t.where) if callable(t.where) else t.where,
        "coupled": t.coupled,
        "init": None if t.init is None else _name(t.init),
        **({} if t.sample_weight is None else weights),
    }


def _paths_that_train(recipe: Recipe, state: TrainState) -> Any:
    """Whether each parameter trains, by path; None if all do."""
    if recipe.trains is None:
        return None
    return dict(zip(leaves_by_path(state.params), recipe.trains, strict=True))


def _decay(decay: Any) -> Any:
    if not callable(decay):
        return None if decay is None else float(decay)
    partial: Any = decay  # a Partial, whose function is fixed in the program
    return {"schedule": _name(partial.func), "options": _value((partial.args, partial.keywords))}


def _teacher(t: Teacher) -> dict[str, Any]:
    variables = jax.tree.map(_array, (t.params, t.state))
    return {
        "classes": t.classes,
        "outputs": t.outputs,
        "params": shapes(variables[0]),
        "state": shapes(variables[1]),
        "hash": digest(variables),
    }


def _value(x: Any) -> Any:
    if (describe := getattr(x, "describe", None)) is not None:
        described = _plain(describe())
        described = described if isinstance(described, dict) else {"description": described}
        return {**described, "hash": digest(x)}
    leaves = leaves_by_path(x)
    if list(leaves) != [""]:
        return {name: _value(leaf) for name, leaf in leaves.items()}
    x = _array(x)
    if x.size > SHORT or is_key(x):
        return f"{dtype_and_shape(x)} with hash {digest(x)}"
    return json_values(np.asarray(x).astype(object).tolist())


def _plain(x: Any) -> Any:
    """A setting as values of JSON."""
    if isinstance(x, Mapping):
        return {str(name): _plain(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(value) for value in x]
    if x is None or isinstance(x, str):
        return x
    if isinstance(x, bool | int | float):
        return json_values(x)
    # Classes of NumPy's scalars have the attributes of an array too.
    if isinstance(x, np.dtype) or (hasattr(x, "dtype") and not hasattr(x, "__array__")):
        return jnp.dtype(x).name
    if isinstance(x, type):
        return jnp.dtype(x).name if issubclass(x, np.generic) else _name(x)
    return _name(x) if callable(x) else _value(x)


def _array(x: Any) -> Any:
    return x if hasattr(x, "dtype") and hasattr(x, "shape") else jnp.asarray(x)


def _name(function: Any) -> str:
    """What a function is called, without its address."""
    if isinstance(function, functools.partial):
        return f"partial of {_name(function.func)}"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


_NONE = object()


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for name, value in tree.items():
        yield from _flat(value, f"{path}/{name}" if path else str(name))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."

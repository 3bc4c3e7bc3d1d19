"""What makes a run that run, as values of JSON that can be compared in another process."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from distill_jax.objectives import Objective, Term
from distill_jax.rules import Book
from distill_jax.teachers import Teacher
from distill_jax.training.step import Recipe
from distill_jax.types import Batch

SHORT = 16  # numbers that are written out; of more than these a checksum is


def configuration(
    recipe: Recipe,
    objective: Objective,
    teachers: Mapping[str, Teacher],
    batch: Batch,
    *,
    key: Array,
    decay: Float[Array, ""] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """What a resumed run must share with the run before, and every process with the others.

    What may change between the two is left out: the number of steps, folders, devices, logs. What
    cannot be listed, since it is hidden in functions, is caught by ``program``, a hash of the step
    as it is traced. It is comparable only between equal ``versions``.

    Args:
      recipe: Student and optimizer; without a layout, which may change.
      objective: Its weights and options are listed by value.
      teachers: Listed by shape and by a checksum of their variables, computed where they lie.
      batch: One batch, of the size that a step takes; only shapes and dtypes matter.
      key: The key of the run.
      decay: Of the moving average.
      settings: More that is to be compared: values of JSON, NumPy's scalars, arrays, dtypes, and
        functions, which are compared by name.

    Returns:
      Nested dictionaries of strings, numbers and lists, the same in every process.
    """
    abstract = functools.partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype))
    columns = abstract({name: _array(x) for name, x in batch.items()})
    arguments = (columns, *(abstract(jax.tree.map(_array, x)) for x in (objective, teachers)))
    start = (arguments[1], arguments[0], arguments[2], abstract(key))
    state = jax.eval_shape(recipe.init, *start)
    step = (state, *arguments, None if decay is None else abstract(decay))
    terms = {t.name: _term(t) for t in objective.terms}
    found = {
        "student": {
            "params": shapes(state.params),
            "state": shapes(state.state),
            "classes": recipe.model.classes,
            "missing values": recipe.model.missing,
        },
        "objective": {"terms": [t.name for t in objective.terms], **terms},
        "terms' own": {"params": shapes(state.term_params), "state": shapes(state.term_state)},
        "optimizer": shapes(state.opt_state),
        "microbatches": recipe.microbatches,
        "average": None if decay is None else float(decay),
        "augment": None if recipe.augment is None else _name(recipe.augment),
        "batch": {name: f"{x.dtype}[batch{_axes(x)}]" for name, x in columns.items()},
        "key": [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()],
        "teachers": {name: _teacher(t) for name, t in teachers.items()},
        "settings": _plain(settings),
        "program": program(recipe.init, *start) + program(recipe.step, *step),
        "versions": {name: metadata.version(name) for name in ("jax", "flax", "optax")},
    }
    return json.loads(json.dumps(found))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What two configurations differ in, a line each: where, the old value, the new one.

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
            lines.append(f"{path} was {_shown(before[path])}, is not there any more")
        elif path not in before:
            lines.append(f"{path} was not there, is {_shown(after[path])}")
        else:
            lines.append(f"{path} was {_shown(before[path])}, is {_shown(after[path])}")
    comparable = old.get("versions") == new.get("versions")
    if not lines and comparable and old.get("program") != new.get("program"):
        lines.append(
            "the compiled step differs in something that is not listed: a learning rate, for "
            "example, or a constant in a loss"
        )
    return lines


def other_versions(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What to warn of where other versions made the old one; empty where the same did.

    Example:
      >>> old, new = {"versions": {"jax": "0.9.0"}}, {"versions": {"jax": "0.10.0"}}
      >>> print(other_versions(old | {"program": "a"}, new | {"program": "a"}))
      jax was 0.9.0, is 0.10.0, so numbers may differ in their last bits
    """
    before, after = old.get("versions"), new.get("versions")
    if before == after:
        return ""
    # A file that somebody has edited may hold anything.
    before, after = (x if isinstance(x, Mapping) else {} for x in (before, after))
    names = [n for n in {**before, **after} if before.get(n) != after.get(n)]
    changes = ", ".join(
        f"{n} was {before.get(n, 'not noted')}, is {after.get(n, 'not noted')}" for n in names
    )
    text = f"{changes or 'their versions are not noted'}, so numbers may differ in their last bits"
    if old.get("program") == new.get("program"):
        return text
    return (
        f"{text}, and the compiled step cannot be compared: what is in no list, a changed learning "
        "rate for example, would not be seen"
    )


def program(function: Callable, *arguments: Any) -> str:
    """A hash of what a function computes, as it is traced: the same in another process."""
    closed = jax.make_jaxpr(function)(*arguments)
    text = re.sub(r" at 0x[0-9a-f]+", "", str(closed))
    # The order of a set of strings is another one in each process.
    text = re.sub(r"\{([^{}:=]*)\}", lambda m: f"{{{', '.join(sorted(m[1].split(', ')))}}}", text)
    hashed = hashlib.sha256(text.encode())
    for constant in _constants(closed):
        hashed.update(f"{constant.dtype}{constant.shape}{int(checksum(constant))}".encode())
    return hashed.hexdigest()[:16]


@jax.jit
def checksum(x: Array) -> UInt32[Array, ""]:
    """A sum of an array's bits, each number times an odd factor of its own, modulo 2³².

    Integers wrap around exactly, so it is the same however the array lies on devices. A change of
    one number always shows.
    """
    bits = _bits(x)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        position += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(stride)
    return jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by names that say where they are, in the tree's order."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # {"a/b": x} and {"a": {"b": x}} would share a name.
        named[jax.tree_util.keystr(path) if name in named else name] = leaf
    return named


def shapes(tree: Any) -> dict[str, str]:
    """Dtype and shape of every leaf by its path."""
    return {name: _kind(x) for name, x in leaves_by_path(tree).items()}


def _bits(x: Array) -> Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    information = jnp.finfo if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo
    width = min(information(x.dtype).bits, 32)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}")).astype(jnp.uint32)


def _term(t: Term) -> dict[str, Any]:
    return {
        "loss": _name(t.loss),
        "weight": _name(t.weight.schedule) if callable(t.weight) else _value(t.weight),
        "options": {name: _value(x) for name, x in t.options.items()},
        "settings": {name: x for name, x in t.settings},
        "schedules": {name: _name(x) for name, x in t.schedules},
        "reads": {name: x if isinstance(x, str) else _name(x) for name, x in t.reads},
        "where": _name(t.where) if callable(t.where) else t.where,
        "coupled": t.coupled,
        "init": None if t.init is None else _name(t.init),
    }


def _teacher(t: Teacher) -> dict[str, Any]:
    variables = jax.tree.map(_array, (t.params, t.state))
    return {
        "classes": t.classes,
        "params": shapes(variables[0]),
        "state": shapes(variables[1]),
        "checksum": _total(variables),
    }


def _total(tree: Any) -> int:
    sums = jax.device_get([checksum(_array(x)) for x in jax.tree.leaves(tree)])
    return sum(int(x) * (2 * i + 1) for i, x in enumerate(sums)) % 2**32


def _value(x: Any) -> Any:
    if isinstance(x, Book):
        return {
            "rules": str(x).splitlines(),
            "logic": x.info.logic.name,
            "strengths": _value(x.strengths),
            "checksum": _total(x),
        }
    leaves = leaves_by_path(x)
    if list(leaves) != [""]:
        return {name: _value(leaf) for name, leaf in leaves.items()}
    x = _array(x)
    if x.size > SHORT or _is_key(x):
        return f"{_kind(x)} with checksum {int(checksum(x))}"
    # NaN is no value of JSON, and not equal to itself.
    numbers = np.asarray(x).astype(object)
    return np.vectorize(_number, otypes=[object])(numbers).tolist() if x.size else []


def _plain(x: Any) -> Any:
    """A setting as values of JSON."""
    if isinstance(x, Mapping):
        return {str(name): _plain(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(value) for value in x]
    if x is None or isinstance(x, str):
        return x
    if isinstance(x, bool | int | float):
        return _number(x)
    # Classes of NumPy's scalars have the attributes of an array too.
    if isinstance(x, np.dtype) or (hasattr(x, "dtype") and not hasattr(x, "__array__")):
        return jnp.dtype(x).name
    if isinstance(x, type):
        return jnp.dtype(x).name if issubclass(x, np.generic) else _name(x)
    return _name(x) if callable(x) else _value(x)


def _number(x: Any) -> Any:
    if isinstance(x, bool | int):
        return x
    return float(x) if math.isfinite(x) else str(float(x))


def _array(x: Any) -> Any:
    return x if hasattr(x, "dtype") and hasattr(x, "shape") else jnp.asarray(x)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _kind(x: Any) -> str:
    return f"{x.dtype}[{_axes(x, whole=True)}]"


def _axes(x: Any, *, whole: bool = False) -> str:
    return ", ".join(map(str, x.shape)) if whole else "".join(f", {n}" for n in x.shape[1:])


def _name(function: Any) -> str:
    """What a function is called, without its address."""
    if isinstance(function, functools.partial):
        return f"partial of {_name(function.func)}"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _constants(closed: Any) -> Iterator[Any]:
    """Arrays in a program, in those inside it too: their values are not part of its text."""
    for constant in getattr(closed, "consts", ()):
        yield constant if hasattr(constant, "dtype") else jnp.asarray(constant)
    jaxpr = getattr(closed, "jaxpr", closed)
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns"):
                    yield from _constants(inner)


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

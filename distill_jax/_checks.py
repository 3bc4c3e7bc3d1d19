"""Checks at trace time. Shapes and dtypes are static, so they cost nothing under ``jit``.

A value that is traced is not known yet, and passes; one that is known must be right. Shapes and
trees are compared by Chex, whose assertions are raised again as errors that name the argument, what
was expected and what came. ``chex.disable_asserts()`` switches these comparisons off too.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import chex
import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def known(value: Any) -> np.ndarray | None:
    """The value as a NumPy array, or None while it is traced."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value)


def floating(**arrays: Any) -> None:
    for name, x in arrays.items():
        _no_mask(name, x)
        dtype = _dtype(x)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name} must be floating point, got {dtype}: "
                f"convert it with {name}.astype(jnp.float32)"
            )


def integer(**arrays: Any) -> None:
    for name, x in arrays.items():
        _no_mask(name, x)
        dtype = _dtype(x)
        if not jnp.issubdtype(dtype, jnp.integer):
            raise TypeError(f"{name} must be integers, got {dtype}{_as_integers(name, x, dtype)}")


def integer_or_boolean(**arrays: Any) -> None:
    for name, x in arrays.items():
        _no_mask(name, x)
        dtype = _dtype(x)
        if not (jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_):
            advice = _as_integers(name, x, dtype)
            raise TypeError(f"{name} must be integers or booleans, got {dtype}{advice}")


def boolean(**arrays: Any) -> None:
    for name, x in arrays.items():
        _no_mask(name, x)
        dtype = _dtype(x)
        if dtype != jnp.bool_:
            raise TypeError(
                f"{name} must be booleans (True counts), got {dtype}: "
                f"write {name} > 0 if it holds 0 and 1"
            )


def shape(expected: tuple[Any, ...], *, hint: str = "", **arrays: Any) -> None:
    """Arrays of this shape; a name in the place of a size is an axis of any size."""
    sizes = tuple(None if isinstance(n, str) else n for n in expected)
    named = any(isinstance(n, str) for n in expected)
    shown = f"[{', '.join(map(str, expected))}]" if named else f"{expected}"
    for name, x in arrays.items():
        x = _with_shape(x)
        with _raised(lambda x=x, name=name: f"{name} must have shape {shown}{hint}, got {x.shape}"):
            chex.assert_shape(x, sizes)


def same_shape(**arrays: Any) -> None:
    (first, x), *others = ((name, _with_shape(x)) for name, x in arrays.items())
    for name, y in others:
        with _raised(
            lambda y=y, name=name: (
                f"{name} must have the shape of {first}, {x.shape}, got {y.shape}"
            )
        ):
            chex.assert_equal_shape([x, y])


def same_tree(expected: Any, **trees: Any) -> None:
    """Trees with the structure, shapes and dtypes of ``expected``, whose leaves are arrays."""
    kinds = (
        ("structure", chex.assert_trees_all_equal_structs, jax.tree.structure),
        ("shapes", chex.assert_trees_all_equal_shapes_and_dtypes, _shapes_and_dtypes),
    )
    for name, tree in trees.items():
        for what, alike, of in kinds:
            with _raised(
                lambda what=what, of=of, name=name, tree=tree: (
                    f"{name} must have the {what} {of(expected)}, got {of(tree)}"
                )
            ):
                alike(expected, tree)


def classes_axis(*, least: int = 2, **arrays: Any) -> None:
    for name, x in arrays.items():
        if np.ndim(x) < 1 or np.shape(x)[-1] < least:
            if least < 2:
                raise ValueError(f"{name} must have shape [..., outputs], got {np.shape(x)}")
            raise ValueError(
                f"{name} must have shape [..., classes] with two classes or more, got "
                f"{np.shape(x)}: a single output z is the two classes [0, z], see two_class"
            )


def number(**values: Any) -> None:
    """Numbers, or arrays of them."""
    for name, value in values.items():
        try:
            dtype = _dtype(value)
        except (TypeError, ValueError):
            dtype = np.dtype(object)
        if not jnp.issubdtype(dtype, jnp.number):
            got = repr(value) if isinstance(value, str) else type(value).__name__
            raise TypeError(f"{name} must be a number, got {got}")


def numbers(name: str, values: Any) -> np.ndarray:
    """The values as float64."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        got = repr(values) if isinstance(values, str) else type(values).__name__
        raise TypeError(f"{name} must be numbers, got {got}") from None


def names(name: str, values: Any) -> tuple[str, ...]:
    """Several names; a single string would be read letter by letter."""
    if isinstance(values, str):
        raise TypeError(f"{name} must be a sequence of strings, got {values!r}: write [{values!r}]")
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of strings, got {type(values).__name__}")
    return tuple(values)


def arrays(**trees: Any) -> None:
    """Trees whose leaves are arrays or numbers."""
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not (hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float | complex)):
                where = jax.tree_util.keystr(path)
                got = repr(leaf) if isinstance(leaf, str) else type(leaf).__name__
                raise TypeError(f"{name}{where} must be an array, got {got}")


@contextlib.contextmanager
def variables_of(
    model: Any, params: Any, state: Any, inputs: Any, *, axes: int = 0
) -> Iterator[None]:
    """Says of an error that params or state are not those of the model, where this is so.

    Args:
      model, params, state: A ``Model`` and what its ``init`` should have made.
      inputs: Rows that it is applied to, ``[batch, ...]``.
      axes: How many axes are in front of each parameter, for stacked models.
    """
    try:
        yield
    except Exception as error:
        try:
            row = jax.tree.map(lambda x: x[:1], inputs)
            expected = jax.eval_shape(model.init, jax.random.key(0), row)
        except Exception:
            raise error from None  # the inputs do not fit either, or it is no model
        for name, made, given in zip(("params", "state"), expected, (params, state), strict=True):
            arrays(**{name: given})
            found = jax.tree.map(lambda x: np.shape(x)[axes:], given)
            wanted = jax.tree.map(lambda x: x.shape, made)
            if found != wanted:
                raise ValueError(
                    f"{name} must be the model's own, as its init gives them, with the shapes "
                    f"{wanted}{' after the first axis' if axes else ''}, got {found}"
                ) from error
        raise


def scalar(**values: Any) -> None:
    number(**values)
    for name, value in values.items():
        if np.ndim(value) != 0:
            raise ValueError(f"{name} must be a scalar, got shape {np.shape(value)}")


def positive(**values: Any) -> None:
    number(**values)
    for name, value in values.items():
        x = known(value)
        if x is not None and not (np.isfinite(x).all() and (x > 0).all()):
            raise ValueError(f"{name} must be finite and > 0, got {value}")


def at_least(low: float, **values: Any) -> None:
    number(**values)
    for name, value in values.items():
        x = known(value)
        if x is not None and not (np.isfinite(x).all() and (x >= low).all()):
            raise ValueError(f"{name} must be finite and >= {low}, got {value}")


def between(low: float, high: float, **values: Any) -> None:
    number(**values)
    for name, value in values.items():
        x = known(value)
        if x is not None and not ((x >= low).all() and (x <= high).all()):
            raise ValueError(f"{name} must lie in [{low}, {high}], got {value}")


def finite(**values: Any) -> None:
    number(**values)
    for name, value in values.items():
        x = known(value)
        if x is not None and not np.isfinite(x).all():
            raise ValueError(f"{name} must be finite, got {value}")


def count(name: str, value: Any, *, least: int = 1) -> int:
    """A number of things, given as an integer of any kind, as a Python integer."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} must be a Python int, not traced: name it in static_argnames")
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be {least} or more, got {number}")
    return number


def takes(form: str, **functions: Any) -> None:
    """Functions that can be called with as many arguments as ``form``, such as "(key, batch)"."""
    many = form.count(",") + 1
    for name, function in functions.items():
        try:
            inspect.signature(function).bind(*range(many))
        except ValueError:  # it has no signature
            continue
        except TypeError:
            of = f"a function of {inspect.signature(function)}" if callable(function) else None
            got = of or type(function).__name__
            raise TypeError(f"{name} must be a function of {form}, got {got}") from None


def choice(allowed: tuple[str, ...], **values: Any) -> None:
    """One of a few words."""
    for name, value in values.items():
        if not isinstance(value, str) or value not in allowed:
            words = ", ".join(map(repr, allowed))
            raise ValueError(f"{name} must be one of {words}, got {value!r}")


def labels_below(num_classes: int, **arrays: Any) -> None:
    for name, labels in arrays.items():
        x = known(labels)
        if x is not None and x.size and (x.min() < 0 or x.max() >= num_classes):
            raise ValueError(
                f"{name} must lie in 0 ... {num_classes - 1} for {num_classes} classes, "
                f"got values from {x.min()} to {x.max()}"
            )


def class_order(ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None, who: str) -> None:
    """Two declared class orders must be one; an undeclared one is taken on trust."""
    if ours is None or theirs is None or ours == theirs:
        return
    if sorted(ours) == sorted(theirs):
        raise ValueError(
            f"{who} orders its classes as {list(theirs)}, the student as {list(ours)}: "
            f"bring it to the student's order with teachers.reorder({who}, {list(ours)})"
        )
    raise ValueError(f"{who} has the classes {list(theirs)}, the student {list(ours)}")


def same_outputs(ours: str, theirs: str, who: str) -> None:
    """What a teacher, say, predicts must be what the student does."""
    if ours != theirs:
        raise ValueError(
            f"{who} has outputs={theirs!r}, the student outputs={ours!r}: they must mean the same. "
            "Say what they are where the two are made, such as mlp(..., outputs='regression') and "
            "teachers.from_function(..., outputs='regression')"
        )


def fits_device(**columns: Any) -> None:
    """Numbers of the host keep their value where JAX holds them in fewer bits.

    Without ``jax_enable_x64``, 2**32 + 1 would become 1, and 1e300 inf.

    Arrays that JAX already holds pass.
    """
    for name, column in columns.items():
        found = outside_device(column)
        if found is not None:
            value, held = found
            raise ValueError(
                f"{name} has the value {value}, which does not fit in {held}, the type in which "
                f"JAX holds {column.dtype}: renumber or rescale the column, or enable 64 bits with "
                "jax.config.update('jax_enable_x64', True)"
            )


def outside_device(column: Any) -> tuple[Any, np.dtype] | None:
    """A value that does not fit in the dtype in which JAX holds it, and that dtype."""
    if not isinstance(column, np.ndarray) or column.dtype.kind not in "iuf":
        return None
    held = jax.dtypes.canonicalize_dtype(column.dtype)
    if held == column.dtype or not column.size:
        return None
    bounds = jnp.finfo(held) if column.dtype.kind == "f" else jnp.iinfo(held)
    least, most = float(bounds.min), float(bounds.max)
    # Without a copy of the column where all is well. fmin and fmax leave NaN out.
    low, high = np.fmin.reduce(column, axis=None), np.fmax.reduce(column, axis=None)
    if low >= least and high <= most:
        return None
    bad = np.isfinite(column) & ((column < least) | (column > most))
    return (column[bad][0], held) if bad.any() else None


def compute_dtype(dtype: Any, name: str = "dtype") -> np.dtype:
    """A dtype that a forward pass may compute in."""
    try:
        found = None if dtype is None else jnp.dtype(dtype)  # NumPy reads None as float64
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise TypeError(f"{name} must be a floating dtype such as jnp.bfloat16, got {dtype!r}")
    if found not in (jnp.bfloat16, jnp.float32, jnp.float64):
        raise ValueError(
            f"{name} must be bfloat16, float32 or float64, got {found}: its range is too small for "
            "gradients without loss scaling; use jnp.bfloat16, which needs none"
        )
    if jax.dtypes.canonicalize_dtype(found) != found:
        raise ValueError(f"{name} {found} needs jax.config.update('jax_enable_x64', True)")
    return found


def compiles(who: str, instead: str) -> None:
    """Raises ValueError where JAX is told not to compile, and a function cannot do without."""
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            f"{who} compiles its programs beforehand, which JAX_DISABLE_JIT (jax_disable_jit) "
            f"forbids: switch that off for it, or {instead}"
        )


def wide_dtype(*values: Any, least: Any = jnp.float32) -> np.dtype:
    """The common dtype of arrays or dtypes, float32 or better, in which they are computed.

    This promotion is meant, so that ``jax_numpy_dtype_promotion="strict"`` does not refuse it.
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(jnp.result_type(*values), least)


@contextlib.contextmanager
def _raised(message: Callable[[], str]) -> Iterator[None]:
    """An assertion of Chex's as a ``ValueError`` with a message of ours."""
    try:
        yield
    except AssertionError:
        raise ValueError(message()) from None


def _no_mask(name: str, x: Any) -> None:
    """Raises ValueError for an array of NumPy with masked entries, whose mask JAX would drop."""
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise ValueError(
            f"{name} has {np.ma.count_masked(x)} masked entries, which an array of JAX cannot "
            f"hold: fill them, {name}.filled(0), and leave their rows out by where="
        )


def _dtype(x: Any) -> Any:
    """Of an array or a number, or of what NumPy makes of a list or a data frame."""
    if not (isinstance(x, bool | int | float | complex) or hasattr(x, "dtype")):
        x = np.asarray(x)
    try:
        return jnp.result_type(x)
    except TypeError:  # no dtype of JAX
        return np.asarray(x).dtype


def _as_integers(name: str, x: Any, dtype: Any) -> str:
    """What to do about numbers of another dtype, where integers are asked for."""
    if dtype == jnp.bool_:
        return f": convert them with {name}.astype(np.int32)"
    if not jnp.issubdtype(dtype, jnp.floating):
        return ""
    if np.ndim(x) > 1:
        return (
            f": one-hot rows become class numbers by {name}.argmax(-1), and probabilities are for "
            "a loss with targets, such as cross_entropy_with_targets"
        )
    return (
        f": class numbers are converted with {name}.astype(np.int32), and numbers to be predicted "
        "are for a loss with targets, such as squared_error_with_targets"
    )


def _with_shape(x: Any) -> Any:
    return x if hasattr(x, "shape") else np.asarray(x)  # Chex takes a list for several arrays


def _shapes_and_dtypes(tree: Any) -> list[Any]:
    return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]

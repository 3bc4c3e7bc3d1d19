"""Errors of public functions name the argument that is of a wrong kind.

Words, flags and functions are looked at first: nothing but a look at their type is needed, and a
wrong one often does no visible harm. A function checks what else it can say something useful about.
Where it fails otherwise, somewhere far below, and an argument is of another kind than it is
annotated with, that is the error.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import numbers
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, Union

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

P = ParamSpec("P")
R = TypeVar("R")


class Kind(NamedTuple):
    """What an annotation asks for.

    Attributes:
      words: For a message: "must be <words>".
      fits: ``value -> bool``.
      before: The error where it is looked at before the call, as words, flags and functions are.
    """

    words: str
    fits: Callable[[Any], bool]
    before: type[TypeError | ValueError] | None = None


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose errors name the argument of another kind than it is annotated with.

    An error that names this argument itself is left as it is. What is checked is deliberately
    coarse: an array is whatever has a dtype or is a number or a sequence, an integer whatever is
    one by ``operator.index``. A parameter called ``key``, or ``..._key``, takes a random key.

    A class may say how it is made by an attribute ``made_by``, which the message repeats; then
    the elements of sequences and mappings of it are checked too.
    """
    kinds: dict[str, Kind] = {}
    names = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not kinds:  # late, when every name that an annotation uses is defined
            kinds.update(_kinds(function))
        given = (*zip(names, args, strict=False), *kwargs.items())
        for name, value in given:
            kind = kinds.get(name)
            if kind is not None and kind.before is not None and not kind.fits(value):
                raise kind.before(f"{name} must be {kind.words}, got {_shown(value)}")
        try:
            return function(*args, **kwargs)
        except Exception as error:
            for name, value in given:
                kind = kinds.get(name)
                if kind is None or kind.fits(value) or _is_named(name, error):
                    continue
                message = f"{name} must be {kind.words}, got {_shown(value)}"
                raise TypeError(message) from error
            raise

    return call


def _is_named(name: str, error: Exception) -> bool:
    """Whether an error of this package names an argument; other packages have their own names."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return not raised_in.startswith("jax") and bool(re.search(rf"\b{name}\b", str(error)))


def _kinds(function: Callable) -> dict[str, Kind]:
    """The kind of each parameter that has one worth checking."""
    found = {
        p.name: _kind(_hint(p.annotation, function), _KEY if _is_key(p.name) else _ARRAY)
        for p in inspect.signature(function).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    # An entry also where nothing is checked, so that annotations are read once.
    return {name: kind or _ANYTHING for name, kind in found.items()} or {"": _ANYTHING}


def _is_key(name: str) -> bool:
    """Whether a parameter is a random key: those have such names everywhere."""
    return name == "key" or name.endswith("_key")


def _hint(annotation: Any, function: Callable) -> Any:
    """What an annotation stands for; Any if it needs a package that may be absent."""
    if annotation is inspect.Parameter.empty:
        return Any
    holder = types.SimpleNamespace(__annotations__={"hint": annotation})
    try:
        return typing.get_type_hints(holder, inspect.unwrap(function).__globals__)["hint"]
    except NameError:
        return Any


def _random_key(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return False
    return jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == np.uint32


_ANYTHING = Kind("anything", lambda value: True)
_KEY = Kind("a random key, such as jax.random.key(0)", _random_key)


def _kind(hint: Any, array: Kind | None = None) -> Kind | None:
    """What a value must be, ``array`` where that is an array; None if anything goes."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is PyTree or getattr(hint, "_is_protocol", False):
        return None
    if origin in (Union, types.UnionType):
        return _one_of([_kind(part, array) for part in inner])
    if origin is Literal:
        return Kind(
            "one of " + ", ".join(map(repr, inner)),
            lambda value: isinstance(value, str | bool | int) and value in inner,
            before=ValueError,
        )
    if _is_array(hint):
        return array or _ARRAY
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if origin in (collections.abc.Sequence, list, tuple, collections.abc.Iterable):
        return _sequence(origin, inner)
    if origin is collections.abc.Mapping or origin is dict:
        return _mapping(inner)
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        return Kind("a function", callable, before=TypeError)
    if isinstance(hint, type) and hint not in (object, type):
        return _instance(hint)
    return None


def _one_of(kinds: list[Kind | None]) -> Kind | None:
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds):
        return None
    words = list(dict.fromkeys(kind.words for kind in known))
    errors = [kind.before for kind in known]
    before = None if None in errors else ValueError if ValueError in errors else TypeError
    return Kind(" or ".join(words), lambda value: any(kind.fits(value) for kind in known), before)


def _sequence(origin: Any, inner: tuple[Any, ...]) -> Kind:
    element = _kind(inner[0]) if inner and _is_made(inner[0]) else None
    of = f" of {inner[0].__name__}s" if element is not None else ""
    if inner and inner[0] is str:
        of = " of strings"
    numeric = not inner or inner[0] in (Any, int, float, complex)  # then an array will do

    def fits(value: Any) -> bool:
        if isinstance(value, str | bytes | collections.abc.Mapping):
            return False  # a string would be read letter by letter
        if hasattr(value, "dtype") and not numeric:
            return False
        if origin is collections.abc.Iterable:
            return hasattr(value, "__iter__") or hasattr(value, "__getitem__")
        if not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
            return False
        return element is None or all(map(element.fits, value))

    return Kind(f"a sequence{of}", fits)


def _mapping(inner: tuple[Any, ...]) -> Kind:
    element = _kind(inner[1]) if inner and _is_made(inner[1]) else None
    of = f" of {inner[1].__name__}s" if element is not None else ""

    def fits(value: Any) -> bool:
        if not isinstance(value, collections.abc.Mapping):
            return False
        return element is None or all(map(element.fits, value.values()))

    return Kind(f"a dictionary{of} by name", fits)


def _instance(kind: type) -> Kind:
    made_by = getattr(kind, "made_by", None)
    article = "an" if kind.__name__[0] in "AEIO" else "a"
    words = f"{article} {kind.__name__}" + (f" (made by {made_by})" if made_by else "")
    return Kind(words, lambda value: isinstance(value, kind))


def _is_made(hint: Any) -> bool:
    """Whether an annotation is a class that says how it is made."""
    return isinstance(hint, type) and hasattr(hint, "made_by")


def _is_array(hint: Any) -> bool:
    """Whether an annotation is an array's, with jaxtyping's axes or without."""
    return isinstance(hint, type) and (
        issubclass(hint, jax.Array | np.ndarray) or hasattr(hint, "array_type")
    )


def _number(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return False
    return isinstance(value, numbers.Real) or (_array(value) and np.ndim(value) == 0)


def _integer(value: Any) -> bool:
    if isinstance(value, jax.core.Tracer):
        return True  # the function itself says what to do about a traced number
    try:
        return not isinstance(value, bool | np.bool_) and operator.index(value) is not None
    except TypeError:
        return False


def _array(value: Any) -> bool:
    if hasattr(value, "dtype") or hasattr(value, "dtypes") or hasattr(value, "__array__"):
        return True
    return isinstance(value, list | tuple) or (isinstance(value, numbers.Number))


def _path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


_ARRAY = Kind("an array", _array)
_SIMPLE: dict[Any, Kind] = {
    type(None): Kind("None", lambda value: value is None, before=TypeError),
    str: Kind("a string", lambda value: isinstance(value, str), before=TypeError),
    bool: Kind("True or False", lambda value: isinstance(value, bool | np.bool_), before=TypeError),
    int: Kind("an integer", _integer),
    float: Kind("a number", _number),
    os.PathLike: Kind("a path", _path, before=TypeError),
    os.PathLike[str]: Kind("a path", _path, before=TypeError),
}


def _shown(value: Any) -> str:
    """A value for a message, never long."""
    if isinstance(value, str | bool | int | float | None):
        text = repr(value)
        return text if len(text) <= 60 else text[:57] + "..."
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {shape}" if isinstance(shape, tuple) else "")


__all__: Iterable[str] = ["checked"]

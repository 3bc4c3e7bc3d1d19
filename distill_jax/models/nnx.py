"""A model from a Flax NNX module.

NNX keeps arrays, random streams and the graph of modules in one mutable object. Here the graph is
recorded once for each mode, and the object lives only inside ``init`` and ``apply``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors, linen, nnx
from jaxtyping import Array

from distill_jax._arguments import checked
from distill_jax._programs import described
from distill_jax.models import _calling
from distill_jax.models._adapt import (
    EVALUATION,
    TRAINING,
    Features,
    Logits,
    as_outputs,
    by_call,
    check_features,
    check_logits,
    entries,
    mode_arguments,
    reserved,
    select,
)
from distill_jax.types import Model, OutputKind, Outputs, Params, State


@checked
def from_nnx(
    make: Callable[..., nnx.Module] | nnx.Module | tuple[Any, ...],
    *,
    classes: tuple[str, ...] | None = None,
    outputs: OutputKind = "softmax",
    features: Features = None,
    logits: Logits = None,
) -> Model:
    """A model from a function that builds an NNX module, or from a module that exists.

    ``make`` is called as ``make(rngs)``. If it has a parameter ``inputs`` without a default, it is
    called as ``make(rngs, inputs=inputs)``, with the shapes and dtypes of the model's inputs as
    ``jax.ShapeDtypeStruct``, so that layers need not know their input sizes beforehand::

        from_nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
        from_nnx(lambda rngs, inputs: nnx.Linear(inputs.shape[-1], 3, rngs=rngs))

    A module that exists, a trained one for example, is passed itself, or as ``nnx.split(module)``
    gives it. Then ``init`` returns its values, whatever the key: they are a teacher's variables, or
    where training starts. They are copied out: the module is not changed, and later changes of it
    are not seen. ::

        model = from_nnx(trained)
        teacher = teachers.teacher(model, *model.init(key, inputs))

    Inputs that are a dictionary are passed by name, if their keys are parameters of ``__call__``:
    ``module(tokens=ids, mask=mask)``. A tuple is passed in order to a module that needs several
    arguments. Everything else is passed whole; see :func:`~distill_jax.models.from_linen`.

    Training mode is the module as ``make`` built it: a batch norm that was built frozen
    (``use_running_average=True``) stays frozen. Evaluation mode is the module after ``.eval()``.
    If ``__call__`` has a parameter ``train``, ``training``, ``is_training``, ``deterministic``,
    ``inference`` or ``use_running_average``, the mode is passed to it (not where a parameter that
    is True in evaluation is None by default: then ``.train()`` and ``.eval()`` decide); if it has a
    parameter ``rngs``, it is given an ``nnx.Rngs``. Other parameters that look like a mode or a
    key, or that nothing fills, are refused, and so is an attribute such as ``training``, which no
    mode changes.

    Params are all ``nnx.Param``; the state is every other array except random streams and sown
    intermediates. Both are plain nested dictionaries; ``apply`` takes an ``nnx.State`` of the same
    variables too. In each call every random stream restarts from ``key``, each from a key of its
    own, so equal keys give equal outputs, whatever seeds the module was built with. In evaluation
    without a key, the streams start from fixed keys.

    Args:
      make: Returns a new module; it may be traced. Or a module, or ``(graphdef, *states)``. The
        module is called with the inputs, an array ``[batch, ...]`` or a pytree of arrays, and
        returns logits ``[batch, ..., classes]`` or :class:`~distill_jax.types.Outputs`, or several
        entries, see ``logits``. A single output ``z`` of kind ``"softmax"`` becomes the logits
        ``[0, z]``.
      classes: The names of the classes in the order of the logits.
      outputs: What the outputs mean, an :data:`~distill_jax.types.OutputKind`.
      features: Which hidden arrays ``[batch, ...]`` to keep, by the path of the submodule that
        returns them (``"blocks/0"``) or of what it sows as ``nnx.Intermediate``
        (``"blocks/0/name"``); ``"all"``; or None. A submodule that runs n times has ``path[0]``,
        ``path[1]``, ... Under ``jit`` an unused feature costs nothing. Modules that NNX itself
        carries through a scan (the cell of ``nnx.RNN``) cannot be captured: use None there.
      logits: Which entry holds the logits, if the module returns several: the key of a dictionary
        or the name of an attribute, the index of a tuple, or a function of what it returns. Other
        entries that are arrays ``[batch, ...]`` become features by their names (with a function,
        all such entries); the rest is left out.

    Returns:
      A model. Its params and state are nested dictionaries of arrays, with the names of the
      module's attributes as keys (``params["blocks"]["0"]["kernel"]``).

    Raises:
      TypeError: if ``make`` is or returns no module, or one that exists already, or one with an
        array as a static attribute, or one whose ``__call__`` has a parameter that looks like a
        mode or a key. Raised from ``init`` and ``apply`` where ``make`` needs ``inputs``. From
        these also, if nothing fills a parameter, if inputs do not fit the parameters, or if several
        entries are returned and ``logits`` is None.
      ValueError: from ``apply`` in training, if the module was passed in evaluation mode, in which
        it would train without dropout and with frozen batch statistics: call ``module.train()``
        first. From ``apply``, if the module draws random numbers in training and ``key`` is
        None, if params or state do not fit the module, or if a feature does not exist.

    Example:
      >>> model = from_nnx(lambda rngs, inputs: nnx.Linear(inputs.shape[-1], 3, rngs=rngs))
      >>> params, state = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> params["kernel"].shape, state
      ((4, 3), {})
    """
    check_features(features)
    check_logits(logits)
    existing = _existing(make)
    build: Any = make if existing is None else existing.build
    graph_for = _recorder(build)

    def init(key: Array, inputs: Any) -> tuple[Params, State]:
        graph = graph_for(inputs)
        if existing is not None:
            arrays = existing.arrays
        else:
            arrays = _arrays(nnx.state(graph.make(nnx.Rngs(key))))
        return _nested(arrays, graph.params), _nested(arrays, graph.state)

    def apply(
        params: Params,
        state: State,
        inputs: Any,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Outputs, State]:
        graph = graph_for(inputs)
        if train and existing is not None and existing.evaluates:
            raise ValueError(
                "the module was passed to from_nnx in evaluation mode: it would train without "
                "dropout and with frozen batch statistics. Call module.train() before; if that is "
                "meant, pass lambda rngs: nnx.clone(module)"
            )
        streams = _streams(graph, key)
        arrays = {
            **_flat(params, graph.params, "params", graph.shapes),
            **_flat(state, graph.state, "state", graph.shapes),
            **streams,
        }
        module = nnx.merge(graph.train if train else graph.eval, nnx.from_flat_state(arrays))
        call = type(module).__call__
        given = _calling.arguments(call, inputs, reserved(call, ("rngs",)))
        options: dict[str, Any] = _mode(module, train, given.filled)
        passed = nnx.Rngs(_stream_key(key, len(streams)))
        unused = passed.default.count.get_value()
        if graph.takes_rngs:
            options["rngs"] = passed
        # Always a capture: sowing outside of one is deprecated, and changes the module's graph.
        returned = None if features is None else nnx.Intermediate
        run = nnx.capture(_call, nnx.Intermediate, method_outputs=returned)
        made, sown = run(module, *given.positional, **given.by_name, **options)
        found = {} if features is None else select(_by_path(sown), features, inputs)
        after = _arrays(nnx.state(module))
        # Drawing a number replaces the stream's counter.
        drawn = any(after[path] is not streams[path] for path in graph.counts)
        drawn = drawn or passed.default.count.get_value() is not unused
        if train and key is None and drawn:
            raise ValueError(
                "key is None, but the module draws random numbers in training and needs one: "
                "pass key="
            )
        made = entries(made, logits, inputs)
        return as_outputs(made, outputs, classes, found), _nested(after, graph.state)

    return Model(init, apply, classes, outputs=outputs)


def _mode(module: nnx.Module, train: bool, given: tuple[str, ...] | None) -> dict[str, Any]:
    call = type(module).__call__
    return mode_arguments(call, train, skip_none=True, filled=("rngs",), given=given)


def _call(module: Any, *inputs: Any, **options: Any) -> Any:
    # The capture sets an attribute on every part of a module. In a list, whose other keys are
    # integers, its name cannot be sorted among them when nnx.remat flattens the module. Lists sow
    # nothing, so the attribute can go.
    for _, part in nnx.iter_modules(module):
        if isinstance(part, nnx.List) and hasattr(part, "__captures__"):
            delattr(part, "__captures__")
    return module(*inputs, **options)


Path = tuple[Any, ...]

_MODES = ("deterministic", "use_running_average")


@dataclasses.dataclass(frozen=True)
class _Existing:
    """A module that was passed itself: its graph, and its arrays at that time."""

    graphdef: Any
    arrays: Mapping[Path, Array]
    evaluates: bool

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return nnx.merge(self.graphdef, nnx.from_flat_state(self.arrays))


def _existing(make: Any) -> _Existing | None:
    if isinstance(make, nnx.Module):
        module = nnx.clone(make)
    elif isinstance(make, tuple) and make and isinstance(make[0], nnx.GraphDef):
        module = nnx.merge(*make)
    elif isinstance(make, linen.Module):
        raise TypeError(f"{type(make).__name__} is a Linen module: it goes through from_linen")
    elif callable(make):
        return None
    else:
        advice = ": pass (graphdef, state), as nnx.split gives them"
        raise TypeError(
            "make must be a function that builds an nnx.Module, or such a module, got "
            f"{type(make).__name__}" + (advice if isinstance(make, nnx.State) else "")
        )
    nnx.pop(module, nnx.Intermediate)
    graphdef, state = nnx.split(module)
    modes = [
        getattr(part, mode)
        for _, part in nnx.iter_modules(module)
        for mode in _MODES
        if isinstance(getattr(part, mode, None), bool)
    ]
    return _Existing(graphdef, _arrays(state), bool(modes) and all(modes))


@dataclasses.dataclass(frozen=True)
class _Graph:
    """A module without its arrays: how to make it, its two modes, and which path holds what.

    ``shapes`` are those of params and state, where they depend on the inputs.
    """

    make: Callable[[nnx.Rngs], nnx.Module]
    train: Any
    eval: Any
    params: tuple[Path, ...]
    state: tuple[Path, ...]
    keys: Mapping[Path, tuple[int, ...]]
    counts: Mapping[Path, jax.ShapeDtypeStruct]
    takes_rngs: bool
    shapes: Mapping[str, tuple[int, ...]] | None = None


def _recorder(make: Callable[..., nnx.Module]) -> Callable[[Any], _Graph]:
    """A function that returns the graph of the module for given inputs.

    Where the module does not depend on its inputs, it is recorded at once, so that mistakes show
    early; otherwise once for each shape of inputs.
    """
    if not _needs_inputs(make):
        graph = _record(make)
        return lambda inputs: graph

    @functools.lru_cache(maxsize=64)
    def record(structure: Any, shapes: tuple[Any, ...]) -> _Graph:
        inputs = jax.tree.unflatten(structure, shapes)
        return _record(lambda rngs: make(rngs, inputs=inputs), fixed=False)

    def graph_for(inputs: Any) -> _Graph:
        leaves, structure = jax.tree.flatten(inputs)
        return record(structure, tuple(map(_shape_only, leaves)))

    return graph_for


def _needs_inputs(make: Callable[..., nnx.Module]) -> bool:
    """Whether ``make`` has a parameter ``inputs`` that nothing fills."""
    function: Any = make
    args, keywords = (), {}
    if isinstance(function, functools.partial):
        function, args, keywords = function.func, function.args, function.keywords
    if isinstance(function, type):  # the metaclass of modules hides the signature of the class
        function, args = function.__init__, (None, *args)
    signature = inspect.signature(function)
    parameter = signature.parameters.get("inputs")
    filled = signature.bind_partial(*args, **keywords).arguments
    return parameter is not None and parameter.default is parameter.empty and "inputs" not in filled


def _shape_only(x: Any) -> Any:
    return described(x) if hasattr(x, "shape") and hasattr(x, "dtype") else x


def _record(make: Callable[[nnx.Rngs], nnx.Module], *, fixed: bool = True) -> _Graph:
    found: dict[str, Any] = {}

    def build() -> dict[str, Array]:
        module = make(nnx.Rngs(0))
        if not isinstance(module, nnx.Module):
            raise TypeError(
                f"make must return a flax.nnx.Module, got {type(module).__name__}: "
                "a Linen module goes through from_linen"
            )
        for _, part in nnx.iter_modules(module):
            for mode in _MODES:
                if getattr(part, mode, False) is None:  # not decided: training, then
                    setattr(part, mode, False)
        _check_attributes(module)
        nnx.pop(module, nnx.Intermediate)  # what it sowed if it ran already
        found["train"], leaves = nnx.split(module)
        found["kinds"] = {path: type(leaf) for path, leaf in nnx.to_flat_state(leaves)}
        found["call"] = inspect.signature(type(module).__call__).parameters
        _mode(module, True, None)  # raises for parameters that look like a mode or a key
        module.eval()
        found["eval"] = nnx.graphdef(module)
        return {_name(path): x for path, x in _arrays(leaves).items()}

    try:
        shapes = jax.eval_shape(build)
    except errors.TraceContextError as error:
        raise TypeError(
            "make must build a new module in each call, got one that exists already: to use that "
            "one, with its values, pass it itself: from_nnx(module)"
        ) from error
    try:
        hash(found["eval"])
    except TypeError as error:
        if "Tracer" in str(error):  # anything else without a hash, a list for example, may stay
            raise TypeError(
                "make must not set a bare array as an attribute of a module: "
                "wrap it as nnx.Variable(array), or as nnx.data(array)"
            ) from error
    kinds = found["kinds"]

    def of(kind: type) -> tuple[Path, ...]:
        return tuple(path for path, k in kinds.items() if issubclass(k, kind))

    params, passing = of(nnx.Param), (*of(nnx.RngState), *of(nnx.Intermediate))
    return _Graph(
        make=make,
        train=found["train"],
        eval=found["eval"],
        params=params,
        state=tuple(path for path in kinds if path not in (*params, *passing)),
        keys={path: shapes[_name(path)].shape for path in of(nnx.RngKey)},
        counts={path: shapes[_name(path)] for path in of(nnx.RngCount)},
        takes_rngs="rngs" in found["call"],
        shapes=None if fixed else {path: x.shape for path, x in shapes.items()},
    )


def _check_attributes(module: nnx.Module) -> None:
    """Raises TypeError for an attribute that looks like the mode, and that no mode changes."""
    for path, part in nnx.iter_modules(module):
        for name in (*TRAINING, *EVALUATION):
            value = vars(part).get(name)
            if name not in _MODES and isinstance(value, bool):
                raise TypeError(
                    f"{type(part).__name__} ({_name(path) or 'the module itself'}) has the "
                    f"attribute {name}={value}, which would be the same in training and in "
                    f"evaluation: give __call__ a parameter {name!r}, or call the attribute "
                    "'deterministic', which train() and eval() set"
                )


def _streams(graph: _Graph, key: Array | None) -> dict[Path, Array]:
    """Every random stream, restarted from its own key.

    Keys are given by position, not by name: modules that were each built with ``Rngs(0)`` have
    streams of the same name.
    """
    streams = {}
    for i, (path, shape) in enumerate(graph.keys.items()):
        own = _stream_key(key, i)
        streams[path] = jax.random.split(own, shape) if shape else own
    for path, count in graph.counts.items():
        streams[path] = jnp.zeros(count.shape, count.dtype)
    return streams


def _stream_key(key: Array | None, i: int) -> Array:
    if key is None:
        return jax.random.key(i)  # evaluation may draw: a recurrent cell does for its initial carry
    own = jax.random.fold_in(key, i)
    if jnp.issubdtype(own.dtype, jax.dtypes.prng_key):
        return own
    return jax.random.wrap_key_data(own)  # NNX takes only keys of the new style


def _arrays(state: Any) -> dict[Path, Array]:
    return {
        path: leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
        for path, leaf in nnx.to_flat_state(state)
    }


def _nested(arrays: Mapping[Path, Array], paths: tuple[Path, ...]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path in paths:
        *parents, last = map(str, path)
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = arrays[path]
    return tree


def _flat(
    tree: Any,
    paths: tuple[Path, ...],
    argument: str,
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> dict[Path, Array]:
    if isinstance(tree, nnx.State):
        passing = nnx.RngState, nnx.Intermediate
        kept = [(path, x) for path, x in nnx.to_flat_state(tree) if not isinstance(x, passing)]
        given = {_name(path): x for path, x in _arrays(nnx.from_flat_state(kept)).items()}
    else:
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        given = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    wanted = {_name(path): path for path in paths}
    if given.keys() != wanted.keys():
        raise ValueError(
            f"{argument} must be those of this module: missing {sorted(wanted - given.keys())}, "
            f"unknown {sorted(given.keys() - wanted.keys())}"
        )
    for name, x in given.items():
        if shapes is not None and x.shape != shapes[name]:
            raise ValueError(
                f"{argument} must have the shapes of this module for these inputs: {name!r} has "
                f"{x.shape}, and needs {shapes[name]}: were they made for other inputs?"
            )
    return {path: given[name] for name, path in wanted.items()}


def _by_path(sown: Any) -> dict[str, Any]:
    found = {}
    for path, leaf in nnx.to_flat_state(sown):
        where = path[:-1] if path[-1] == "__call__" else path
        if where:  # the module's own result is the logits
            found.update(by_call(_name(where), leaf.get_value()))
    return found


def _name(path: Path) -> str:
    return "/".join(map(str, path))

"""Layouts: which device holds which part of a training run.

A ``Layout`` is a mesh of devices, the axes of it that cut the rows of a batch, and a rule that says
how parameters are cut. Nothing else in a program changes: XLA sees arrays that live on all devices,
and puts in the collectives (GSPMD). A mean over the batch is the mean over the whole batch,
whatever a term does with it.

A rule is a function ``(path, shape, axes) -> PartitionSpec`` of a parameter's path
(``"hidden/0/kernel"``), its shape, and the sizes of the mesh's axes by name. The same rule serves
whatever mirrors the parameters, gradients, the optimizer's state and averages, and teachers.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from distill_jax.teachers import Teacher
from distill_jax.types import Batch, Outputs, Params, State

Rule = Callable[[str, tuple[int, ...], Mapping[str, int]], PartitionSpec]
"""``(path, shape, sizes of the mesh's axes) -> PartitionSpec``; hashed with the layout."""

Axes = str | tuple[str, ...]

_FIELDS = ("params", "state", "term_params", "term_state", "average", "opt_state")


def replicated(path: str, shape: tuple[int, ...], axes: Mapping[str, int]) -> PartitionSpec:
    """The rule by which every device holds all of it."""
    del path, shape, axes
    return PartitionSpec()


@dataclasses.dataclass(frozen=True)
class by_size:  # noqa: N801 (used as a function)
    """The rule that cuts whatever is large, as fully sharded data parallelism (FSDP) does.

    The longest axis of an array that the mesh's axis divides is cut (the first of equals); an array
    with fewer than ``least`` elements is left whole, since gathering it costs more than holding it.

    Args:
      axis: Axis of the mesh, or several that cut together.
      least: Elements from which on an array is cut.

    Example:
      >>> rule = by_size("data", least=100)
      >>> tuple(rule("kernel", (16, 32), {"data": 8})), tuple(rule("bias", (32,), {"data": 8}))
      ((None, 'data'), ())
    """

    axis: Axes
    least: int = 2**16

    @property
    def axes(self) -> frozenset[str]:
        return frozenset(_names(self.axis))

    def __call__(self, path: str, shape: tuple[int, ...], axes: Mapping[str, int]) -> PartitionSpec:
        size = math.prod(axes[name] for name in _names(self.axis))
        fitting = [n for n in shape if n > 0 and n % size == 0]
        if not fitting or math.prod(shape) < self.least:
            return PartitionSpec()
        return PartitionSpec(*[None] * shape.index(max(fitting)), self.axis)


@dataclasses.dataclass(frozen=True, init=False)
class by_name:  # noqa: N801 (used as a function)
    """The rule that cuts parameters as their names say.

    A pattern is a regular expression for whole names at the end of a path: ``"kernel"`` matches
    ``hidden/0/kernel`` and not ``old_kernel``, ``r"hidden/\\d+/kernel"`` every hidden kernel, and
    ``"encoder/.*"`` all below ``encoder``. The first pattern that matches counts.

    Args:
      specs: Patterns with what they ask for.
      otherwise: The rule for the rest.

    Example:
      >>> from jax.sharding import PartitionSpec as P
      >>> rule = by_name({r"hidden/\\d+/kernel": P(None, "model"), "head/kernel": P("model")})
      >>> tuple(rule("hidden/0/kernel", (16, 32), {"model": 2}))
      (None, 'model')
    """

    specs: tuple[tuple[str, PartitionSpec], ...]
    otherwise: Rule

    def __init__(self, specs: Mapping[str, PartitionSpec], otherwise: Rule = replicated):
        for pattern, spec in specs.items():
            if not isinstance(spec, PartitionSpec):
                raise TypeError(
                    f"specs[{pattern!r}] must be a PartitionSpec, got {type(spec).__name__}: write "
                    'PartitionSpec(None, "model") to cut the second axis'
                )
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"specs has {pattern!r}, which is no regular expression: {error}"
                ) from error
        if not callable(otherwise):
            raise TypeError(f"otherwise must be a rule, got {type(otherwise).__name__}")
        object.__setattr__(self, "specs", tuple(specs.items()))
        object.__setattr__(self, "otherwise", otherwise)

    @property
    def axes(self) -> frozenset[str]:
        own = {name for _, spec in self.specs for entry in spec for name in _names(entry)}
        return frozenset(own) | _axes_of(self.otherwise)

    def __call__(self, path: str, shape: tuple[int, ...], axes: Mapping[str, int]) -> PartitionSpec:
        for pattern, spec in self.specs:
            if _matches(pattern, path):
                return spec
        return self.otherwise(path, shape, axes)

    def unmatched(self, paths: Sequence[str]) -> list[str]:
        """Patterns that match none of the paths."""
        own = [p for p, _ in self.specs if not any(_matches(p, path) for path in paths)]
        return own + getattr(self.otherwise, "unmatched", lambda paths: [])(paths)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh of devices, and what of a run lies where. Equal layouts share compiled programs.

    The usual ones are made by :func:`data_parallel` and :func:`fsdp`; with a mesh of one's own::

        mesh = jax.make_mesh((8, 4), ("data", "model"))
        Layout(mesh, params=by_name({"kernel": PartitionSpec(None, "model")}))

    Args:
      mesh: Devices. Its axes are made ``Auto``: XLA decides on what lies between.
      batch: The axes that cut the rows of a batch.
      params: The rule for parameters. ``replicated``, :class:`by_size`, :class:`by_name`, or any
        function ``(path, shape, axes) -> PartitionSpec`` that has a hash.

    Raises:
      ValueError: if the mesh has no such axis.
    """

    mesh: Mesh
    _: dataclasses.KW_ONLY
    batch: Axes = "data"
    params: Rule = replicated

    def __post_init__(self) -> None:
        if not isinstance(self.mesh, Mesh):
            raise TypeError(
                f"mesh must be a jax.sharding.Mesh, got {type(self.mesh).__name__}: make one with "
                'jax.make_mesh((8,), ("data",))'
            )
        names = self.mesh.axis_names
        auto = Mesh(self.mesh.devices, names, axis_types=(AxisType.Auto,) * len(names))
        object.__setattr__(self, "mesh", auto)
        batch = self.batch if isinstance(self.batch, str) else tuple(self.batch)
        object.__setattr__(self, "batch", batch)
        if not callable(self.params):
            raise TypeError(
                f"params must be a rule (path, shape, axes) -> PartitionSpec, got "
                f"{type(self.params).__name__}: see replicated, by_size and by_name"
            )
        for who, used in (("batch", _names(batch)), ("params", _axes_of(self.params))):
            if absent := sorted(set(used) - set(names)):
                raise ValueError(
                    f"{who} names the axes {absent}, which the mesh does not have: its axes are "
                    f"{list(names)}"
                )

    @property
    def axes(self) -> dict[str, int]:
        """The sizes of the mesh's axes, by name."""
        return dict(self.mesh.shape)

    @property
    def parts(self) -> int:
        """Into how many parts the rows of a batch are cut."""
        return math.prod(self.axes[name] for name in _names(self.batch))

    @property
    def processes(self) -> int:
        """How many processes have devices of the mesh."""
        return len({device.process_index for device in self.mesh.devices.flat})

    def check(self, rows: int, *, microbatches: int = 1) -> None:
        """Raises ValueError if a batch of so many rows, of all processes, cannot be cut evenly.

        Args:
          rows: Rows of a batch.
          microbatches: Pieces that a batch is computed in, one after another; each is cut.
        """
        unit = self.parts * microbatches
        if rows % unit == 0 and rows > 0:
            return
        by = f"the {self.parts} devices of {self.batch!r}"
        if microbatches > 1:
            by = f"{microbatches} microbatches times {by}"
        near = sorted({max(rows // unit, 1) * unit, (rows // unit + 1) * unit})
        raise ValueError(
            f"a batch of {rows} rows cannot be divided evenly by {by}: take "
            f"{' or '.join(map(str, near))} rows, or fill batches up with rows that a column "
            "'where' leaves out"
        )

    def check_params(self, *trees: PyTree) -> None:
        """Raises ValueError if the rule does not fit parameters, or names some that are not there.

        Args:
          *trees: All that the rule is for: the student's parameters, terms' parameters, teachers.
        """
        paths = []
        for tree in trees:
            self.shardings(tree)
            paths += [path for path, _, _ in _leaves(tree)]
        unmatched = getattr(self.params, "unmatched", lambda paths: [])(paths)
        if unmatched:
            raise ValueError(
                f"params has patterns that match nothing: {unmatched}; the paths are "
                f"{sorted(set(paths))}"
            )

    def shardings(self, tree: PyTree) -> PyTree:
        """The same tree with a ``NamedSharding`` for every leaf.

        Args:
          tree: Parameters, a ``TrainState``, teachers: arrays, or shapes of them. Scalars and keys
            are on every device. In an optimizer's state, what has not a parameter's shape (row
            and column statistics) is replicated where the rule does not fit.

        Raises:
          ValueError: if a spec does not fit the shape.
        """
        specs = [NamedSharding(self.mesh, self._spec(*leaf)) for leaf in _leaves(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), specs)

    def _spec(self, path: str, lenient: bool, leaf: Any) -> PartitionSpec:
        shape = np.shape(leaf)
        if not shape or _is_key(leaf):
            return PartitionSpec()
        spec = self.params(path, shape, self.axes)
        if not isinstance(spec, PartitionSpec):
            raise TypeError(
                f"params must give a PartitionSpec, got {type(spec).__name__} for {path!r}"
            )
        wrong = self._misfit(path, shape, spec)
        if wrong and not lenient:
            raise ValueError(wrong)
        return PartitionSpec() if wrong else spec

    def _misfit(self, path: str, shape: tuple[int, ...], spec: PartitionSpec) -> str | None:
        if len(spec) > len(shape):
            return f"{path!r} of shape {shape} cannot be cut as {spec}: it has fewer axes"
        for i, entry in enumerate(spec):
            if absent := [name for name in _names(entry) if name not in self.axes]:
                return (
                    f"{path!r} cannot be cut as {spec}: the mesh has no axis {absent}, its axes "
                    f"are {list(self.axes)}"
                )
            size = math.prod(self.axes[name] for name in _names(entry))
            if shape[i] % size:
                return (
                    f"{path!r} of shape {shape} cannot be cut as {spec}: axis {i} of length "
                    f"{shape[i]} is not a multiple of {size}, the devices of {entry!r}"
                )
        return None

    def constrain(self, tree: PyTree) -> PyTree:
        """Inside ``jit``: the same values, laid out as :meth:`shardings` says."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def constrain_batch(self, batch: Any) -> Any:
        """Inside ``jit``: the same columns, ``[rows, ...]``, with rows cut over the devices."""
        sharding = self._rows()
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), batch)

    def place(self, tree: PyTree) -> PyTree:
        """Device arrays laid out as :meth:`shardings` says.

        With several processes each holds all of the tree, and keeps its part. What is laid out so
        already may be given back as it is, not as a copy.
        """
        return jax.tree.map(_put, tree, self.shardings(tree))

    def place_teachers(self, teachers: Mapping[str, Teacher]) -> dict[str, Teacher]:
        """Teachers laid out as :meth:`shardings` says, and gathered anew wherever they are used.

        In a scan over steps or microbatches a teacher is the same each time. XLA would gather all
        of it once, before the scan, and every device would hold the whole teacher.
        """
        placed = self.place(dict(teachers))
        return {
            name: dataclasses.replace(teacher, predict=_GatheredAnew(teacher.predict))
            for name, teacher in placed.items()
        }

    def whole_batch(self, batch: Batch) -> dict[str, jax.Array]:
        """A batch that every process holds all rows of, as arrays over all devices.

        Raises:
          ValueError: if the rows cannot be cut evenly.
        """
        self.check(_length(batch))
        return {name: _put(x, self._rows()) for name, x in batch.items()}

    def local_batch(self, batch: Batch) -> dict[str, jax.Array]:
        """A batch of which every process holds rows of its own, as arrays over all devices.

        The rows of the processes follow each other in the order of the mesh's devices. Processes
        that hold the same part, where parameters are cut over processes, must give the same rows.
        Of several processes, some may have filled up a short batch, which adds a column ``where``:
        all of them give one then, since they must run the same program.

        Raises:
          ValueError: if the rows cannot be cut evenly.
        """
        sharding, rows = self._rows(), _length(batch)
        held = sharding.addressable_devices_indices_map((self.parts,)).values()
        own = len({index[0].start for index in held if index is not None})
        if rows == 0 or rows % own:
            near = sorted({max(rows // own, 1) * own, (rows // own + 1) * own})
            raise ValueError(
                f"process {jax.process_index()} gave {rows} rows, which its {own} devices of "
                f"{self.batch!r} cannot divide evenly: give {' or '.join(map(str, near))}"
            )
        whole = rows // own * self.parts
        if self.processes > 1:
            batch = {"where": np.ones(rows, bool), **batch}
        return {
            name: jax.make_array_from_process_local_data(
                sharding, _on_host(x), (whole, *np.shape(x)[1:])
            )
            for name, x in batch.items()
        }

    def bytes_a_device(self, tree: PyTree) -> int:
        """Bytes of a tree on each device; shapes (``jax.eval_shape``) are enough.

        Example:
          >>> layout = data_parallel(jax.devices()[:1])
          >>> layout.bytes_a_device({"kernel": jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)})
          2097152
        """
        shardings = jax.tree.leaves(self.shardings(tree))
        return sum(
            math.prod(sharding.shard_shape(np.shape(x))) * jnp.result_type(x).itemsize
            for x, sharding in zip(jax.tree.leaves(tree), shardings, strict=True)
        )

    def _rows(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(self.batch))


@dataclasses.dataclass(frozen=True)
class _GatheredAnew:
    predict: Callable[..., Outputs]

    def __call__(self, params: Params, state: State, inputs: Any) -> Outputs:
        # Tied to the inputs, which are other ones each time, params are no constants of a loop.
        params, inputs = jax.lax.optimization_barrier((params, inputs))
        return self.predict(params, state, inputs)


def data_parallel(devices: Sequence[Any] | None = None) -> Layout:
    """Rows cut over all devices, parameters on each of them.

    For models that fit one device; a step costs one all-reduce of the gradients.

    Args:
      devices: All devices of all processes by default.

    Example:
      >>> data_parallel(jax.devices()[:1]).axes
      {'data': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    return Layout(_mesh(devices, data=len(devices)))


def fsdp(
    devices: Sequence[Any] | None = None, *, shards: int | None = None, least: int = 2**16
) -> Layout:
    """Rows and large parameters cut over all devices (fully sharded data parallelism).

    Each device holds its part of parameters, gradients and optimizer state; weights are gathered
    layer by layer where they are used, and gradients summed and scattered.

    Args:
      devices: All devices of all processes by default.
      shards: How many devices share one copy of the parameters; all by default. With fewer, each
        group of so many neighbours holds a copy (hybrid sharding): take those that have the fast
        links between them, the devices of one host for example.
      least: Elements from which on an array is cut; see :class:`by_size`.

    Raises:
      ValueError: if ``shards`` does not divide the number of devices.

    Example:
      >>> fsdp(jax.devices()[:1]).params
      by_size(axis='data', least=65536)
    """
    devices = jax.devices() if devices is None else list(devices)
    if shards is None:
        return Layout(_mesh(devices, data=len(devices)), params=by_size("data", least))
    if shards < 1 or len(devices) % shards:
        raise ValueError(f"shards must divide the {len(devices)} devices, got {shards}")
    mesh = _mesh(devices, replicas=len(devices) // shards, shards=shards)
    return Layout(mesh, batch=("replicas", "shards"), params=by_size("shards", least))


def _mesh(devices: Sequence[Any], **axes: int) -> Mesh:
    """Devices in an order in which neighbours have links."""
    kinds = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=kinds, devices=devices)


def _names(entry: Any) -> tuple[str, ...]:
    """The axes of one entry of a spec."""
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _axes_of(rule: Any) -> frozenset[str]:
    return getattr(rule, "axes", frozenset())


def _matches(pattern: str, path: str) -> bool:
    return re.search(rf"(?:^|/)(?:{pattern})$", path) is not None


def _leaves(tree: PyTree) -> Iterator[tuple[str, bool, Any]]:
    """Each leaf's path as rules see it, whether it may defy the rule, and the leaf."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        fields = [getattr(entry, "name", None) for entry in path]
        field = next((name for name in fields if name in _FIELDS), None)
        own = path[fields.index(field) + 1 :] if field else path
        if field == "average":
            own = own[1:]  # a pair of params and state
        elif field == "opt_state":
            # The optimizer saw {"student": params, "terms": parameters of terms}.
            roots = [getattr(entry, "key", None) in ("student", "terms") for entry in own]
            own = own[roots.index(True) + 1 :] if True in roots else own
        yield jax.tree_util.keystr(own, simple=True, separator="/"), field == "opt_state", leaf


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def _length(batch: Batch) -> int:
    lengths = {name: np.shape(x)[:1] for name, x in batch.items()}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        raise ValueError(f"batch must have columns with one leading axis, got lengths {lengths}")
    return next(iter(lengths.values()))[0]


def _on_host(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        # Over the devices of several processes already: laid out anew by all of them together.
        return x if x.sharding == sharding else jax.jit(lambda x: x, out_shardings=sharding)(x)
    if _is_key(x):
        data = _put(jax.random.key_data(x), sharding)
        return jax.jit(jax.random.wrap_key_data, static_argnames="impl")(
            data, impl=str(jax.random.key_impl(x))
        )
    host = _on_host(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

"""Layouts: which device holds which part of a training run.

A ``Layout`` is a mesh of devices, the axes of it that shard the rows of a batch, and a rule for how
parameters are sharded. Nothing else in a program changes: XLA sees arrays that live on all devices,
and inserts the collectives (GSPMD). A mean over the batch is the mean over the whole batch,
whatever a term does with it.

A rule (see ``sharding``) also serves what mirrors the parameters: gradients, the optimizer's state,
moving averages, and teachers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from distill_jax import _batches, _checks, _fingerprints
from distill_jax._arguments import checked
from distill_jax.teachers import Teacher
from distill_jax.training.devices.sharding import (
    Axes,
    Rule,
    axes_of,
    axis_names,
    replicate,
    shard_by_size,
)
from distill_jax.types import Batch, Outputs, Params, State

_FIELDS = ("params", "state", "term_params", "term_state", "average", "opt_state")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh of devices, and which of them holds what. Equal layouts share compiled programs.

    The usual ones are made by :func:`data_parallel` and :func:`fsdp`; with your own mesh::

        mesh = jax.make_mesh((8, 4), ("data", "model"))
        Layout(mesh, params=shard_by_name({"kernel": PartitionSpec(None, "model")}))

    Args:
      mesh: Devices. Its axes are made ``Auto``: XLA decides how intermediate arrays are sharded.
      batch: The axes over which the rows of a batch are sharded.
      params: The rule for parameters: ``replicate``, :class:`shard_by_size`,
        :class:`shard_by_name`, or any hashable ``(path, shape, axes) -> PartitionSpec``.

    Raises:
      ValueError: if the mesh has no such axis.
    """

    mesh: Mesh
    _: dataclasses.KW_ONLY
    batch: Axes = "data"
    params: Rule = replicate

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
                f"{type(self.params).__name__}: see replicate, shard_by_size and shard_by_name"
            )
        for who, used in (("batch", axis_names(batch)), ("params", axes_of(self.params))):
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
        """The number of parts into which the rows of a batch are sharded."""
        return math.prod(self.axes[name] for name in axis_names(self.batch))

    @property
    def processes(self) -> int:
        """The number of processes that have devices of the mesh."""
        return len({device.process_index for device in self.mesh.devices.flat})

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def check(self, rows: int, *, microbatches: int = 1) -> None:
        """Raises ValueError if a batch cannot be sharded evenly.

        Args:
          rows: Rows of a batch, those of all processes together.
          microbatches: Pieces in which a batch is computed, one after another; each is sharded.
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
            f"{' or '.join(map(str, near))} rows, or pad batches with rows whose column 'where' is "
            "False"
        )

    def check_params(self, *trees: PyTree) -> None:
        """Raises ValueError if the rule does not fit parameters, or has patterns that match none.

        Args:
          *trees: Everything that the rule is for: parameters of the student and of terms, teachers.
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
          tree: Parameters, a ``TrainState``, teachers: arrays, or shapes of them. Scalars and
            random keys are replicated. In an optimizer's state, arrays without a parameter's shape
            (row and column statistics) are replicated if the rule does not fit them.

        Raises:
          ValueError: if a spec does not fit the shape.
        """
        specs = [NamedSharding(self.mesh, self._spec(*leaf)) for leaf in _leaves(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), specs)

    def _spec(self, path: str, lenient: bool, leaf: Any) -> PartitionSpec:
        shape = np.shape(leaf)
        if not shape or _fingerprints.is_key(leaf):
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
            return f"{path!r} of shape {shape} cannot be sharded as {spec}: it has fewer axes"
        for i, entry in enumerate(spec):
            if absent := [name for name in axis_names(entry) if name not in self.axes]:
                return (
                    f"{path!r} cannot be sharded as {spec}: the mesh has no axis {absent}, its "
                    f"axes are {list(self.axes)}"
                )
            size = math.prod(self.axes[name] for name in axis_names(entry))
            if shape[i] % size:
                return (
                    f"{path!r} of shape {shape} cannot be sharded as {spec}: axis {i} of length "
                    f"{shape[i]} is not a multiple of {size}, the devices of {entry!r}"
                )
        return None

    def constrain(self, tree: PyTree) -> PyTree:
        """Inside ``jit``: the same values, laid out as :meth:`shardings` says."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def constrain_batch(self, batch: Any) -> Any:
        """Inside ``jit``: the same columns, ``[rows, ...]``, with rows sharded over the devices."""
        sharding = self._rows()
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), batch)

    def place(self, tree: PyTree) -> PyTree:
        """Device arrays laid out as :meth:`shardings` says.

        With several processes, each holds all of the tree and keeps its part. An array that is laid
        out so already may be returned as it is, without a copy.
        """
        return jax.tree.map(_put, tree, self.shardings(tree))

    def place_whole(self, tree: PyTree) -> PyTree:
        """Device arrays of which every device holds the whole."""
        return jax.tree.map(lambda x: _put(x, self.replicated), tree)

    def place_teachers(self, teachers: Mapping[str, Teacher]) -> dict[str, Teacher]:
        """Teachers laid out as :meth:`shardings` says, gathered again in each step that uses them.

        In a scan over steps or microbatches a teacher is the same each time: XLA would gather it
        once, before the scan, and every device would hold the whole teacher.
        """
        placed = self.place(dict(teachers))
        return {
            name: dataclasses.replace(teacher, predict=_GatheredAnew(teacher.predict))
            for name, teacher in placed.items()
        }

    def whole_batch(self, batch: Batch) -> dict[str, Any]:
        """A batch of which every process holds all rows, as arrays over all devices.

        Raises:
          ValueError: if the rows cannot be sharded evenly.
        """
        self.check(_length(batch))
        return _batches.mapped(lambda x: _put(x, self._rows()), batch)

    def local_batch(self, batch: Batch) -> dict[str, Any]:
        """A batch of which every process holds its own rows, as arrays over all devices.

        The rows of the processes follow each other in the order of the mesh's devices. Processes
        that hold the same part, if parameters are sharded over processes, must give the same rows.
        Several processes always add a column ``where``: some of them may have padded a short batch,
        and all must run the same program.

        Raises:
          ValueError: if the rows cannot be sharded evenly.
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

        def put(x: Any) -> jax.Array:
            shape = (whole, *np.shape(x)[1:])
            return jax.make_array_from_process_local_data(sharding, _on_host(x), shape)

        return _batches.mapped(put, batch)

    def bytes_per_device(self, tree: PyTree) -> int:
        """Bytes of a tree on each device, from arrays or from their shapes (``jax.eval_shape``).

        Example:
          >>> layout = data_parallel(jax.devices()[:1])
          >>> layout.bytes_per_device({"kernel": jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)})
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
        # The barrier ties params to the inputs, which change, so that no loop takes them out.
        params, inputs = jax.lax.optimization_barrier((params, inputs))
        return self.predict(params, state, inputs)


@checked
def data_parallel(devices: Sequence[Any] | None = None) -> Layout:
    """Rows sharded over all devices, parameters replicated.

    For models that fit on one device; a step costs one all-reduce of the gradients.

    Args:
      devices: All devices of all processes by default.

    Example:
      >>> data_parallel(jax.devices()[:1]).axes
      {'data': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    return Layout(_mesh(devices, data=len(devices)))


@checked
def fsdp(
    devices: Sequence[Any] | None = None, *, shards: int | None = None, least: int = 2**16
) -> Layout:
    """Rows and large parameters sharded over all devices (fully sharded data parallelism).

    Each device holds its part of parameters, gradients and optimizer state; weights are gathered
    layer by layer as they are used, and gradients are reduced and scattered.

    Args:
      devices: All devices of all processes by default.
      shards: How many devices share one copy of the parameters; all by default. With fewer, each
        group of that many neighbours holds a copy (hybrid sharding): choose groups with fast links
        between them, for example the devices of one host.
      least: The smallest number of elements of an array that is sharded.

    Raises:
      ValueError: if ``shards`` does not divide the number of devices.

    Example:
      >>> fsdp(jax.devices()[:1]).params
      shard_by_size(axis='data', least=65536)
    """
    devices = jax.devices() if devices is None else list(devices)
    least = _checks.count("least", least, least=0)
    if shards is None:
        return Layout(_mesh(devices, data=len(devices)), params=shard_by_size("data", least))
    if len(devices) % _checks.count("shards", shards):
        raise ValueError(f"shards must divide the {len(devices)} devices, got {shards}")
    mesh = _mesh(devices, replicas=len(devices) // shards, shards=shards)
    return Layout(mesh, batch=("replicas", "shards"), params=shard_by_size("shards", least))


def _mesh(devices: Sequence[Any], **axes: int) -> Mesh:
    """Devices in an order in which neighbours are linked."""
    if not devices or not all(isinstance(device, jax.Device) for device in devices):
        kinds = sorted({type(device).__name__ for device in devices})
        raise TypeError(
            f"devices must be one device or more, such as jax.devices(), got {kinds or 'none'}"
        )
    kinds = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=kinds, devices=devices)


def _leaves(tree: PyTree) -> Iterator[tuple[str, bool, Any]]:
    """Each leaf's path as rules see it, whether the rule may fail to fit it, and the leaf."""
    parts = (getattr(tree, name, None) for name in ("params", "term_params"))
    params = {path for part in parts for path, _ in jax.tree_util.tree_leaves_with_path(part)}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        fields = [getattr(entry, "name", None) for entry in path]
        field = next((name for name in fields if name in _FIELDS), None)
        own = path[fields.index(field) + 1 :] if field else path
        if field == "average":
            own = own[1:]  # a pair of params and state
        elif field == "opt_state":
            # What mirrors a parameter ends in its path.
            ends = (own[i:] for i in range(len(own) + 1))
            own = next((end for end in ends if end in params), own)
        yield jax.tree_util.keystr(own, simple=True, separator="/"), field == "opt_state", leaf


def _length(batch: Batch) -> int:
    lengths = {name: np.shape(x)[:1] for name, x in _batches.arrays(batch).items()}
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
        # Already over the devices of several processes, which lay it out together.
        return x if x.sharding == sharding else jax.jit(lambda x: x, out_shardings=sharding)(x)
    if _fingerprints.is_key(x):
        data = _put(jax.random.key_data(x), sharding)
        return jax.jit(jax.random.wrap_key_data, static_argnames="impl")(
            data, impl=str(jax.random.key_impl(x))
        )
    host = _on_host(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

"""What ``test_layout.py`` checks on eight devices, all in one process of its own.

``python -m tests.training.devices.on_eight_devices FILE FOLDER`` runs every ``check_*`` and writes
what went wrong, by name, as JSON.
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
import shutil
import sys
import time
import traceback

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

from distill_jax import models, teachers
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import (
    Checkpoints,
    EarlyStopping,
    Layout,
    Recipe,
    TrainState,
    data_parallel,
    fit,
    fsdp,
    load,
    replicate,
    shard_by_name,
    shard_by_size,
    warmed_up,
)
from distill_jax.training.step._compiled import steps_of
from tests.training import sequences

KEY = jax.random.key(0)
FOLDER = pathlib.Path()


def rows(n=48, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n, 16)).astype(np.float32)
    # Rows that do not count lie in some places only, and would be seen: some devices have none.
    where = (np.arange(n) % 16 < 11) | (np.arange(n) > 40)
    inputs[~where] = np.nan
    return {"inputs": inputs, "labels": np.arange(n) % 3, "where": where}


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(32)(x)
        return nn.Dense(3)(nn.relu(nn.BatchNorm(not train, momentum=0.9)(x)))


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(16, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.tanh(self.hidden(x))))


def spread(student_logits, teacher_logits, *, where):
    """Couples the rows of a batch: each is compared by what it is above the batch's mean."""
    count = jnp.maximum(where.sum(), 1)

    def centred(x):
        x = jnp.where(where[:, None], x, 0.0)
        return x - x.sum(0, keepdims=True) / count

    return jnp.square(centred(student_logits) - centred(teacher_logits)).mean(-1)


STUDENT = models.mlp([32, 32], 3)
TEACHERS = {
    "big": teachers.teacher(
        models.mlp([64], 3), *models.mlp([64], 3).init(jax.random.key(5), jnp.zeros((1, 16)))
    )
}
OBJECTIVE = weighted_sum(
    term("labels", 0.5, cross_entropy), term("big", 0.5, soft_targets, temperature=2.0)
)
COUPLED = weighted_sum(
    term("labels", 0.5, cross_entropy),
    term("big", 0.5, spread, coupled=True),
)
# A norm over all parameters, and a momentum that mirrors them.
SGD = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.2, momentum=0.9))
ADAM = optax.adam(1e-2, eps=1e-2)


def trained(layout, model=STUDENT, objective=OBJECTIVE, optimizer=SGD, data=None, **options):
    data = rows() if data is None else data
    if not callable(data):
        options.setdefault("batch_size", 32)
    options = {"key": KEY, "teachers": TEACHERS, "steps": 5, "steps_per_call": 5, **options}
    return fit(model, objective, optimizer, data, layout=layout, **options)


@functools.cache
def alone():
    return trained(None)


def close(got, want, rtol=1e-5):
    (got, losses), (want, expected) = got, want
    np.testing.assert_allclose(losses["loss"], expected["loss"], rtol=rtol)
    for name in ("params", "state", "average", "term_params"):
        pairs = zip(
            jax.tree_util.tree_leaves_with_path(getattr(got, name)),
            jax.tree.leaves(getattr(want, name)),
            strict=True,
        )
        for (path, x), y in pairs:
            np.testing.assert_allclose(
                x, y, rtol=rtol, atol=1e-6, err_msg=name + jax.tree_util.keystr(path)
            )


def part(x):
    """The shape of what one device holds."""
    return x.addressable_shards[0].data.shape


def check_data_parallel_equals_one_device():
    got = trained(data_parallel())
    close(got, alone())
    kernel = got[0].params["hidden"]["0"]["kernel"]
    assert len(kernel.sharding.device_set) == 8 and part(kernel) == kernel.shape


def check_sharded_parameters_equal_one_device():
    got = trained(fsdp(least=96))
    close(got, alone())
    trees = (got[0].params, got[0].opt_state[1][0].trace)
    for tree in trees:  # the momentum lies as its parameters do
        assert part(tree["hidden"]["0"]["kernel"]) == (16, 4)
        assert part(tree["hidden"]["1"]["kernel"]) == (4, 32)
        assert part(tree["hidden"]["1"]["bias"]) == (32,)
        assert part(tree["head"]["kernel"]) == (4, 3)


def check_hybrid_sharding_equals_one_device():
    got = trained(fsdp(shards=4, least=96))
    close(got, alone())
    assert part(got[0].params["hidden"]["1"]["kernel"]) == (8, 32)


def tensor_parallel():
    """Layers cut in turn by columns and by rows, as Megatron does."""
    rule = shard_by_name({"hidden/0/kernel": P(None, "model"), "hidden/1/kernel": P("model")})
    return Layout(jax.make_mesh((4, 2), ("data", "model")), params=rule)


def check_rules_by_name_equal_one_device():
    got = trained(tensor_parallel())
    close(got, alone())
    assert part(got[0].params["hidden"]["0"]["kernel"]) == (16, 16)
    assert part(got[0].params["hidden"]["1"]["kernel"]) == (16, 32)
    assert part(got[0].params["head"]["kernel"]) == (32, 3)


def check_coupled_terms_and_batch_norm_see_the_whole_batch():
    linen = models.from_linen(Normed())
    how = {"model": linen, "objective": COUPLED, "optimizer": ADAM, "average_decay": 0.9}
    want = trained(None, **how)
    for layout in (data_parallel(), fsdp(least=96)):
        got = trained(layout, **how)
        close(got, want)
    assert part(got[0].average[0]["Dense_0"]["kernel"]) == (16, 4)
    assert part(got[0].opt_state[0].mu["Dense_0"]["kernel"]) == (16, 4)


def check_streams_dropout_and_microbatches_equal_one_device():
    student = models.from_nnx(Dropped)

    def data(start):
        return ({n: x[:32] for n, x in rows(seed=i).items()} for i in range(start, 5))

    how = {"model": student, "data": data, "microbatches": 2, "steps_per_call": 1}
    got = trained(fsdp(least=96), **how)
    close(got, trained(None, **how))
    assert part(got[0].params["hidden"]["kernel"]) == (16, 8)


def check_a_stage_from_given_weights_trains_a_part_and_is_read():
    first = alone()[0]
    figures = {"evaluate": lambda state: {"step": state.step}, "evaluate_every": 1}
    how = {
        "start": (first.params, first.state),
        "trainable": {"hidden": {"0": False, "1": True}, "head": True},
        "average_decay": warmed_up(0.9),
        "steps": 3,
        "steps_per_call": 1,
        "stop": EarlyStopping("step", better="lower", patience=1, restore_best=True),
        **figures,
    }
    want = trained(None, **how)
    layout, kept = fsdp(least=96), Checkpoints(FOLDER / "stage", best="step", better="lower")
    for checkpoints in (None, kept):  # the best state from memory, and read again
        got = trained(layout, **how, checkpoints=checkpoints)
        close(got, want)
        assert int(got[0].step) == 1 and len(got[1]["loss"]) == 2
        np.testing.assert_array_equal(
            got[0].params["hidden"]["0"]["kernel"], first.params["hidden"]["0"]["kernel"]
        )
        assert part(got[0].params["hidden"]["0"]["kernel"]) == (16, 4)
        momentum = got[0].opt_state[1][0].trace["hidden"]
        assert part(momentum["1"]["kernel"]) == (4, 32) and not jax.tree.leaves(momentum["0"])
    found = load(FOLDER / "stage", STUDENT, jnp.zeros((1, 16)), step="best")
    for name in ("params", "average"):
        pair = getattr(found, name), getattr(got[0], name)
        jax.tree.map(np.testing.assert_array_equal, *pair)


def check_checkpoints_of_eight_devices_serve_four_and_one():
    folder = FOLDER / "eight"
    trained(fsdp(least=96), steps=3, steps_per_call=1, checkpoints=Checkpoints(folder, every=3))
    smaller = {"four": fsdp(jax.devices()[:4], least=96), "one": None}
    for name, layout in smaller.items():
        shutil.copytree(folder, FOLDER / name)
        checkpoints = Checkpoints(FOLDER / name, every=3)
        state, history = trained(layout, steps=5, steps_per_call=1, checkpoints=checkpoints)
        assert len(history["loss"]) == 2, "it did not resume"
        whole, losses = alone()
        close((state, history), (whole, {"loss": losses["loss"][3:]}))
        kernel = state.params["hidden"]["1"]["kernel"]
        assert part(kernel) == ((8, 32) if layout else (32, 32))


@functools.cache
def compiled(layout, *, width=128, rows=4096, steps=1):
    """The program of ``fit``'s steps, and how many bytes of arguments a device holds."""
    model, big = models.mlp([width] * 2, 10), models.mlp([2 * width], 10)
    shape = jax.ShapeDtypeStruct
    spec = jax.sharding.NamedSharding(layout.mesh, P(layout.batch))
    batch = {
        "inputs": shape((rows, width), "float32", sharding=spec),
        "labels": shape((rows,), "int32", sharding=spec),
    }
    row = {name: shape((1, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    variables = big.init(KEY, jnp.zeros((1, width)))
    taught = layout.place_teachers({"big": teachers.teacher(big, *variables)})
    recipe = Recipe(model, ADAM)
    state = jax.eval_shape(recipe.init, OBJECTIVE, row, taught, KEY)
    held = layout.bytes_per_device((state, taught))
    state = jax.tree.map(
        lambda x, s: shape(x.shape, x.dtype, sharding=s), state, layout.shardings(state)
    )
    program = steps_of.lower(recipe, 1, layout, state, [batch] * steps, OBJECTIVE, taught, None)
    return program.compile(), held + steps * rows // layout.parts * 4 * (width + 1)


def collectives(program):
    """Kind, result shapes and computation of each collective."""
    found, computation = [], ""
    for line in program.as_text().splitlines():
        if line and line[0] not in " }":
            computation = line.split()[0]
        kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
        match = re.search(rf"= (.*?) ({kinds})(?:-start)?\(", line)
        if match:
            shapes = re.findall(r"[a-z]+\d+\[([\d,]*)\]", match[1])
            sizes = [tuple(int(n) for n in shape.split(",") if n) for shape in shapes]
            found.append((match[2], sizes, computation))
    return found


WEIGHTS = {(128, 128), (128, 256)}  # of the student and of the teacher, those that are large


def check_data_parallel_sums_gradients_and_nothing_else():
    program, held = compiled(data_parallel())
    found = collectives(program)
    assert {kind for kind, _, _ in found} == {"all-reduce"}, found
    summed = sum(int(np.prod(shape)) for _, shapes, _ in found for shape in shapes)
    parameters = 2 * (128 * 128 + 128) + 128 * 10 + 10
    assert parameters <= summed <= parameters + 8, found  # and some sums of losses
    assert abs(program.memory_analysis().argument_size_in_bytes - held) < 4096


def check_sharded_weights_are_gathered_and_activations_are_not():
    whole, _ = compiled(data_parallel())
    program, held = compiled(fsdp(least=4096))
    found = collectives(program)
    assert {kind for kind, _, _ in found} <= {"all-reduce", "all-gather", "reduce-scatter"}, found
    gathered = [shape for kind, shapes, _ in found if kind == "all-gather" for shape in shapes]
    assert WEIGHTS <= set(gathered), found
    assert all(shape in WEIGHTS for shape in gathered), found
    arguments, before = (p.memory_analysis().argument_size_in_bytes for p in (program, whole))
    assert abs(arguments - held) < 4096
    inputs = 4096 // 8 * 4 * 129
    assert (arguments - inputs) < (before - inputs) / 5  # an eighth, and small arrays whole


def check_a_teacher_is_not_gathered_before_a_scan():
    program, _ = compiled(fsdp(least=4096), steps=2)
    places = [
        computation
        for kind, shapes, computation in collectives(program)
        if kind == "all-gather" and (128, 256) in shapes
    ]
    assert places and "ENTRY" not in places, places


def check_leaves_of_every_kind():
    layout = fsdp(least=4)
    tree = {
        "kernel": np.arange(64.0, dtype=np.float32).reshape(8, 8),
        "scalar": 3,
        "keys": jax.random.split(KEY, 8),
        "odd": np.zeros((3, 5), np.float32),
        "none": None,
        "integers": np.arange(16),
    }
    placed = layout.place(tree)
    specs = {name: tuple(x.spec) for name, x in layout.shardings(tree).items() if x is not None}
    cut, whole = ("data",), ()
    assert specs == {"kernel": cut, "scalar": whole, "keys": whole, "odd": whole, "integers": cut}
    assert placed["none"] is None and placed["integers"].dtype == jnp.int32
    np.testing.assert_array_equal(placed["kernel"], tree["kernel"])
    assert (jax.random.key_data(placed["keys"]) == jax.random.key_data(tree["keys"])).all()
    inside = jax.jit(layout.constrain)(tree)
    assert inside["kernel"].sharding.is_equivalent_to(placed["kernel"].sharding, 2)
    assert part(inside["kernel"]) == (1, 8)
    assert layout.bytes_per_device({"kernel": tree["kernel"]}) == 32


def check_statistics_without_a_parameters_shape():
    """Adafactor keeps row and column statistics, to which a rule by name does not apply."""
    model = models.mlp([256], 3)
    layout = Layout(
        jax.make_mesh((4, 2), ("data", "model")),
        params=shard_by_name({"hidden/0/kernel": P("data", "model")}),
    )
    recipe = Recipe(model, optax.adafactor(1e-3, min_dim_size_to_factor=16))
    row = {name: x[:1] for name, x in rows().items()}
    state = jax.eval_shape(recipe.init, OBJECTIVE, row, TEACHERS, KEY)
    found = layout.shardings(state)
    assert isinstance(found, TrainState)
    assert tuple(found.params["hidden"]["0"]["kernel"].spec) == ("data", "model")
    (rms,) = [x for x in jax.tree.leaves(found.opt_state, is_leaf=factored) if factored(x)]
    assert not any(x.spec for x in jax.tree.leaves((rms.v_row, rms.v_col)))


def factored(x):
    return hasattr(x, "v_row")


def check_batches():
    layout, batch = data_parallel(), rows(16)
    for put in (layout.whole_batch, layout.local_batch):
        columns = put(batch)
        assert part(columns["inputs"]) == (2, 16) and part(columns["where"]) == (2,)
        np.testing.assert_array_equal(columns["inputs"], batch["inputs"])
        assert columns["labels"].dtype == jnp.int32
    assert part(jax.jit(layout.constrain_batch)(np.zeros((16, 2)))) == (2, 2)
    layout.check(16, microbatches=2)


def says(kind, *words, call):
    try:
        call()
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{missing} not in: {error}"
    else:
        raise AssertionError(f"no {kind.__name__} with {words}")


def check_errors():
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    params = {"hidden": {"0": {"kernel": np.zeros((6, 16)), "bias": np.zeros(16)}}}
    path = "hidden/0/kernel"

    def by(spec):
        return Layout(mesh, params=shard_by_name({path: spec}))

    says(ValueError, "batch", "'rows'", "'data', 'model'", call=lambda: Layout(mesh, batch="rows"))
    unknown = shard_by_name({"a": P("data")}, otherwise=shard_by_size("x"))
    says(
        ValueError, "params", "'x'", "'data', 'model'",
        call=lambda: Layout(mesh, params=unknown),
    )  # fmt: skip
    for call in (lambda: by(P("data")).shardings(params), lambda: by(P("data")).place(params)):
        says(ValueError, path, "(6, 16)", "axis 0", "multiple of 4", "'data'", call=call)
    says(ValueError, path, "fewer axes", call=lambda: by(P(None, None, "data")).shardings(params))
    says(
        ValueError, "no axis ['x']", "'data', 'model'",
        call=lambda: Layout(mesh, params=lambda *_: P("x")).shardings(params),
    )  # fmt: skip
    says(
        TypeError, "PartitionSpec", "str", path,
        call=lambda: Layout(mesh, params=lambda p, s, a: "data" if p == path else P()).shardings(
            params
        ),
    )  # fmt: skip
    rule = shard_by_name(
        {"kernel": P(), "head/kernel": P()}, otherwise=shard_by_name({"biases": P()})
    )
    says(
        ValueError, "'head/kernel', 'biases'", "'hidden/0/bias', 'hidden/0/kernel'",
        call=lambda: Layout(mesh, params=rule).check_params(params),
    )  # fmt: skip
    Layout(mesh, params=rule).check_params(params, {"head": {"kernel": 0, "biases": 0}})
    layout = data_parallel()
    says(ValueError, "20 rows", "8 devices", "16 or 24", call=lambda: layout.check(20))
    says(ValueError, "4 rows", "take 8 rows", call=lambda: layout.check(4))
    says(
        ValueError, "24 rows", "2 microbatches times the 8 devices", "16 or 32",
        call=lambda: layout.check(24, microbatches=2),
    )  # fmt: skip
    says(ValueError, "20 rows", call=lambda: layout.whole_batch(rows(20)))
    says(ValueError, "process 0 gave 20 rows", "8", call=lambda: layout.local_batch(rows(20)))
    says(
        ValueError, "one leading axis", "'b': (3,)",
        call=lambda: layout.whole_batch({"a": np.zeros(8), "b": np.zeros(3)}),
    )  # fmt: skip
    says(ValueError, "shards must divide the 8 devices, got 3", call=lambda: fsdp(shards=3))
    says(ValueError, "32 rows", "5", call=lambda: trained(data_parallel(jax.devices()[:5])))
    says(ValueError, "match nothing", call=lambda: trained(Layout(mesh, params=rule)))


def check_layouts_compare_by_content():
    assert fsdp() == fsdp() and hash(fsdp()) == hash(fsdp())
    assert fsdp() != fsdp(least=3) and fsdp() != data_parallel()
    assert tensor_parallel() == tensor_parallel()
    assert hash(tensor_parallel()) == hash(tensor_parallel())
    assert data_parallel().params is replicate
    explicit = jax.make_mesh(
        (8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()
    )
    assert Layout(explicit) == data_parallel()
    before = len(steps_of._kept)
    trained(fsdp(least=96))
    trained(fsdp(least=96))
    assert len(steps_of._kept) <= before + 1


def check_masks_weights_and_trees_of_inputs():
    data = sequences.columns()
    for coupled in (False, True):
        got, want = (
            fit(
                sequences.STUDENT, sequences.objective(coupled), SGD, data, key=KEY, steps=2,
                batch_size=sequences.ROWS, microbatches=2, layout=layout,
            )
            for layout in (data_parallel(), None)
        )  # fmt: skip
        close(got, want)


CHECKS = {name: x for name, x in list(globals().items()) if name.startswith("check_")}


def main(file, folder):
    global FOLDER
    FOLDER = pathlib.Path(folder)
    assert jax.device_count() == 8, jax.devices()
    jax.config.update("jax_numpy_rank_promotion", "raise")
    wrong = {}
    for name, check in CHECKS.items():
        began = time.process_time()
        try:
            check()
            print(f"{time.process_time() - began:5.1f} s of CPU  {name}")
        except Exception:
            wrong[name] = traceback.format_exc()
    pathlib.Path(file).write_text(json.dumps(wrong))


if __name__ == "__main__":
    main(*sys.argv[1:])

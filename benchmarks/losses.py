"""Divergences with their gradient: time and memory, compared with Optax and PyTorch.

    python benchmarks/losses.py            # three to four minutes on two CPU cores
    python benchmarks/losses.py --quick    # tiny shapes, without torch.compile
    python benchmarks/losses.py --all      # every divergence at every shape

Each case is the sum over rows and its gradient with respect to the student's logits, in float32.
Ours is the plain loss at small shapes and ``logits.total`` at large ones; "two devices" is
``total`` with the rows sharded over two host devices. All results are compared before anything is
timed. ``limit`` is the time to add the two inputs, which moves the same bytes without computing
anything.

PyTorch is installed by ``pip install 'distill_jax[bench]'``; without it only JAX is measured.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

# Before JAX is imported: XLA's CPU backend runs most of an elementwise program on one core per
# device, so two cores need two devices.
_FLAG = "--xla_force_host_platform_device_count"
if __name__ == "__main__" and _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=2".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from _timing import emit, first_calls, interleaved, times_faster  # noqa: E402

from distill_jax import losses, report  # noqa: E402
from distill_jax.logits import total  # noqa: E402

try:
    import torch
except ImportError:  # an extra
    torch = None

Spec = jax.sharding.PartitionSpec
SHAPES = [(256, 100), (4096, 1000), (2048, 32000)]
LARGE = 1_000_000  # number of logits from which ours is `total`
PEERS = ("torch eager", "torch.compile", "optax", "jax.numpy")
T = 4.0


def _log_softmax(s: Any, t: Any) -> tuple[Any, Any]:
    return jax.nn.log_softmax(s), jax.nn.log_softmax(t)


def _optax_kl(s: Any, t: Any) -> Any:
    return optax.losses.kl_divergence_with_log_targets(*_log_softmax(s, t)).sum()


def _jnp_mixture(s: Any, t: Any, alpha: float) -> Any:
    """KL of the teacher to ``alpha`` teacher + (1 - alpha) student, with Optax where possible."""
    log_q, log_p = _log_softmax(s, t)
    log_m = jnp.logaddexp(log_p + math.log(alpha), log_q + math.log1p(-alpha))
    return optax.losses.kl_divergence_with_log_targets(log_m, log_p).sum()


def _torch_log_softmax(s: Any, t: Any) -> tuple[Any, Any]:
    return s.log_softmax(-1), t.log_softmax(-1)


def _torch_kl(s: Any, t: Any) -> Any:
    log_q, log_p = _torch_log_softmax(s, t)
    return torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum")


def _torch_mixture(s: Any, t: Any, alpha: float) -> Any:
    log_q, log_p = _torch_log_softmax(s, t)
    log_m = torch.logaddexp(log_p + math.log(alpha), log_q + math.log1p(-alpha))
    return torch.nn.functional.kl_div(log_m, log_p, log_target=True, reduction="sum")


# By name: our loss with its options, the same sum with Optax, and the same sum with PyTorch.
CASES: dict[str, tuple[Callable, dict[str, float], Callable, Callable]] = {
    "soft_targets": (
        losses.soft_targets,
        {"temperature": T},
        lambda s, t: T * T * _optax_kl(s / T, t / T),
        lambda s, t: T * T * _torch_kl(s / T, t / T),
    ),
    "forward_kl": (losses.forward_kl, {}, _optax_kl, _torch_kl),
    "reverse_kl": (
        losses.reverse_kl,
        {},
        lambda s, t: _optax_kl(t, s),
        lambda s, t: _torch_kl(t, s),
    ),
    "symmetric_kl": (
        losses.symmetric_kl,
        {},
        lambda s, t: _optax_kl(s, t) + _optax_kl(t, s),
        lambda s, t: _torch_kl(s, t) + _torch_kl(t, s),
    ),
    "jensen_shannon": (
        losses.jensen_shannon,
        {"beta": 0.5},
        lambda s, t: 0.5 * (_jnp_mixture(s, t, 0.5) + _jnp_mixture(t, s, 0.5)),
        lambda s, t: 0.5 * (_torch_mixture(s, t, 0.5) + _torch_mixture(t, s, 0.5)),
    ),
    "skew_kl": (
        losses.skew_kl,
        {"alpha": 0.1},
        lambda s, t: _jnp_mixture(s, t, 0.1),
        lambda s, t: _torch_mixture(s, t, 0.1),
    ),
    "skew_reverse_kl": (
        losses.skew_reverse_kl,
        {"alpha": 0.1},
        lambda s, t: _jnp_mixture(t, s, 0.1),
        lambda s, t: _torch_mixture(t, s, 0.1),
    ),
    "total_variation": (
        losses.total_variation,
        {},
        lambda s, t: 0.5 * jnp.abs(jax.nn.softmax(t) - jax.nn.softmax(s)).sum(),
        lambda s, t: 0.5 * (t.softmax(-1) - s.softmax(-1)).abs().sum(),
    ),
    "alpha_beta": (
        losses.alpha_beta,
        {"alpha": 0.5, "beta": 0.5},
        lambda s, t: 2.0 * jnp.square(_half(jax.nn.log_softmax, jnp.exp, s, t)).sum(),
        lambda s, t: 2.0 * _half(lambda x: x.log_softmax(-1), torch.exp, s, t).square().sum(),
    ),
    "renyi": (
        losses.renyi,
        {"alpha": 0.5},
        lambda s, t: -2.0 * jax.nn.logsumexp(0.5 * sum(_log_softmax(s, t)), axis=-1).sum(),
        lambda s, t: -2.0 * (0.5 * sum(_torch_log_softmax(s, t))).logsumexp(-1).sum(),
    ),
    "squared_error": (
        losses.squared_error,
        {},
        lambda s, t: optax.losses.l2_loss(s, t).sum(),
        lambda s, t: 0.5 * (s - t).square().sum(),
    ),
}

# Optax does not have these: their peer is written with jax.numpy, for one value of alpha and beta,
# whereas ours takes any.
NOT_IN_OPTAX = ("total_variation", "alpha_beta", "renyi")


def _half(log_softmax: Callable, exp: Callable, s: Any, t: Any) -> Any:
    return exp(0.5 * log_softmax(t)) - exp(0.5 * log_softmax(s))


def measure(name: str, shape: tuple[int, int], seconds: float, compiled: bool) -> dict[str, Any]:
    """Compares, times and prints all ways to compute one loss at one shape."""
    loss, options, with_optax, with_torch = CASES[name]
    rng = np.random.default_rng(0)
    student, teacher = (3.0 * rng.standard_normal(shape, np.float32) for _ in range(2))
    arrays = jnp.asarray(student), jnp.asarray(teacher)

    def whole(s, t):
        return loss(s, t, **options).sum()

    def blocks(s, t):
        return total(loss, s, t, **options)[0]

    large = student.size >= LARGE
    jitted: dict[str, tuple[Callable, tuple]] = {
        "plain": (jax.jit(jax.value_and_grad(whole)), arrays),
        "total": (jax.jit(jax.value_and_grad(blocks)), arrays),
        _jax_peer(name): (jax.jit(jax.value_and_grad(with_optax)), arrays),
    }
    if len(jax.devices()) >= 2:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("batch",))
        sharded = jax.device_put(arrays, jax.sharding.NamedSharding(mesh, Spec("batch", None)))

        def split(s, t):
            value, gradient = jax.value_and_grad(blocks)(s, t)
            return jax.lax.psum(value, "batch"), gradient

        jitted["two devices"] = (
            jax.jit(
                jax.shard_map(
                    split, mesh=mesh, in_specs=Spec("batch"), out_specs=(Spec(), Spec("batch"))
                )
            ),
            sharded,
        )
    cases = {n: functools.partial(_ready, *case) for n, case in jitted.items()}
    cases |= _torch_cases(with_torch, student, teacher, compiled)
    add = jax.jit(lambda s, t: s + t)
    cases["limit"] = lambda: _ready(add, arrays)
    results, first = first_calls(cases)
    del results["limit"]
    _check(name, results)
    del results
    timed = interleaved(cases, seconds=seconds)
    # Bytes that the program needs besides its arguments and results, per device.
    memory = {
        n: f.lower(*a).compile().memory_analysis().temp_size_in_bytes
        for n, (f, a) in jitted.items()
    }
    row = f"{name} {shape[0]}x{shape[1]}"
    for case, times in timed.items():
        emit(
            name=row,
            case=case,
            median_ms=_ms(times["median"]),
            first_ms=_ms(first[case]),
            rounds=len(times["samples"]),
            temp_bytes=memory.get(case),
            shape=shape,
            dtype="float32",
            device=jax.devices()[0].device_kind,
            jax=jax.__version__,
        )
    return {"name": row, "route": "total" if large else "plain", "timed": timed, "memory": memory}


def _jax_peer(name: str) -> str:
    return "jax.numpy" if name in NOT_IN_OPTAX else "optax"


def _ready(function: Callable, arguments: tuple) -> Any:
    return jax.block_until_ready(function(*arguments))


def _torch_cases(loss: Callable, student: np.ndarray, teacher: np.ndarray, compiled: bool) -> dict:
    if torch is None:
        return {}
    s, t = torch.from_numpy(student.copy()).requires_grad_(), torch.from_numpy(teacher.copy())

    def call(function):
        value = function(s, t)
        return value.detach(), torch.autograd.grad(value, s)[0]

    cases = {"torch eager": lambda: call(loss)}
    if compiled:
        torch._dynamo.reset()  # otherwise shapes of earlier cases would make this one "dynamic"
        made = torch.compile(loss, dynamic=False)
        cases["torch.compile"] = lambda: call(made)
    return cases


def _check(name: str, results: dict[str, Any]) -> None:
    value, gradient = (np.asarray(x) for x in results["plain"])
    for case, result in results.items():
        other_value, other_gradient = (np.asarray(x) for x in result)
        np.testing.assert_allclose(other_value, value, rtol=1e-4, err_msg=f"{name}: {case}")
        np.testing.assert_allclose(
            other_gradient, gradient, rtol=2e-3, atol=2e-5, err_msg=f"{name}: {case}"
        )


def _ms(seconds: float) -> float:
    return float(f"{1e3 * seconds:.4g}")


def _rows(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the result file: ours by the route for that size, and on two devices."""
    rows = []
    for m in measured:
        ms = {case: _ms(times["median"]) for case, times in m["timed"].items()}
        peers = {p: ms[p] for p in PEERS if p in ms}
        for route, suffix in ((m["route"], ""), ("two devices", " two devices")):
            if route not in ms:
                continue
            ratios = {p: round(times_faster(m["timed"], route, p), 2) for p in peers}
            rows.append(
                {
                    "name": m["name"] + suffix,
                    "ours": ms[route],
                    "unit": "ms",
                    "better": "lower",
                    "peers": peers,
                    "limit": ms["limit"],
                    "route": route,
                    "times_faster": ratios,
                    "temp_megabytes": {n: round(b / 1e6, 3) for n, b in m["memory"].items()},
                }
            )
    return rows


def _goals(rows: list[dict[str, Any]]) -> None:
    by_name = {row["name"]: row for row in rows}
    goals: list[tuple[str, float, float]] = []  # description, value, minimum
    for shape in SHAPES:
        row = by_name.get(f"soft_targets {shape[0]}x{shape[1]}")
        if row and "torch.compile" in row["times_faster"]:
            goals.append((f"{row['name']}: torch.compile", row["times_faster"]["torch.compile"], 1))
    largest = f"soft_targets {SHAPES[-1][0]}x{SHAPES[-1][1]}"
    if largest in by_name:
        row, memory = by_name[largest], by_name[largest]["temp_megabytes"]
        two = by_name.get(f"{largest} two devices", row)["times_faster"]
        goals.append((f"{largest}: optax", row["times_faster"]["optax"], 3))
        goals.append((f"{largest}: memory of optax", memory["optax"] / memory[row["route"]], 2))
        if row is not two and "torch.compile" in two:
            goals.append((f"{largest} two devices: torch.compile", two["torch.compile"], 3))
            goals.append((f"{largest} two devices: optax", two["optax"], 3))
    for what, times, least in goals:
        verdict = "met" if times >= least else "NOT MET"
        print(f"goal {verdict}: {what}, {times:.2f} times ours; wanted {least} or more")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, no torch.compile")
    parser.add_argument("--all", action="store_true", help="every divergence at every shape")
    parser.add_argument("--only", nargs="+", choices=CASES, help="only these divergences")
    parser.add_argument("--out", type=pathlib.Path, help="result file")
    args = parser.parse_args(argv)
    here = pathlib.Path(__file__).parent / "results" / "losses.json"
    out = args.out or (None if args.quick or args.only else here)
    warnings.filterwarnings("ignore", module="torch")

    measured = []
    for shape in [(8, 10)] if args.quick else SHAPES:
        for name in args.only or CASES:
            headline = name == "soft_targets"
            if shape == SHAPES[-1] and not (headline or args.all):
                continue
            seconds = (
                0.01 if args.quick else (20 if shape == SHAPES[-1] else 8) if headline else 1.5
            )
            compiled = not args.quick and (headline or args.all)
            measured.append(measure(name, shape, seconds, compiled))
    rows = _rows(measured)
    report.show(
        [
            {
                "loss": row["name"],
                "route": row["route"],
                "ours": row["ours"],
                **row["peers"],
                "limit": row["limit"],
                "ours MB": row["temp_megabytes"][row["route"]],
                "peer MB": row["temp_megabytes"][_jax_peer(row["name"].split()[0])],
                **{f"/ {peer}": times for peer, times in row["times_faster"].items()},
            }
            for row in rows
        ],
        title="value and gradient, ms; temporary memory, MB per device; times faster than",
    )
    _goals(rows)
    command = " ".join(["python benchmarks/losses.py", *(sys.argv[1:] if argv is None else argv)])
    result = report.result_file(__file__, rows, command)
    if out is not None:
        report.save_json(out, result)
    return result


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    main()

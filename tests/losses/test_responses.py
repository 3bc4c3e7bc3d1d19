"""Cross-entropy: labels out of range, smoothing, targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import losses
from tests import laws

LOGITS = jnp.array([[1.0, -2.0, 0.5, 0.0], [0.0, 3.0, -1.0, 2.0]])
LABELS = jnp.array([2, 1])
traced = jax.jit(losses.cross_entropy)


@pytest.mark.quick
def test_equals_optax():
    want = optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS)
    laws.close(traced(LOGITS, LABELS), want, rtol=1e-6)
    smooth = optax.smooth_labels(jax.nn.one_hot(LABELS, 4), 0.2)
    want = optax.softmax_cross_entropy(LOGITS, smooth)
    got = losses.cross_entropy(LOGITS, LABELS, label_smoothing=0.2)
    laws.close(got, want, rtol=1e-6)
    laws.close(losses.cross_entropy_with_targets(LOGITS, smooth), want, rtol=1e-6)


def test_smoothing_leaves_forbidden_classes_out():
    padded = jnp.pad(LOGITS, ((0, 0), (0, 3)), constant_values=-jnp.inf)
    for smoothing in (0.1, 1.0):
        got = losses.cross_entropy(padded, LABELS, label_smoothing=smoothing)
        want = losses.cross_entropy(LOGITS, LABELS, label_smoothing=smoothing)
        laws.close(got, want, rtol=1e-6)


def test_a_forbidden_label_is_infinite_with_finite_gradients():
    def total(logits, smoothing):
        return losses.cross_entropy(logits, LABELS, label_smoothing=smoothing).sum()

    forbidden = LOGITS.at[0, 2].set(-jnp.inf)
    value, grads = jax.value_and_grad(total, (0, 1))(forbidden, jnp.float32(0.1))
    assert value == jnp.inf
    laws.finite(grads, "gradient")


def test_labels_out_of_range_are_nan_when_traced():
    got = traced(LOGITS, jnp.array([4, 1]))
    assert jnp.isnan(got[0]) and jnp.isfinite(got[1])
    assert jnp.isnan(traced(LOGITS, jnp.array([2, -1]))[1])
    rows = traced(LOGITS, jnp.array([-100, 1]), where=jnp.array([False, True]))
    assert rows[0] == 0 and jnp.isfinite(rows[1])


@pytest.mark.usefixtures("library_errors")
def test_labels_out_of_range_raise_when_known():
    with pytest.raises(ValueError, match="labels must lie in 0 ... 3 for 4 classes.*from 1 to 4"):
        losses.cross_entropy(LOGITS, jnp.array([4, 1]))
    with pytest.raises(ValueError, match="labels must lie in"):
        losses.cross_entropy(LOGITS, jnp.array([-1, 1]))


def test_targets_are_taken_as_they_are():
    targets = jnp.array([[0.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    got = losses.cross_entropy_with_targets(LOGITS, targets)
    want = traced(LOGITS, LABELS) * jnp.array([2.0, 1.0])
    laws.close(got, want, rtol=1e-6)
    # Its least value is the entropy, not 0.
    p = jax.nn.softmax(LOGITS)
    entropy = -(np.asarray(p) * np.log(np.asarray(p))).sum(-1)
    laws.close(losses.cross_entropy_with_targets(LOGITS, p), entropy, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "classes"), [(np.uint8, 256), (np.uint8, 300), (np.int8, 200)])
def test_labels_in_narrow_integers(dtype, classes):
    logits = jnp.linspace(-1.0, 1.0, 2 * classes).reshape(2, classes)
    labels = np.array([1, 100], dtype)
    np.testing.assert_array_equal(traced(logits, labels), traced(logits, labels.astype(np.int32)))

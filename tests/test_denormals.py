"""A training below the smallest normal number: gradual underflow as IEEE 754 has it, nothing flushed to zero."""

import numpy as np
import pytest

import fastopt as fo
from fastopt import reference

RULES = {
    "sgd": {}, "momentum": {"momentum": 0.875}, "nesterov": {"momentum": 0.875, "nesterov": True},
    "weight decay": {"weight_decay": 0.125}, "l2": {"l2": 0.125},
}  # fmt: skip
# numbers around 1 become denormal, and keep 20 bits
SCALES = {"float32": 2.0**-129, "float64": 2.0**-1054}
# in double precision normal, and a product of two of them vanishes beside 1 as it does there
REFERENCE_SCALE = 2.0**-129


def train(impl, dtype, scale, sizes, rule, n_threads=1):
    """The first layer's weights, all biases and the targets are scaled, and so is what becomes of them; 30 steps."""
    rng = np.random.default_rng(0)
    X, targets = rng.uniform(-0.5, 0.5, (40, sizes[0])), rng.uniform(-1, 1, (40, sizes[-1]))
    net = fo.MLP(sizes, activation="tanh", dtype=dtype, seed=1)
    net.weights[0][...] = (net.weights[0] * 2.0**-6).astype("f4") * np.dtype(dtype).type(scale)
    before = net.flat.copy()
    trainer = impl.Trainer(net, loss="mse", optimizer=fo.SGD(0.5, **RULES[rule]), batch_size=7, seed=3,
                           n_threads=n_threads)
    trainer.fit(X.astype("f4"), targets.astype("f4") * np.dtype(dtype).type(scale), epochs=5)
    return trainer.net, before


@pytest.mark.parametrize("sizes", [[9, 1], [20, 17], [20, 33, 17]], ids=str)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", SCALES)
def test_a_denormal_training_is_the_normal_one_scaled(dtype, rule, sizes):
    """Weights, gradients, velocities, activations and targets are denormal; the bits they have left are right."""
    scale = SCALES[dtype]
    net, before = train(fo, dtype, scale, sizes, rule)
    twin, _ = train(fo, dtype, scale, sizes, rule, n_threads=2)
    expected, _ = train(reference, "float64", REFERENCE_SCALE, sizes, rule)
    assert np.array_equal(net.flat, twin.flat)
    for i, (ours, theirs) in enumerate(zip([*net.weights, *net.biases], [*expected.weights, *expected.biases],
                                           strict=True)):
        if i == 1 and len(sizes) == 3:
            # the last layer's weights are not scaled, and their gradient, a product of two denormals, is 0
            np.testing.assert_allclose(ours, theirs, rtol=30 * np.finfo(dtype).eps)
            continue
        assert 0 < np.abs(ours).max() < np.finfo(dtype).tiny
        # half a unit of 2**-20 in each term of a score and of a sum over a batch, in each of 30 steps
        np.testing.assert_allclose(ours.astype("f8") / scale, theirs / REFERENCE_SCALE, rtol=0,
                                   atol=30 * (sizes[0] + 7) * 2.0**-21)
    assert np.mean(net.flat == before) < 0.6

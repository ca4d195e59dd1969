"""Dense layers: the products of a layer forward and backward."""

import numpy as np

from . import boundary
from ._dispatch import core


def dense_forward(x, weight, bias=None, *, activation=None, out=None, n_threads=None):
    r"""The outputs of a dense layer.

    .. math:: out = f(x W^\top + b)

    Each element is one chain of fused multiply-adds over the inputs in ascending order that starts from the bias,
    so a row gives the same bits alone or in any batch, on any number of threads.

    Parameters
    ----------
    x : array_like (n, in)
        Samples; converted to the dtype of `weight`.
    weight : array_like (out, in)
        float32 or float64 decides the dtype; anything else is taken as float64.
    bias : array_like (out,), optional
    activation : None, "relu", "sigmoid" or "tanh"
        f; None is the identity.
    out : ndarray (n, out), optional
        Where to write: C-contiguous, writable, of the dtype of `weight`, apart from the inputs.
    n_threads : int, optional
        Upper bound; changes no result.

    Returns
    -------
    ndarray (n, out)

    Raises
    ------
    ValueError
        A shape that does not fit, a value that is not finite (named by position), an empty array, an unusable `out`.
    TypeError
        Not real numbers.
    OverflowError
        An output too large for the dtype.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.dense_forward([[1.0, 2.0]], [[3.0, 4.0], [-5.0, 0.5]], [0.5, 1.0], activation="relu")
    array([[11.5,  0. ]])
    """
    code = boundary.activation(activation)
    w = boundary.data("weight", weight, (None, None))
    dtype, (n_out, n_in) = w.dtype, w.shape
    b = None if bias is None else boundary.data("bias", bias, (n_out,), dtype)
    samples = boundary.data("x", x, (None, n_in), dtype)
    n = len(samples)
    workers = boundary.threads(n_threads, n * n_in * n_out)
    if out is not None:
        boundary.output("out", out, (n, n_out), dtype, {"x": x, "weight": weight, "bias": bias})
    result = np.empty((n, n_out), dtype)
    core(dtype).call_dense_forward(samples, w, b, result, code, workers)
    boundary.check_overflow("out", result)
    if out is None:
        return result
    out[...] = result  # an error must not have touched it
    return out


def dense_backward(dout, x, weight, *, output=None, activation=None, n_threads=None):
    r"""The gradients of a dense layer.

    .. math::
        ds = dout \odot f'(s), \quad dx = ds\, W, \quad dW = ds^\top x, \quad db = \sum_i ds_i

    f' is taken from the layer's output: 1 where it is positive for ReLU (0 at the kink), a(1 - a) for the sigmoid,
    1 - a² for tanh. Sums over samples run in the samples' order (Goodfellow, Bengio & Courville 2016, § 6.5).

    Parameters
    ----------
    dout : array_like (n, out)
        Gradient at the layer's output.
    x : array_like (n, in)
    weight : array_like (out, in)
        Decides the dtype.
    output : array_like (n, out), optional
        What `dense_forward` returned; needed with an activation.
    activation : None, "relu", "sigmoid" or "tanh"
    n_threads : int, optional
        Upper bound; changes no result.

    Returns
    -------
    dx : ndarray (n, in)
    dweight : ndarray (out, in)
    dbias : ndarray (out,)

    Raises
    ------
    ValueError, TypeError, OverflowError
        As `dense_forward`; also an activation without `output`.

    Examples
    --------
    >>> import fastopt as fo
    >>> dx, dweight, dbias = fo.dense_backward([[1.0]], [[2.0, 3.0]], [[4.0, 5.0]])
    >>> dx, dweight, dbias
    (array([[4., 5.]]), array([[2., 3.]]), array([1.]))
    """
    code = boundary.activation(activation)
    w = boundary.data("weight", weight, (None, None))
    dtype, (n_out, n_in) = w.dtype, w.shape
    samples = boundary.data("x", x, (None, n_in), dtype)
    n = len(samples)
    dscores = boundary.data("dout", dout, (n, n_out), dtype)
    if activation is not None:
        if output is None:
            raise ValueError(f"output must be given with activation={activation!r}")
        outputs = boundary.data("output", output, (n, n_out), dtype)
    workers = boundary.threads(n_threads, 2 * n * n_in * n_out)
    if activation is not None:
        before = np.empty_like(dscores)
        core(dtype).call_activation_backward(code, outputs.reshape(-1), dscores.reshape(-1), before.reshape(-1))
        dscores = before
    dx, dweight, dbias = np.empty((n, n_in), dtype), np.empty((n_out, n_in), dtype), np.empty(n_out, dtype)
    core(dtype).call_dense_backward(dscores, samples, w, dx, dweight, dbias, False, workers)
    for name, gradient in (("dx", dx), ("dweight", dweight), ("dbias", dbias)):
        boundary.check_overflow(name, gradient)
    return dx, dweight, dbias

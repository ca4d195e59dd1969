"""A gradient checker: analytic gradients against central differences."""

import dataclasses

import numpy as np

from . import boundary


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """What `check_gradient` found.

    Attributes
    ----------
    ok : bool
        Whether every component agrees to `rtol`.
    max_error : float
        The largest relative error of a component.
    worst_index : tuple of int
        Where it is.
    analytic, numeric : ndarray
        The two gradients.
    """

    ok: bool
    max_error: float
    worst_index: tuple
    analytic: np.ndarray
    numeric: np.ndarray


def _evaluate(fun, x):
    result = fun(x.copy())
    try:
        value, gradient = result
    except (TypeError, ValueError):
        raise TypeError(f"fun must return (value, gradient), got {result!r}") from None
    return boundary.number("the value of fun", boundary.one_number("the value of fun", value)), gradient


def check_gradient(fun, x, *, step=None, rtol=1e-6):
    r"""Compares a gradient with central differences.

    .. math:: \nabla_i \approx \frac{f(x + h e_i) - f(x - h e_i)}{2h}

    The error of a component is \|analytic - numeric\| / max(\|analytic\|, \|numeric\|, floor): the floor, the rounding
    of f over the step divided by `rtol`, keeps components that differences cannot resolve from failing.

    Parameters
    ----------
    fun : callable
        fun(x) -> (value, gradient of the shape of x); it must not keep or change x.
    x : array_like, float32 or float64 (anything else becomes float64)
        The point; it is not changed.
    step : float > 0, optional
        h; by default the cube root of the dtype's epsilon times max(1, \|x_i\|).
    rtol : float > 0
        The relative error allowed.

    Returns
    -------
    GradientReport

    Raises
    ------
    ValueError, TypeError
        A point or gradient that is not finite, a gradient of another shape, a value that is not one number.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> fo.check_gradient(lambda x: (np.sum(x**3), 3 * x**2), np.array([1.0, -2.0])).ok
    True
    >>> fo.check_gradient(lambda x: (np.sum(x**3), 3.003 * x**2), np.array([1.0, -2.0])).ok
    False
    """
    original = boundary.real_array("x", x)
    point = boundary.data("x", x, original.shape)
    boundary.number("rtol", rtol, above=0.0)
    if step is not None:
        boundary.number("step", step, above=0.0)
    if not callable(fun):
        raise TypeError(f"fun must be callable, got {fun!r}")
    value, gradient = _evaluate(fun, point)
    analytic = boundary.data("the gradient of fun", gradient, point.shape).astype(np.float64)
    epsilon = np.finfo(point.dtype).eps
    numeric, rounding = np.empty(point.shape), np.empty(point.shape)
    for index in np.ndindex(point.shape):
        h = step or np.cbrt(epsilon) * max(1.0, abs(float(point[index])))
        ahead, behind = point.copy(), point.copy()
        ahead[index] += h
        behind[index] -= h
        above, below = _evaluate(fun, ahead)[0], _evaluate(fun, behind)[0]
        width = float(ahead[index]) - float(behind[index])
        if width <= 0:
            raise ValueError(f"step = {step!r} is lost in the rounding of x{list(index)} = {point[index]}")
        numeric[index] = (above - below) / width
        rounding[index] = 4 * epsilon * max(abs(above), abs(below), abs(value)) / width
    scale = np.maximum.reduce([np.abs(analytic), np.abs(numeric), rounding / rtol])
    scale = np.maximum(scale, np.finfo(float).tiny)
    error = np.abs(analytic - numeric) / scale
    worst = np.unravel_index(int(np.argmax(error)), error.shape)
    index = tuple(int(i) for i in worst)
    return GradientReport(bool(error[worst] <= rtol), float(error[worst]), index, analytic, numeric)

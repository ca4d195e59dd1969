"""What other libraries' penalties are here, and back: fastopt minimises mean loss + l1 * sum(|W|) + l2 * sum(W**2).

`loss_scale` is fastopt's loss by the other library's, where they differ by a factor: 2 for `mse` beside scikit-learn's
half squared errors, 1 for cross-entropy and hinge.
"""

from . import boundary


def _finite(**values):
    return {name: boundary.number(name, value, least=0.0) for name, value in values.items()}


def _numbers(**values):
    return [boundary.number(name, value, least=0.0) for name, value in values.items()]


def from_sklearn(alpha, l1_ratio=0.0, *, loss_scale=1.0):
    """Of scikit-learn's alpha * (l1_ratio * sum(|W|) + (1 - l1_ratio) / 2 * sum(W**2)): ElasticNet, SGDClassifier.

    Parameters
    ----------
    alpha : float >= 0
    l1_ratio : float in [0, 1]
    loss_scale : float > 0

    Returns
    -------
    dict
        `l1` and `l2`, for an optimizer.

    Raises
    ------
    ValueError, TypeError
        A number out of range.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.SGD(0.1, **fo.penalties.from_sklearn(0.5, 0.5, loss_scale=2)).l1
    0.5
    """
    alpha, l1_ratio = _numbers(alpha=alpha, l1_ratio=l1_ratio)
    if l1_ratio > 1:
        raise ValueError(f"l1_ratio must be at most 1, got {l1_ratio!r}")
    scale = boundary.number("loss_scale", loss_scale, above=0.0)
    return _finite(l1=scale * alpha * l1_ratio, l2=scale * alpha * (1 - l1_ratio) / 2)


def to_sklearn(l1, l2, *, loss_scale=1.0):
    """The reverse of `from_sklearn`: a dict of `alpha` and `l1_ratio`, which is 0 without penalties.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.penalties.to_sklearn(0.5, 0.25, loss_scale=2)
    {'alpha': 0.5, 'l1_ratio': 0.5}
    """
    l1, l2 = _numbers(l1=l1, l2=l2)
    scale = boundary.number("loss_scale", loss_scale, above=0.0)
    total = l1 + 2 * l2
    return _finite(alpha=total / scale, l1_ratio=l1 / total if total > 0 else 0.0)


def from_keras(l1=0.0, l2=0.0, *, loss_scale=1.0):
    """Of Keras's regularizers l1 * sum(|W|) + l2 * sum(W**2): a dict of `l1` and `l2`.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.penalties.from_keras(l1=0.25)
    {'l1': 0.25, 'l2': 0.0}
    """
    l1, l2 = _numbers(l1=l1, l2=l2)
    scale = boundary.number("loss_scale", loss_scale, above=0.0)
    return _finite(l1=scale * l1, l2=scale * l2)


def to_keras(l1=0.0, l2=0.0, *, loss_scale=1.0):
    """The reverse of `from_keras`.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.penalties.to_keras(l2=0.5, loss_scale=2)
    {'l1': 0.0, 'l2': 0.25}
    """
    return from_keras(l1, l2, loss_scale=1 / boundary.number("loss_scale", loss_scale, above=0.0))


def from_liblinear(C, n_samples, penalty="l2", *, loss_scale=1.0):
    """Of LIBLINEAR's sum(W**2) / 2 + C * sum(loss), or sum(|W|) + C * sum(loss): a dict of `l1` and `l2`.

    Parameters
    ----------
    C : float > 0
    n_samples : int
    penalty : {"l2", "l1"}
    loss_scale : float > 0

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.penalties.from_liblinear(2.0, 100)
    {'l1': 0.0, 'l2': 0.0025}
    """
    boundary.choice("penalty", penalty, ("l1", "l2"))
    weight = boundary.number("loss_scale", loss_scale, above=0.0) / (
        boundary.number("C", C, above=0.0) * boundary.integer("n_samples", n_samples, 1))
    return _finite(l1=weight if penalty == "l1" else 0.0, l2=weight / 2 if penalty == "l2" else 0.0)


def to_liblinear(l1, l2, n_samples, *, loss_scale=1.0):
    """The reverse of `from_liblinear`: a dict of `C` and `penalty`. Exactly one of l1 and l2 must be above 0.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.penalties.to_liblinear(0.0, 0.0025, 100)
    {'C': 2.0, 'penalty': 'l2'}
    """
    l1, l2 = _numbers(l1=l1, l2=l2)
    if (l1 > 0) == (l2 > 0):
        raise ValueError(f"LIBLINEAR has one penalty: exactly one of l1 and l2 must be above 0, got {l1!r} and {l2!r}")
    scale = boundary.number("loss_scale", loss_scale, above=0.0)
    n_samples = boundary.integer("n_samples", n_samples, 1)
    return {"C": scale / ((l1 + 2 * l2) * n_samples), "penalty": "l1" if l1 > 0 else "l2"}

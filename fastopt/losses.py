"""Losses: each returns the loss and its gradient, computed in one pass.

All share these rules. With l_i the loss of sample i and w_i its weight (1 unless `sample_weight` is given),
``reduction="mean"`` is sum(w l) / sum(w), ``"sum"`` is sum(w l), both Python floats with the gradient of that
number; ``"none"`` returns the (n,) losses and each sample's own gradient, without weights. float32 scores give
float32 gradients, anything else float64. A value that is not finite, a label or target outside its range, a shape
that does not fit or an empty array is a ValueError naming the position; what is not a real number is a TypeError;
a loss too large for the dtype is an OverflowError.
"""

import math

import numpy as np

from . import boundary
from ._dispatch import core

REDUCTIONS = ("mean", "sum", "none")


def _loss(loss, scores_name, scores, y_name, y, weight, reduction, option=0.0, class_weight=None):
    boundary.choice("reduction", reduction, REDUCTIONS)
    s, labels, targets, w = boundary.loss_inputs(loss, scores_name, scores, y_name, y, weight, class_weight)
    if loss == "binary_cross_entropy":
        targets = boundary.smoothed(targets, option)
    n, dtype, kernels = len(s), s.dtype, core(s.dtype)
    total = n if w is None else kernels.call_weighted_sum(w, None)
    if reduction == "mean":
        factor = np.full(n, 1 / n, dtype) if w is None else (w.astype(np.float64) / total).astype(dtype)
    else:
        factor = w if reduction == "sum" else None
    losses, dscores = np.empty(n, dtype), np.empty_like(s)
    kernels.call_loss(kernels.LOSSES[loss], s, labels, targets, factor, losses, dscores, option)
    if not kernels.call_all_finite(losses):
        raise boundary.explain_loss(loss, scores_name, scores, dtype)
    gradient = dscores.reshape(np.shape(scores))
    if reduction == "none":
        return losses, gradient
    value = kernels.call_weighted_sum(losses, w)
    if reduction == "mean":
        # a sum that overflows although its terms do not: both are taken 2**64 times smaller
        value = value / total if math.isfinite(value) else _small_sum(losses, w) / (total * 2.0**-64)
    if not math.isfinite(value):
        raise boundary.explain_loss(loss, scores_name, scores, dtype)
    return value, gradient


def _small_sum(losses, weight):
    kernels = core("float64")
    weight = None if weight is None else weight.astype(np.float64)
    return kernels.call_weighted_sum(losses.astype(np.float64) * 2.0**-64, weight)


def softmax_cross_entropy(scores, y, *, sample_weight=None, class_weight=None, label_smoothing=0.0, reduction="mean"):
    r"""The cross-entropy of the softmax of the scores, natural logarithm.

    .. math::
        l_i = \log \sum_j e^{s_{ij}} - \sum_j t_{ij} s_{ij}, \qquad
        \partial l_i / \partial s_{ij} = p_{ij} - t_{ij}, \quad p_i = \mathrm{softmax}(s_i)

    with :math:`t_{ij} = (1 - \epsilon) [j = y_i] + \epsilon / K` (Goodfellow, Bengio & Courville 2016, § 6.2.2.3;
    smoothing: Szegedy et al. 2016).

    Parameters
    ----------
    scores : array_like (n, K)
        Logits.
    y : array_like (n,)
        Integer labels 0 .. K-1.
    sample_weight : array_like (n,), optional
        Not negative, not all zero.
    class_weight : array_like (K,), optional
        Multiplies the weight of the samples of each class; not negative.
    label_smoothing : float
        The share ε in [0, 1] of the target that is spread over all classes.
    reduction : "mean", "sum" or "none"

    Returns
    -------
    loss : float, or ndarray (n,)
    dscores : ndarray (n, K)

    Raises
    ------
    ValueError, TypeError, OverflowError
        See the module.

    Examples
    --------
    >>> import fastopt as fo
    >>> loss, dscores = fo.softmax_cross_entropy([[-3.44, 1.16, 3.91]], [2])
    >>> round(loss, 4), dscores.round(4)
    (0.0626, array([[ 0.0006,  0.0601, -0.0607]]))
    """
    smoothing = boundary.label_smoothing(label_smoothing)
    return _loss("softmax_cross_entropy", "scores", scores, "y", y, sample_weight, reduction, smoothing, class_weight)


def hinge(scores, y, *, sample_weight=None, class_weight=None, reduction="mean"):
    r"""The hinge loss with margin 1, multiclass (Weston & Watkins 1999) or binary.

    .. math::
        l_i = \sum_{j \ne y_i} \max(0, s_{ij} - s_{iy_i} + 1), \qquad \text{or} \quad l_i = \max(0, 1 - y_i s_i)

    The subgradient is 0 where a margin is met exactly.

    Parameters
    ----------
    scores : array_like (n, K), or (n,) or (n, 1) for the binary form
    y : array_like (n,)
        Integer labels 0 .. K-1; -1 and 1 for the binary form.
    sample_weight : array_like (n,), optional
        Not negative, not all zero.
    class_weight : array_like (K,), optional
        Multiplies the weight of the samples of each class (for the binary form two, of -1 and 1); not negative.
    reduction : "mean", "sum" or "none"

    Returns
    -------
    loss : float, or ndarray (n,)
    dscores : ndarray
        Of the shape of `scores`.

    Raises
    ------
    ValueError, TypeError, OverflowError
        See the module.

    Examples
    --------
    >>> import fastopt as fo
    >>> loss, dscores = fo.hinge([[3.76, -1.20, -3.81]], [1])
    >>> round(loss, 2), dscores
    (5.96, array([[ 1., -1.,  0.]]))
    """
    return _loss("hinge", "scores", scores, "y", y, sample_weight, reduction, class_weight=class_weight)


def squared_hinge(scores, y, *, sample_weight=None, class_weight=None, reduction="mean"):
    r"""The squared hinge loss with margin 1, multiclass or binary.

    .. math::
        l_i = \sum_{j \ne y_i} \max(0, s_{ij} - s_{iy_i} + 1)^2, \qquad \text{or} \quad l_i = \max(0, 1 - y_i s_i)^2

    Source: Tang 2013, Deep learning using linear support vector machines.

    Parameters
    ----------
    scores : array_like (n, K), or (n,) or (n, 1) for the binary form
    y : array_like (n,)
        Integer labels 0 .. K-1; -1 and 1 for the binary form.
    sample_weight : array_like (n,), optional
        Not negative, not all zero.
    class_weight : array_like (K,), optional
        Multiplies the weight of the samples of each class (for the binary form two, of -1 and 1); not negative.
    reduction : "mean", "sum" or "none"

    Returns
    -------
    loss : float, or ndarray (n,)
    dscores : ndarray
        Of the shape of `scores`.

    Raises
    ------
    ValueError, TypeError, OverflowError
        See the module.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.squared_hinge([0.5, 1.0], [1, -1])
    (2.125, array([-0.5,  2. ]))
    """
    return _loss("squared_hinge", "scores", scores, "y", y, sample_weight, reduction, class_weight=class_weight)


def binary_cross_entropy(scores, y, *, sample_weight=None, label_smoothing=0.0, reduction="mean"):
    r"""The cross-entropy of a sigmoid, from logits.

    .. math::
        l_i = \frac1m \sum_j \log(1 + e^{s_{ij}}) - y_{ij} s_{ij}, \qquad
        \partial l_i / \partial s_{ij} = (\sigma(s_{ij}) - y_{ij}) / m

    with y (1 - ε) + ε / 2 in the place of y where there is label smoothing; computed as
    |s| (y or, for s >= 0, 1 - y) + log(1 + e^-|s|), where no large terms cancel.

    Parameters
    ----------
    scores : array_like (n,) or (n, m)
        Logits.
    y : array_like of the same shape; (n,) also matches (n, 1)
        In [0, 1].
    sample_weight : array_like (n,), optional
        Not negative, not all zero.
    label_smoothing : float
        ε in [0, 1].
    reduction : "mean", "sum" or "none"

    Returns
    -------
    loss : float, or ndarray (n,)
    dscores : ndarray
        Of the shape of `scores`.

    Raises
    ------
    ValueError, TypeError, OverflowError
        See the module.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.binary_cross_entropy([0.0], [1.0])
    (0.6931471805599453, array([-0.5]))
    """
    smoothing = boundary.label_smoothing(label_smoothing)
    return _loss("binary_cross_entropy", "scores", scores, "y", y, sample_weight, reduction, smoothing)


def mse(pred, target, *, sample_weight=None, reduction="mean"):
    r"""The mean squared error.

    .. math:: l_i = \frac1m \sum_j (p_{ij} - t_{ij})^2, \qquad \partial l_i / \partial p_{ij} = 2 (p_{ij} - t_{ij}) / m

    Parameters
    ----------
    pred : array_like (n,) or (n, m)
    target : array_like of the same shape; (n,) also matches (n, 1)
    sample_weight : array_like (n,), optional
        Not negative, not all zero.
    reduction : "mean", "sum" or "none"

    Returns
    -------
    loss : float, or ndarray (n,)
    dpred : ndarray
        Of the shape of `pred`.

    Raises
    ------
    ValueError, TypeError, OverflowError
        See the module.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.mse([1.0, 2.0], [0.0, 2.0])
    (0.5, array([1., 0.]))
    """
    return _loss("mse", "pred", pred, "target", target, sample_weight, reduction)


def mae(pred, target, *, sample_weight=None, reduction="mean"):
    r"""The mean absolute error.

    .. math::
        l_i = \frac1m \sum_j |p_{ij} - t_{ij}|, \qquad
        \partial l_i / \partial p_{ij} = \mathrm{sign}(p_{ij} - t_{ij}) / m

    The subgradient is 0 at 0.

    Parameters
    ----------
    pred : array_like (n,) or (n, m)
    target : array_like of the same shape; (n,) also matches (n, 1)
    sample_weight : array_like (n,), optional
        Not negative, not all zero.
    reduction : "mean", "sum" or "none"

    Returns
    -------
    loss : float, or ndarray (n,)
    dpred : ndarray
        Of the shape of `pred`.

    Raises
    ------
    ValueError, TypeError, OverflowError
        See the module.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.mae([1.0, 2.0], [0.0, 2.0])
    (0.5, array([0.5, 0. ]))
    """
    return _loss("mae", "pred", pred, "target", target, sample_weight, reduction)


def huber(pred, target, *, delta=1.0, sample_weight=None, reduction="mean"):
    r"""Huber's loss: squared errors for small, absolute ones for large.

    .. math::
        l_i = \frac1m \sum_j h(a_{ij}), \quad a = p - t, \quad
        h(a) = \begin{cases} a^2 / 2 & |a| \le \delta \\ \delta (|a| - \delta / 2) & |a| > \delta \end{cases}, \qquad
        \partial l_i / \partial p_{ij} = \max(-\delta, \min(a_{ij}, \delta)) / m

    Source: Huber 1964.

    Parameters
    ----------
    pred : array_like (n,) or (n, m)
    target : array_like of the same shape; (n,) also matches (n, 1)
    delta : float > 0
        δ, where the two meet.
    sample_weight : array_like (n,), optional
        Not negative, not all zero.
    reduction : "mean", "sum" or "none"

    Returns
    -------
    loss : float, or ndarray (n,)
    dpred : ndarray
        Of the shape of `pred`.

    Raises
    ------
    ValueError, TypeError, OverflowError
        See the module.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.huber([0.5, 3.0], [0.0, 0.0])
    (1.3125, array([0.25, 0.5 ]))
    """
    delta = boundary.number("delta", delta, above=0.0)
    return _loss("huber", "pred", pred, "target", target, sample_weight, reduction, delta)


def msle(pred, target, *, sample_weight=None, reduction="mean"):
    r"""The mean squared logarithmic error, natural logarithm.

    .. math::
        l_i = \frac1m \sum_j d_{ij}^2, \quad d_{ij} = \log(1 + p_{ij}) - \log(1 + t_{ij}), \qquad
        \partial l_i / \partial p_{ij} = 2 d_{ij} / (m (1 + p_{ij}))

    Parameters
    ----------
    pred : array_like (n,) or (n, m)
        Greater than -1.
    target : array_like of the same shape; (n,) also matches (n, 1)
        Greater than -1.
    sample_weight : array_like (n,), optional
        Not negative, not all zero.
    reduction : "mean", "sum" or "none"

    Returns
    -------
    loss : float, or ndarray (n,)
    dpred : ndarray
        Of the shape of `pred`.

    Raises
    ------
    ValueError, TypeError, OverflowError
        See the module; also a prediction or target of -1 or less.

    Examples
    --------
    >>> import fastopt as fo
    >>> round(fo.msle([0.7, 0.9], [0.8, 0.8])[0], 6)
    0.003095
    """
    return _loss("msle", "pred", pred, "target", target, sample_weight, reduction)


def softmax(scores):
    r"""The softmax of each row: :math:`p_{ij} = e^{s_{ij}} / \sum_k e^{s_{ik}}`.

    Parameters
    ----------
    scores : array_like (n, K)
        float32 stays float32, anything else becomes float64.

    Returns
    -------
    ndarray (n, K)

    Raises
    ------
    ValueError, TypeError
        A score that is not finite, another shape, an empty array; not real numbers.

    Examples
    --------
    >>> import fastopt as fo
    >>> [round(p, 4) for p in fo.softmax([[-3.44, 1.16, 3.91]])[0].tolist()]
    [0.0006, 0.0601, 0.9393]
    """
    s = boundary.data("scores", scores, (None, None))
    out = np.empty_like(s)
    core(s.dtype).call_softmax(s, out)
    return out


def accuracy(scores, y):
    """The share of samples whose highest score, the first of equals, is at the label.

    Scores (n,) or (n, 1) are binary: with labels -1 and 1, a positive score predicts 1.

    Parameters
    ----------
    scores : array_like (n, K), (n,) or (n, 1)
    y : array_like (n,)
        Integer labels 0 .. K-1; -1 and 1 for the binary form.

    Returns
    -------
    float

    Raises
    ------
    ValueError, TypeError
        As the losses.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.accuracy([[0.1, 0.9], [0.8, 0.2]], [1, 1])
    0.5
    """
    array = boundary.real_array("scores", scores)
    s = boundary.data("scores", array, (None,) if array.ndim == 1 else (None, None))
    s = s.reshape(len(s), -1)
    labels = boundary.labels("y", y, len(s), s.shape[1], signs=s.shape[1] == 1)
    return float(np.mean(ranks_of_labels(s, labels) == 0))


def top_k_accuracy(scores, y, k):
    """The share of samples whose label is among the k highest scores, of equal scores the first.

    Parameters
    ----------
    scores : array_like (n, K)
    y : array_like (n,)
        Integer labels 0 .. K-1.
    k : int in 1 .. K, of K at least 2

    Returns
    -------
    float

    Raises
    ------
    ValueError, TypeError
        As the losses, or k out of range.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.top_k_accuracy([[0.1, 0.7, 0.2], [0.8, 0.15, 0.05]], [2, 2], 2)
    0.5
    """
    s = boundary.data("scores", scores, (None, None))
    if s.shape[1] == 1:
        raise ValueError(f"scores must have shape (n, K) with K at least 2, got {s.shape}")
    k = boundary.integer("k", k, 1, s.shape[1])
    return float(np.mean(ranks_of_labels(s, boundary.labels("y", y, len(s), s.shape[1], signs=False)) < k))


def ranks_of_labels(scores, labels):
    """How many classes come before each label; of one score and labels -1 and 1, whether the sign is another."""
    ranks = np.empty(len(scores), np.int64)
    core(scores.dtype).call_ranks(scores, labels, ranks)
    return ranks

"""Dense networks: parameters in one flat buffer, the forward pass, and loss with gradient."""

import itertools
import math
import sys

import numpy as np

from . import boundary, files, losses
from ._dispatch import core

#: Bounds of uniform and standard deviations of normal laws: Glorot & Bengio 2010, He et al. 2015.
INITS = {
    "glorot_uniform": lambda n_in, n_out: math.sqrt(6 / (n_in + n_out)),
    "glorot_normal": lambda n_in, n_out: math.sqrt(2 / (n_in + n_out)),
    "he_uniform": lambda n_in, n_out: math.sqrt(6 / n_in),
    "he_normal": lambda n_in, n_out: math.sqrt(2 / n_in),
    "zeros": None,
}
ROWS_A_CHUNK = 256


class MLP:
    r"""A network of dense layers; with two sizes, a linear classifier or regressor.

    .. math:: h_0 = x, \quad h_{l+1} = f(h_l W_l^\top + b_l), \quad \text{the last layer without } f

    Parameters
    ----------
    sizes : list of int
        Features, hidden units of each layer, outputs.
    activation : None, "relu", "sigmoid" or "tanh"
        f of the hidden layers.
    init : str or callable
        "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "zeros", or a callable (shape, rng) -> array
        for each weight; biases start at zero.
    dropout : float in [0, 1)
        Probability that a hidden output is zeroed while training; the others are scaled up by 1 / (1 - dropout).
    dtype : "float32" or "float64"
    seed : int >= 0
        Of the initial weights.

    Attributes
    ----------
    flat : ndarray
        All parameters in one writable buffer: weights[0], biases[0], weights[1], ... in C order.
    weights, biases : list of ndarray
        Views into it, (out, in) and (out,).

    Raises
    ------
    ValueError, TypeError
        A size, name or number out of range.

    Examples
    --------
    >>> import fastopt as fo
    >>> net = fo.MLP([784, 64, 10])
    >>> net.n_parameters
    50890
    >>> net.forward([[0.5] * 784]).shape
    (1, 10)
    """

    def __init__(self, sizes, activation="relu", init="glorot_uniform", dropout=0.0, dtype="float32", seed=0):
        if isinstance(sizes, str) or np.ndim(sizes) == 0:
            raise TypeError(f"sizes must be a list of integers, got {sizes!r}")
        if len(sizes) < 2:
            raise ValueError(f"sizes must name at least the features and the outputs, got {sizes!r}")
        self._sizes = tuple(boundary.integer(f"sizes[{i}]", size, 1) for i, size in enumerate(sizes))
        self._activation = boundary.choice("activation", activation, tuple(boundary.ACTIVATIONS))
        self._dropout = boundary.number("dropout", dropout, least=0.0, below=1.0)
        self._dtype = boundary.dtype(dtype)
        seed = boundary.integer("seed", seed, 0)
        if not callable(init):
            boundary.choice("init", init, tuple(INITS))
        n_parameters = sum((a + 1) * b for a, b in itertools.pairwise(self._sizes))
        if n_parameters * self._dtype.itemsize > sys.maxsize:
            raise MemoryError(f"sizes {list(self._sizes)} have {n_parameters} parameters")
        self._set_flat(np.zeros(n_parameters, self._dtype))
        if init == "zeros":
            return
        rng = np.random.default_rng(seed)
        for i, weight in enumerate(self.weights):
            weight[...] = boundary.data(f"init for weights[{i}]", _initial(init, weight.shape, rng), weight.shape,
                                        self._dtype)

    def _set_flat(self, flat):
        self._flat = flat
        self._weights, self._biases = [], []
        at = 0
        for n_in, n_out in itertools.pairwise(self._sizes):
            self._weights.append(flat[at : at + n_in * n_out].reshape(n_out, n_in))
            at += n_in * n_out
            self._biases.append(flat[at : at + n_out])
            at += n_out
        self._shape = np.array(self._sizes, np.intp)
        self._codes = np.array(self.activation_codes(), np.intc)

    sizes = property(lambda self: self._sizes, doc="Features, hidden units of each layer, outputs.")
    activation = property(lambda self: self._activation, doc="The hidden layers' activation.")
    dropout = property(lambda self: self._dropout, doc="Probability that a hidden output is zeroed while training.")
    dtype = property(lambda self: self._dtype, doc="The dtype of all parameters.")
    flat = property(lambda self: self._flat, doc="All parameters in one writable buffer.")
    weights = property(lambda self: list(self._weights), doc="Views (out, in) into `flat`.")
    biases = property(lambda self: list(self._biases), doc="Views (out,) into `flat`.")
    n_parameters = property(lambda self: self._flat.size, doc="How many numbers the network has.")

    def __repr__(self):
        return (f"MLP({list(self._sizes)}, activation={self._activation!r}, dropout={self._dropout}, "
                f"dtype='{self._dtype}')")

    def activation_codes(self):
        """The kernels' number of each layer's activation."""
        return [boundary.ACTIVATIONS[self._activation]] * (len(self._sizes) - 2) + [boundary.ACTIVATIONS[None]]

    @boundary.memory_errors
    def forward(self, X, n_threads=None):
        """The scores of the samples; a row alone or in any batch gives the same bits.

        Parameters
        ----------
        X : array_like (n, features)
            Any real dtype and layout, converted chunk by chunk; n may be 0.
        n_threads : int, optional
            Upper bound; changes no result.

        Returns
        -------
        ndarray (n, outputs)

        Raises
        ------
        ValueError, TypeError
            Another shape, a value that is not finite (named by position), not real numbers.
        """
        features = boundary.features("X", X, self._sizes[0], self._dtype)
        workers = boundary.threads(n_threads, features.n * self._flat.size)
        out = np.empty((features.n, self._sizes[-1]), self._dtype)
        if features.n == 0:
            return out
        if not core(self._dtype).call_forward(features, self._shape, self._codes, self._flat, out, workers):
            boundary.check_features_finite("X", X, features, self._dtype)
            raise OverflowError(f"the scores of row {int(np.argmin(np.isfinite(out).all(axis=1)))} are not finite: "
                                f"the parameters are not, or are too large")
        return out

    @boundary.memory_errors
    def loss_and_grad(self, X, y, loss="softmax_cross_entropy", sample_weight=None, loss_options=None):
        """The mean loss over the samples and its gradient by all parameters; no dropout, no penalty.

        Parameters
        ----------
        X : array_like (n, features)
        y : array_like
            Labels or targets, as the loss wants them.
        loss : str or callable
            A name of a loss, or a callable (scores, y) -> (value, dscores).
        sample_weight : array_like (n,), optional
        loss_options : dict, optional
            What the loss's function takes beside weights: `class_weight`, `label_smoothing`, `delta`.

        Returns
        -------
        loss : float
        grad : ndarray
            Laid out as `flat`.

        Raises
        ------
        ValueError, TypeError, OverflowError
            As `forward` and the losses.
        """
        array = boundary.real_array("X", X)
        features = boundary.features("X", array, self._sizes[0], self._dtype)
        scores = self.forward(array)
        if len(scores) == 0:
            raise ValueError(f"X is empty: shape {array.shape}")
        value, dscores = loss_of_scores(loss, scores, y, sample_weight, loss_options)
        grad = np.zeros_like(self._flat)
        pieces = MLP.__new__(MLP)
        pieces._sizes, pieces._activation = self._sizes, self._activation
        pieces._set_flat(grad)
        for start in range(0, len(scores), ROWS_A_CHUNK):
            self._add_gradient(features, start, dscores[start : start + ROWS_A_CHUNK], pieces)
        boundary.check_overflow("the gradient", grad)
        return value, grad

    def _add_gradient(self, features, start, dscores, grad):
        """Goes on with the sums over samples in `grad` by a chunk of them."""
        kernels, codes = core(self._dtype), self.activation_codes()
        outputs = [np.empty((len(dscores), self._sizes[0]), self._dtype)]
        features.copy(start, outputs[0])
        for weight, bias, code in zip(self._weights, self._biases, codes, strict=True):
            outputs.append(np.empty((len(dscores), len(weight)), self._dtype))
            kernels.call_dense_forward(outputs[-2], weight, bias, outputs[-1], code, 1)
        for i in reversed(range(len(codes))):
            dx = np.empty_like(outputs[i]) if i else None
            kernels.call_dense_backward(dscores, outputs[i], self._weights[i], dx, grad._weights[i], grad._biases[i],
                                        True, 1)
            if i:
                dscores = np.empty_like(dx)
                kernels.call_activation_backward(codes[i - 1], outputs[i].reshape(-1), dx.reshape(-1),
                                                 dscores.reshape(-1))

    def copy(self):
        """An independent network with the same parameters."""
        twin = MLP.__new__(MLP)
        twin._sizes, twin._activation = self._sizes, self._activation
        twin._dropout, twin._dtype = self._dropout, self._dtype
        twin._set_flat(self._flat.copy())
        return twin

    __copy__ = copy

    def __deepcopy__(self, memo):
        return self.copy()

    def __reduce__(self):
        return _from_flat, (self._sizes, self._activation, self._dropout, self._flat)

    @boundary.memory_errors
    def save(self, path):
        """Writes the network to a safetensors file, its architecture in the metadata; the old file stays until then.

        Raises
        ------
        OSError
            The file cannot be written; an old one is as it was.
        ValueError
            A parameter is not finite.
        """
        flat = np.empty_like(self._flat)
        core(self._dtype).commit([(flat, self._flat)], {}, {}, [])  # another thread's fit comes before or after
        boundary.check_parameters(flat)
        files.write(path, {"flat": flat}, {"kind": "model", "network": files.network_description(self)})

    @classmethod
    @boundary.memory_errors
    def load(cls, path):
        """The network that `save` wrote.

        Raises
        ------
        ModelFormatError
            The file is not a model that this version can read.
        OSError
            It cannot be opened.
        """
        tensors, description = files.read(path, "model")
        with files.refusing(path):
            return files.network_from(cls, description["network"], tensors["flat"])


def _from_flat(sizes, activation, dropout, flat):
    net = MLP(sizes, activation, "zeros", dropout, flat.dtype.name)
    net.flat[...] = flat
    return net


def _initial(init, shape, rng):
    n_out, n_in = shape
    if callable(init):
        return init(shape, rng)
    scale = INITS[init](n_in, n_out)
    return (rng.random(shape) * 2 - 1) * scale if init.endswith("uniform") else rng.standard_normal(shape) * scale


def loss_of_scores(loss, scores, y, sample_weight=None, loss_options=None):
    """(mean loss, gradient) of a named loss or of a callable, whose answer is checked."""
    if not callable(loss):
        boundary.choice("loss", loss, boundary.LABEL_LOSSES + boundary.TARGET_LOSSES)
    boundary.loss_options(loss, loss_options, scores.shape[1])
    if callable(loss):
        boundary.no_sample_weight(sample_weight)
        value, dscores = boundary.loss_result(loss(scores.copy(), y), scores)
        if not (math.isfinite(value) and np.isfinite(dscores).all()):
            raise ValueError(f"loss returned a value or gradient that is not finite: the value is {value}")
        return value, dscores
    return getattr(losses, loss)(scores, y, sample_weight=sample_weight, **loss_options or {})

"""The learning-rate range test: the loss while the rate rises, to choose one by."""

import dataclasses

import numpy as np

from . import boundary
from .errors import DivergenceError
from .schedules import by_epoch
from .training import Trainer, axes_for


@dataclasses.dataclass(frozen=True, eq=False)
class LRRange:
    """What `lr_range_test` returns: `lr` and `loss`, an entry a step, up to where the loss was no longer finite."""

    lr: np.ndarray
    loss: np.ndarray

    def smoothed(self, share=0.9):
        """The running mean of the losses, without its bias to zero: each step keeps `share` of the mean before."""
        share = boundary.number("share", share, least=0.0, below=1.0)
        mean, means = 0.0, np.empty(len(self.loss))
        for i, loss in enumerate(self.loss):
            mean = share * mean + (1 - share) * loss
            means[i] = mean / (1 - share ** (i + 1))
        return means

    @property
    def suggestion(self):
        """A tenth of the rate at which the smoothed loss was lowest; nan if it never fell."""
        losses = self.smoothed()
        # a mean of equal losses is not quite equal to them
        fell = len(losses) > 0 and losses.min() < losses[0] - 1e-9 * abs(losses[0])
        return float(self.lr[np.argmin(losses)] / 10) if fell else float("nan")

    def plot(self, ax=None):
        """Draws the loss over the rate with matplotlib; returns the axes.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        ax = axes_for("plot", ax)
        ax.plot(self.lr, self.loss, alpha=0.3, label="loss")
        ax.plot(self.lr, self.smoothed(), label="smoothed")
        ax.axvline(self.suggestion, linestyle=":", color="k", label=f"a tenth of the lowest's: {self.suggestion:.2g}")
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss of a mini-batch")
        ax.legend()
        return ax


def lr_range_test(net, X, y, *, loss, optimizer, low=1e-6, high=10.0, steps=100, batch_size=32, seed=None,
                  n_threads=None, loss_options=None):
    """Trains a copy of the network for `steps` mini-batches while the rate rises from `low` to `high` by a factor.

    It stops where the loss or a parameter is no longer finite. Source: Smith 2017, Cyclical learning rates.

    Parameters
    ----------
    net : MLP
        Not changed.
    X, y : array_like
        As `Trainer.fit`'s; mini-batches are drawn without replacement, in a new order when all are used up.
    loss, optimizer, batch_size, seed, n_threads, loss_options
        As `Trainer`'s; the optimizer's own rate and its l1 and l2 are not used. A class weight of 0 is refused, for a
        mini-batch may hold nothing else.
    low, high : float > 0
    steps : int >= 2

    Returns
    -------
    LRRange

    Raises
    ------
    ValueError, TypeError
        An argument out of range.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> X = np.random.default_rng(0).standard_normal((200, 4))
    >>> y = (X[:, 0] > 0).astype(int)
    >>> net = fo.MLP([4, 8, 2], seed=0)
    >>> found = fo.lr_range_test(net, X, y, loss="softmax_cross_entropy", optimizer=fo.SGD(0.1), seed=0)
    >>> 0.01 < found.suggestion < 10
    True
    """
    low, high = boundary.number("low", low, above=0.0), boundary.number("high", high, above=0.0)
    if not low < high:
        raise ValueError(f"high must be above low={low!r}, got {high!r}")
    steps = boundary.integer("steps", steps, 2)
    rates = np.geomspace(low, high, steps)
    options = {"loss": loss, "batch_size": batch_size, "seed": seed, "n_threads": n_threads,
               "loss_options": loss_options}
    Trainer(net, optimizer=optimizer, **options)  # a look at the arguments
    if by_epoch(optimizer.momentum):
        raise ValueError("momentum: a schedule per epoch says nothing here, for every step is at another rate")
    rising = dataclasses.replace(optimizer, lr=lambda t: float(rates[t]), l1=0.0, l2=0.0)
    trainer = Trainer(net.copy(), optimizer=rising, shuffle=False, **options)
    trainer.fit(X, y, epochs=0)  # one at all of the data
    if trainer._class_weight is not None and not (trainer._class_weight > 0).all():
        raise ValueError("class_weight must be above 0 here: a mini-batch may hold nothing else")
    X, y = boundary.real_array("X", X), np.asarray(y)
    rng, order = np.random.default_rng(seed), np.arange(0)
    for _ in range(steps):
        if len(order) == 0:
            order = rng.permutation(len(X))
        rows, order = order[:batch_size], order[batch_size:]
        try:
            trainer.fit(X[rows], y[rows], epochs=1)
        except DivergenceError:
            break
    losses = np.array(trainer.history.loss)
    return LRRange(rates[: len(losses)], losses)

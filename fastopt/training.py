"""Training: whole epochs in the compiled engine, their history, the stopping rules, and checkpoints."""

import contextlib
import copy
import dataclasses
import math
import os
import sys
import time
import warnings
import weakref

import numpy as np

from . import adaptive, boundary, files, schedules
from ._dispatch import core
from .errors import DivergenceError
from .losses import ranks_of_labels
from .network import MLP
from .optim import SGD, kernel_settings

ROWS_A_VALIDATION_CHUNK = 4096
HISTORY = ("loss", "val_loss", "accuracy", "val_accuracy", "top_k_accuracy", "val_top_k_accuracy", "lr", "seconds")
LATE = HISTORY[2:6]  # that files of the first builds have not
OPTIMIZERS = {cls.__name__: cls for cls in
              (SGD, adaptive.AdaGrad, adaptive.RMSProp, adaptive.AdaDelta, adaptive.Adam, adaptive.AdamW)}


def axes_for(what, ax):
    """The axes to draw on: those given, or a new figure's."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError(f"{what} needs matplotlib: install the extra 'plot'") from None
    return plt.figure().add_subplot() if ax is None else ax


class History:
    """What each epoch of a Trainer gave, one entry an epoch: `loss`, `val_loss`, `accuracy`, `val_accuracy`,
    `top_k_accuracy`, `val_top_k_accuracy`, `lr` and `seconds`.

    `accuracy` is the share of the epoch's samples whose highest score, as seen in training, was at their label, counted
    beside the loss; `top_k_accuracy` that of those whose label was among the `top_k` highest. nan for losses without
    labels, or without `top_k`.
    `val_loss` is nan for an epoch without validation data, and inf where that loss was not finite; `lr` is the
    learning rate of the epoch's last step.
    """

    def __init__(self):
        for name in HISTORY:
            setattr(self, name, [])

    def __repr__(self):
        return f"History({len(self.loss)} epochs" + (f", loss {self.loss[-1]:.6g})" if self.loss else ")")

    def plot(self, ax=None):
        """Draws the loss curves with matplotlib.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            By default those of a new figure.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        ax = axes_for("history.plot", ax)
        epochs = range(1, len(self.loss) + 1)
        ax.plot(epochs, self.loss, label="training")
        if not all(math.isnan(value) for value in self.val_loss):
            ax.plot(epochs, self.val_loss, label="validation")
        ax.set(xlabel="epoch", ylabel="loss")
        ax.legend()
        return ax


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Stops a fit after `patience` consecutive epochs without an improvement above `min_delta`. Immutable.

    Parameters
    ----------
    monitor : "val_loss" or "loss"
    patience : int >= 1
    min_delta : float >= 0
        An epoch improves if its value is below the best one less min_delta; nan never is.
    restore_best : bool
        Whether the network has the best epoch's parameters when `fit` ends, whatever ended it. Training goes on from
        the last epoch's all the same.

    Raises
    ------
    ValueError, TypeError
        A parameter out of range.
    """

    monitor: str = "val_loss"
    patience: int = 5
    min_delta: float = 0.0
    restore_best: bool = True

    def __post_init__(self):
        boundary.choice("monitor", self.monitor, ("val_loss", "loss"))
        # Python's own numbers, which files hold
        object.__setattr__(self, "patience", boundary.integer("patience", self.patience, 1))
        object.__setattr__(self, "min_delta", boundary.number("min_delta", self.min_delta, least=0.0))
        object.__setattr__(self, "restore_best", boundary.flag("restore_best", self.restore_best))


@dataclasses.dataclass(frozen=True)
class _Watch:
    """How far an EarlyStopping has come."""

    rule: EarlyStopping
    best: float = math.inf
    waited: int = 0
    flat: np.ndarray | None = None

    def after(self, value, flat):
        """The watch after an epoch with that value, and what `commit` is to copy: the parameters, if they are best."""
        if not value < self.best - self.rule.min_delta:
            return dataclasses.replace(self, waited=self.waited + 1), []
        if not self.rule.restore_best:
            return _Watch(self.rule, value), []
        best = np.empty_like(flat) if self.flat is None else self.flat
        return _Watch(self.rule, value, 0, best), [(best, flat)]

    @property
    def ended(self):
        return self.waited >= self.rule.patience


@dataclasses.dataclass
class _Data:
    """A data set as the kernels take it; `y` is the caller's own for a loss written in Python."""

    X: np.ndarray
    y: np.ndarray
    features: object
    labels: np.ndarray | None
    targets: np.ndarray | None
    weight: np.ndarray | None
    owners: list  # weak references, which keep resize(refcheck=False) from freeing the memory


class Trainer:
    """Trains a network: mini-batches without replacement, whole epochs in one compiled call.

    Parameters
    ----------
    net : MLP
        Trained in place; read and write its parameters between calls of `fit` only.
    loss : str or callable
        The name of a loss of this package, or a callable (scores, y) -> (value, dscores) for the mean over a batch:
        slower, for Python runs between forward and backward of every batch.
    optimizer : SGD, AdaGrad, RMSProp, AdaDelta, Adam or AdamW
    batch_size : int >= 1
        The last batch of an epoch is short, never dropped.
    shuffle : bool
        A new order of the samples every epoch.
    seed : int in 0 .. 2**64-1, optional
        Of the orders and of dropout; drawn afresh by default.
    n_threads : int, optional
        Upper bound; changes no result.
    loss_options : dict, optional
        What the loss's function takes beside weights: `class_weight`, `label_smoothing`, `delta`.
    top_k : int, optional
        Of `history.top_k_accuracy`; for losses of labels.

    Attributes
    ----------
    net : MLP
    history : History
        Of all epochs.
    epoch : int
        Epochs done.

    Raises
    ------
    ValueError, TypeError
        An argument out of range.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> X = np.random.default_rng(0).standard_normal((200, 2))
    >>> y = (X[:, 0] * X[:, 1] > 0).astype(int)
    >>> net = fo.MLP([2, 16, 2], seed=1)
    >>> trainer = fo.Trainer(net, loss="softmax_cross_entropy", optimizer=fo.SGD(0.1, momentum=0.9), seed=1)
    >>> history = trainer.fit(X, y, epochs=40)
    >>> fo.accuracy(net.forward(X), y) > 0.95
    True
    """

    def __init__(self, net, *, loss, optimizer, batch_size=32, shuffle=True, seed=None, n_threads=None,
                 loss_options=None, top_k=None):
        if not isinstance(net, MLP):
            raise TypeError(f"net must be an MLP, got {type(net).__name__}")
        if type(optimizer) not in OPTIMIZERS.values():
            raise TypeError(f"optimizer must be an SGD or another of fastopt's, got {type(optimizer).__name__}")
        if not callable(loss):
            boundary.choice("loss", loss, boundary.LABEL_LOSSES + boundary.TARGET_LOSSES)
        optimizer.check_fits(net.dtype)
        if loss == "softmax_cross_entropy" and net.sizes[-1] < 2:
            raise ValueError("softmax_cross_entropy needs at least two outputs: one is binary_cross_entropy's")
        self._class_weight, self._smoothing, self._delta = boundary.loss_options(loss, loss_options, net.sizes[-1])
        checked = {"class_weight": self._class_weight, "label_smoothing": self._smoothing, "delta": self._delta}
        self._loss_options = {name: np.asarray(checked[name]).tolist() for name in loss_options or ()
                              if checked[name] is not None}
        for name, value in self._loss_options.items():
            boundary.data(f"loss_options[{name!r}]", np.atleast_1d(value), (None,), net.dtype)
        if top_k is not None:
            if loss not in boundary.LABEL_LOSSES or net.sizes[-1] == 1:
                raise ValueError("top_k needs a loss of labels, and a score for each")
            top_k = boundary.integer("top_k", top_k, 1, net.sizes[-1])
        self._top_k = top_k
        self._net, self._loss, self._optimizer = net, loss, optimizer
        self._batch_size = boundary.integer("batch_size", batch_size, 1)
        self._shuffle = boundary.flag("shuffle", shuffle)
        self._seed = int.from_bytes(os.urandom(8)) if seed is None else boundary.integer("seed", seed, 0, 2**64 - 1)
        self._n_threads = None if n_threads is None else boundary.integer("n_threads", n_threads, 1)
        self._history = History()
        # what the rule keeps, one flat array after another
        n_moments = len(optimizer.moment_names)
        self._moments = np.full(n_moments * net.n_parameters, optimizer.first_moment, net.dtype) if n_moments else None
        # What changes while training does, and only through core's `store` and `commit`, so that an interrupt finds
        # it whole. partial, of an epoch under way: the next batch, the sums of losses and of weights so far, the
        # number of samples. continuation, where the network shows something else than training goes on from: both.
        self._state = {"epoch": 0, "updates": 0, "partial": None, "continuation": None, "watch": None,
                       "l1_total": 0.0}
        self._turn = core(net.dtype).Turn()
        self._engine = None
        self._stopping = False

    net = property(lambda self: self._net, doc="The network.")
    history = property(lambda self: self._history, doc="Of all epochs.")
    epoch = property(lambda self: self._state["epoch"], doc="Epochs done.")
    loss = property(lambda self: self._loss, doc="The loss's name, or the callable.")
    optimizer = property(lambda self: self._optimizer, doc="The optimizer.")

    @boundary.memory_errors
    def fit(self, X, y, *, epochs, sample_weight=None, validation_data=None, early_stopping=None, target_loss=None,
            callbacks=(), progress=False):
        """Trains for up to `epochs` further epochs; calling it again goes on.

        The loss of an epoch is the weighted mean over its samples of the losses seen, plus the optimizer's l1 and l2
        penalties of the parameters at its end; the validation loss has no penalty and no dropout. Ctrl-C and `stop`
        end the fit between two batches; the next call finishes that epoch first, and it counts as one.

        Parameters
        ----------
        X : array_like (n, features)
            Any real dtype and layout; never copied.
        y : array_like
            Labels or targets, as the loss wants them.
        epochs : int >= 0
        sample_weight : array_like (n,), optional
            Not negative; a batch whose weights are all zero has no loss gradient.
        validation_data : (X, y) or (X, y, sample_weight), optional
            Evaluated after every epoch.
        early_stopping : EarlyStopping, optional
        target_loss : float, optional
            Stops after an epoch whose loss is below it.
        callbacks : sequence of callables
            Each is called with the trainer after every epoch: True stops, None goes on.
        progress : bool
            Draws a bar (needs tqdm).

        Returns
        -------
        History
            The trainer's, of all epochs.

        Raises
        ------
        ValueError, TypeError
            An argument out of range or of another shape, a value in the data that is not finite (named by position);
            the trainer is as before.
        DivergenceError
            The loss or a parameter stopped being finite; names epoch and batch. The network and the trainer are as
            after the last epoch that was finite.
        RuntimeError
            A fit of this trainer is already running.
        """
        with self._turn:
            self._stopping = False
            epochs = boundary.integer("epochs", epochs, 0)
            if target_loss is not None:
                target_loss = boundary.number("target_loss", target_loss)
            data = self._data("X", X, "y", y, "sample_weight", sample_weight)
            validation = self._validation(validation_data)
            watch = self._watch_for(early_stopping, validation)
            lr = self._optimizer.lr
            if isinstance(lr, schedules.ReduceOnPlateau) and lr.monitor == "val_loss" and validation is None:
                raise ValueError("lr: ReduceOnPlateau monitors val_loss, but there is no validation_data")
            callbacks = _callables("callbacks", callbacks)
            partial = self._state["partial"]
            if partial is not None and partial[3] != data.features.n:
                raise ValueError(f"X has {data.features.n} samples, but the interrupted epoch to finish has "
                                 f"{partial[3]}")
            if epochs == 0:
                boundary.check_features_finite("X", data.X, data.features, self._net.dtype)
                boundary.flag("progress", progress)
                return self._history
            with contextlib.closing(_progress_bar(progress, epochs)) as bar:
                self._fit(data, epochs, validation, watch, target_loss, callbacks, bar)
        return self._history

    def stop(self):
        """Ends the running fit between two batches; safe from any thread."""
        self._stopping = True
        engine = self._engine
        if engine is not None:
            engine.request_stop()

    # -- checks that need the network ---------------------------------------------------------------------------

    def _data(self, x_name, X, y_name, y, w_name, sample_weight):
        net = self._net
        array = boundary.real_array(x_name, X)
        features = boundary.features(x_name, array, net.sizes[0], net.dtype)
        n, n_out = features.n, net.sizes[-1]
        if n == 0:
            raise ValueError(f"{x_name} is empty: shape {array.shape}")
        labels = targets = None
        if callable(self._loss):
            y = boundary.rectangular(y_name, y)
            if y.ndim == 0 or len(y) != n:
                raise ValueError(f"{y_name} must have {n} entries, got shape {y.shape}")
            boundary.no_sample_weight(sample_weight)
        elif self._loss in boundary.LABEL_LOSSES:
            labels = boundary.labels(y_name, y, n, n_out, signs=n_out == 1)
        else:
            targets = boundary.targets(y_name, y, (n, n_out), net.dtype, self._loss)
            if self._loss == "binary_cross_entropy":
                targets = boundary.smoothed(targets, self._smoothing)
        weight = boundary.sample_weight(sample_weight, n, net.dtype, w_name)
        weight = boundary.weight_by_class(weight, self._class_weight, labels, n_out, net.dtype)
        owners = [weakref.ref(core(net.dtype).owner(a)) for a in (targets, weight) if a is not None]
        return _Data(array, y, features, labels, targets, weight, owners)

    def _validation(self, validation_data):
        if validation_data is None:
            return None
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
            raise TypeError("validation_data must be (X, y) or (X, y, sample_weight)")
        X, y, weight = (*validation_data, None)[:3]
        data = self._data("validation X", X, "validation y", y, "validation sample_weight", weight)
        boundary.check_features_finite("validation X", data.X, data.features, self._net.dtype)
        return data

    def _watch_for(self, early_stopping, validation):
        """The watch of an equal rule goes on; after it has ended a fit, its count starts again."""
        if early_stopping is None:
            return None
        if type(early_stopping) is not EarlyStopping:  # what a file brings back
            raise TypeError(f"early_stopping must be an EarlyStopping, got {type(early_stopping).__name__}")
        if early_stopping.monitor == "val_loss" and validation is None:
            raise ValueError("early_stopping monitors val_loss, but there is no validation_data")
        old = self._state["watch"]
        if old is None or old.rule != early_stopping:
            return _Watch(early_stopping)
        return dataclasses.replace(old, waited=0) if old.ended else old

    # -- epochs -------------------------------------------------------------------------------------------------

    def _fit(self, data, epochs, validation, watch, target_loss, callbacks, bar):
        net, optimizer, kernels = self._net, self._optimizer, core(self._net.dtype)
        n = data.features.n
        engine = kernels.Engine(
            net.sizes, net.activation_codes(), min(self._batch_size, n),
            -1 if callable(self._loss) else kernels.LOSSES[self._loss], self._loss_option, self._top_k or 0,
            kernel_settings(optimizer), len(optimizer.moment_names), net.dropout, self._seed,
        )
        engine.load(self._parameters(), self._moments)
        engine.bind(data.features, data.labels, data.targets, data.weight)
        order = np.arange(n)
        workers = boundary.threads(self._n_threads, 3 * min(self._batch_size, n) * net.n_parameters)
        check_finite = data.X.dtype.kind == "f"
        before = self._state["updates"], self._state["epoch"]
        self._engine = engine
        try:
            for _ in range(epochs):
                if self._stopping:
                    break
                whole = self._state["partial"] is None
                if not self._run_epoch(engine, data, order, workers, check_finite, validation, watch):
                    break
                check_finite = check_finite and not whole
                watch = self._state["watch"]
                bar.update_losses(self._history)
                if self._is_to_stop(watch, target_loss, callbacks):
                    break
        finally:
            self._engine = engine = None  # its memory is free before the parameters are copied, if no error holds it
            try:
                self._show_best(before)
            except KeyboardInterrupt:  # which is not to come between: once more, then it goes on
                self._show_best(before)
                raise

    def _show_best(self, before):
        """The early stopping's best parameters, unless the fit failed before it got anywhere: then what was shown."""
        watch = self._state["watch"] if (self._state["updates"], self._state["epoch"]) != before else None
        if watch is not None and watch.flat is not None:
            net, parameters = self._net, self._parameters()
            parameters = parameters.copy() if parameters is net.flat else parameters
            core(net.dtype).commit([(net.flat, watch.flat)], self._state,
                                   {"continuation": (watch.flat, parameters)}, [])

    def _parameters(self):
        """What training goes on from: the network's parameters, unless it shows others and they are untouched."""
        if self._state["continuation"] is not None:
            shown, parameters = self._state["continuation"]
            if np.array_equal(shown.view(np.uint8), self._net.flat.view(np.uint8)):
                return parameters
        return self._net.flat

    def _run_epoch(self, engine, data, order, workers, check_finite, validation, watch):
        """An epoch, or the rest of one; whether it ended. One that fails changes nothing, one that is cut goes on."""
        started = time.perf_counter()
        n, n_batches = len(order), -(-len(order) // self._batch_size)
        updates = self._state["updates"]
        first, loss_sum, weight_sum, _, *counts = self._state["partial"] or (0, 0.0, 0.0, n, 0.0, 0.0)
        if self._shuffle:
            engine.set_order(order, self._state["epoch"])
        rates, momenta = self._rates_and_momenta(updates, n_batches - first)
        # an epoch that was interrupted after its last batch has no rates left
        lr = float(rates[-1]) if len(rates) else self._optimizer.lr_at(updates - 1, self.epoch, self._history)
        engine.begin_epoch(order, rates, momenta, first, updates, loss_sum, weight_sum, *counts,
                           self._state["l1_total"], check_finite)
        if self._stopping:
            engine.request_stop()
        outcome = None
        try:
            if callable(self._loss):
                outcome = self._run_with_python_loss(engine, data, order, workers)
            else:
                outcome = engine.run(workers)
            self._check(engine, outcome, data, n_batches)
            if engine.error is not None:
                raise engine.error
            if outcome == "completed":
                entries = {"lr": lr, "seconds": time.perf_counter() - started}
                self._end_epoch(engine, n, momenta[-1], validation, watch, entries)
                return True
        except KeyboardInterrupt:
            if outcome != "abandoned" and engine.parameters_finite():
                self._keep_part(engine, n, momenta[engine.next_batch - first], watch)
            raise
        self._keep_part(engine, n, momenta[engine.next_batch - first], watch)
        return False

    def _check(self, engine, outcome, data, n_batches):
        """That what the engine holds may be kept."""
        if outcome == "abandoned":
            raise RuntimeError("a signal handler forked this process in the middle of a batch on several threads; the "
                               "network is as after the last epoch")
        if outcome == "bad input":
            boundary.check_features_finite("X", data.X, data.features, self._net.dtype)
            raise ValueError("X changed while it was read: it held a value that is not finite")
        overflows = not math.isfinite(engine.loss_sum)  # of large weights
        if outcome == "diverged" or overflows or not engine.parameters_finite():
            if engine.error is not None:
                raise engine.error
            if outcome == "diverged":
                what = "the loss is" if self._optimizer.clip_norm is None else "the loss, or its gradient's norm, is"
            elif overflows:
                what = "the sum of the weighted losses is"
            else:
                what = "at the epoch's end the parameters, or what the optimizer keeps of them, are"
            batch = min(engine.next_batch, n_batches - 1)
            raise DivergenceError(f"epoch {self.epoch}, batch {batch}: {what} not finite; the network is as after the "
                                  f"last epoch that was finite")

    def _rates_and_momenta(self, updates, n):
        """Of the epoch's remaining n steps, and the momentum of the next epoch's first."""
        optimizer, epoch, history = self._optimizer, self.epoch, self._history
        steps = range(updates, updates + n)
        if _by_step(optimizer.lr):
            rates = np.array([boundary.fits(f"lr({t})", optimizer.lr_at(t), self._net.dtype) for t in steps])
        else:
            rate = optimizer.lr_at(updates, epoch, history)
            rates = np.full(n, boundary.fits(f"lr({epoch})", rate, self._net.dtype))
        if _by_step(optimizer.momentum):
            momenta = np.array([optimizer.momentum_at(t) for t in steps])
        else:
            momenta = np.full(n, optimizer.momentum_at(updates, epoch))
        last = optimizer.momentum_at(updates + n, epoch + 1) if optimizer.shows_theta else 0.0
        return rates, np.append(momenta, last)

    def _run_with_python_loss(self, engine, data, order, workers):
        net = self._net
        scores = np.empty((min(self._batch_size, len(order)), net.sizes[-1]), net.dtype)
        while True:
            outcome, n = engine.forward_batch(scores, workers)
            if outcome != "paused":
                return outcome
            start = engine.next_batch * self._batch_size
            value, dscores = boundary.loss_result(
                self._loss(scores[:n].copy(), data.y[order[start : start + n]]), scores[:n])
            if not (math.isfinite(value * n) and np.isfinite(dscores).all()):
                return "diverged"
            outcome = engine.backward_batch(dscores, value * n, workers)
            if outcome != "paused":
                return outcome

    def _keep_part(self, engine, n, momentum, watch):
        """The engine's position in the epoch, and what belongs to it, become the trainer's."""
        if engine.update_count > self._state["updates"]:
            partial = (engine.next_batch, engine.loss_sum, engine.weight_sum, n, engine.n_correct, engine.n_in_top)
            self._take_over(engine, self._theta(engine, momentum), {"partial": partial, "watch": watch}, [], [])

    def _end_epoch(self, engine, n, momentum, validation, watch, entries):
        """What follows an epoch's last batch. All that can fail comes before the trainer changes."""
        net, history, after = self._net, self._history, self._net
        theta = self._theta(engine, momentum)
        if validation is not None or self._optimizer.l1 or self._optimizer.l2:
            after = net.copy()
            if theta is None:
                engine.store(after.flat, None)
            else:
                after.flat[...] = theta[0]
        mean = engine.loss_sum / engine.weight_sum if engine.weight_sum > 0 else 0.0
        entries = dict.fromkeys(HISTORY, math.nan) | entries | {"loss": mean + self._penalty(after, n)}
        if self._loss in boundary.LABEL_LOSSES:
            entries["accuracy"] = engine.n_correct / n
        if self._top_k is not None:
            entries["top_k_accuracy"] = engine.n_in_top / n
        if validation is not None:
            entries |= self._validate(after, validation)
        copies = []
        if watch is not None:
            watch, copies = watch.after(entries[watch.rule.monitor], net.flat)
        self._take_over(engine, theta, {"epoch": self._state["epoch"] + 1, "partial": None, "watch": watch}, copies,
                        [(getattr(history, name), value) for name, value in entries.items()])

    def _theta(self, engine, momentum):
        """Where the network shows theta = W + mV, whose zeros are exact: theta, W and V."""
        if not self._optimizer.shows_theta:
            return None
        parameters, velocity = np.empty_like(self._net.flat), np.empty_like(self._net.flat)
        engine.store(parameters, velocity)
        # the product is rounded by itself, as in the step
        return parameters + self._net.dtype.type(momentum) * velocity, parameters, velocity

    def _take_over(self, engine, theta, changes, copies, entries):
        """The engine's parameters and moments become the trainer's, with changes, copies and entries: all or none."""
        net = self._net
        changes |= {"updates": engine.update_count, "l1_total": engine.l1_total,
                    "continuation": None if theta is None else theta[:2]}
        if theta is None:
            core(net.dtype).commit(copies, self._state, changes, entries, engine, net.flat, self._moments)
        else:
            copies = [(net.flat, theta[0]), (self._moments, theta[2]), *copies]
            core(net.dtype).commit(copies, self._state, changes, entries)

    def _is_to_stop(self, watch, target_loss, callbacks):
        stop = watch is not None and watch.ended
        stop |= target_loss is not None and self._history.loss[-1] < target_loss
        for callback in callbacks:
            answer = callback(self)
            if answer is not None and answer is not True:
                raise TypeError(f"a callback must return True to stop or None to go on, got {answer!r}")
            stop |= answer is True
        return stop

    def _penalty(self, net, n):
        optimizer = self._optimizer
        share = 1 / min(self._batch_size, n) if optimizer.settings["penalty_scale"] == "batch" else 1
        l1, l2 = optimizer.l1 * share, optimizer.l2 * share
        if l1 == 0 and l2 == 0:
            return 0.0
        arrays = [*net.weights, *(net.biases if optimizer.decays_bias else ())]
        sums = [core(net.dtype).call_penalty(array.reshape(-1)) for array in arrays]
        return l1 * math.fsum(s[0] for s in sums) + l2 * math.fsum(s[1] for s in sums)

    @property
    def _loss_option(self):
        """The one that the loss's kernel takes."""
        return self._delta if self._loss == "huber" else self._smoothing

    def _validate(self, net, data):
        """The entries of a data set: the weighted mean loss, inf where scores overflow or leave its domain, ..."""
        value, right, in_top = self._evaluate(net, data)
        return {"val_loss": value if math.isfinite(value) else math.inf, "val_accuracy": right,
                "val_top_k_accuracy": in_top}

    def _scores(self, net, X):
        """The network's scores; nan where they overflow."""
        try:
            return net.forward(X, self._n_threads)
        except OverflowError:
            return np.full((len(X), net.sizes[-1]), math.nan, net.dtype)

    def _evaluate(self, net, data):
        kernels = core(net.dtype)
        n = data.features.n
        if callable(self._loss):
            scores = self._scores(net, data.X)
            return boundary.loss_result(self._loss(scores.copy(), data.y.copy()), scores)[0], math.nan, math.nan
        total, right, in_top = 0.0, 0 if data.labels is not None else math.nan, 0 if self._top_k else math.nan
        for start in range(0, n, ROWS_A_VALIDATION_CHUNK):
            rows = slice(start, start + ROWS_A_VALIDATION_CHUNK)
            scores = self._scores(net, data.X[rows])
            labels, targets, weight = (None if a is None else a[rows] for a in (data.labels, data.targets, data.weight))
            losses = np.empty(len(scores), net.dtype)
            kernels.call_loss(kernels.LOSSES[self._loss], scores, labels, targets, None, losses, np.empty_like(scores),
                              self._loss_option)
            if labels is not None:
                if not kernels.call_all_finite(scores.reshape(-1)):
                    return math.nan, math.nan, math.nan
                ranks = ranks_of_labels(scores, labels)
                right += int(np.count_nonzero(ranks == 0))
                in_top += int(np.count_nonzero(ranks < (self._top_k or 0)))
            total += kernels.call_weighted_sum(losses, weight)
        total /= n if data.weight is None else kernels.call_weighted_sum(data.weight, None)
        return total, right / n, in_top / n

    def __copy__(self):
        """A trainer of its own: two cannot share what a fit changes."""
        return copy.deepcopy(self)

    def __getstate__(self):
        """All but what belongs to a running fit and to this machine."""
        if self._turn.is_anothers():
            raise RuntimeError("a fit is running in another thread: copy in a callback, or stop it first")
        return {name: value for name, value in vars(self).items() if name not in ("_turn", "_engine")}

    def __setstate__(self, state):
        vars(self).update(state, _turn=core(state["_net"].dtype).Turn(), _engine=None, _stopping=False)

    # -- checkpoints --------------------------------------------------------------------------------------------

    @boundary.memory_errors
    def save(self, path):
        """Writes everything that `fit` needs to go on with the same bits; callables are not stored.

        A callback may save: the state is that of the end of the epoch.

        Raises
        ------
        OSError
            The file cannot be written; an old one is as it was.
        ValueError
            A parameter is not finite, or the history's columns were changed.
        RuntimeError
            A fit is running in another thread.
        """
        if self._turn.is_anothers():
            raise RuntimeError("a fit is running in another thread: save from a callback, or stop it first")
        with contextlib.nullcontext() if self._turn.is_mine() else self._turn:
            self._write(path)

    def _write(self, path):
        boundary.check_parameters(self._net.flat)
        optimizer, history = self._optimizer, self._history
        for name in HISTORY:
            if len(getattr(history, name)) != self.epoch:
                raise ValueError(f"history.{name} has {len(getattr(history, name))} entries, not one for each of the "
                                 f"{self.epoch} epochs")
        watch, continuation = self._state["watch"], self._state["continuation"]
        tensors = {name: np.array(getattr(history, name), np.float64) for name in HISTORY}
        tensors |= {"flat": self._net.flat, "velocity": self._moments}
        if continuation is not None:
            tensors["shown"], tensors["parameters"] = continuation
        if watch is not None:
            tensors["best"] = watch.flat
        description = {
            "kind": "checkpoint",
            "network": files.network_description(self._net),
            "loss": None if callable(self._loss) else self._loss, "loss_options": self._loss_options,
            "top_k": self._top_k,
            "optimizer": {"name": type(optimizer).__name__} | {
                field.name: _stored(getattr(optimizer, field.name)) for field in dataclasses.fields(optimizer)},
            "batch_size": self._batch_size, "shuffle": self._shuffle, "seed": self._seed, "n_threads": self._n_threads,
            "epoch": self._state["epoch"], "updates": self._state["updates"], "partial": self._state["partial"],
            "l1_total": self._state["l1_total"],
            "watch": None if watch is None else dataclasses.asdict(watch.rule) | {
                "best": watch.best, "waited": watch.waited},
        }
        files.write(path, {name: tensor for name, tensor in tensors.items() if tensor is not None}, description)

    @classmethod
    @boundary.memory_errors
    def load(cls, path, loss=None, lr=None, momentum=None, loss_options=None):
        """The trainer that `save` wrote; its `fit` goes on with the same bits.

        Parameters
        ----------
        path : path
        loss, lr, momentum : callable or schedule, optional
            To be passed again if they were callables; schedules of this package are stored. A passed one replaces a
            stored one.
        loss_options : dict, optional
            Of a loss that is passed and is not the stored one, which keeps its own.

        Raises
        ------
        ModelFormatError
            The file is not a checkpoint that this version can read.
        ValueError
            A callable that was in use is not passed.
        """
        tensors, description = files.read(path, "checkpoint")
        with files.refusing(path):
            options = {name: _restored(value) for name, value in description["optimizer"].items()}
            fields = [name for name in ("lr", "momentum") if name in options]
            stored = {"loss": description["loss"]} | {name: options[name] for name in fields}
        given = {"loss": loss, "lr": lr, "momentum": momentum}
        if momentum is not None and "momentum" not in stored:
            raise ValueError(f"momentum is not an argument of {options.get('name', 'SGD')}")
        for name in stored:
            if given[name] is None and stored[name] is None:
                raise ValueError(f"{name} was a Python callable, which is not stored: pass it again as {name}=")
        with files.refusing(path):
            # files of the first builds name none
            rule = OPTIMIZERS[options.pop("name", "SGD")]
            # stands for a callable, which is put in its place below
            optimizer = rule(**options | {name: 0.5 for name in fields if options[name] is None})
            trainer = cls(
                files.network_from(MLP, description["network"], tensors["flat"]),
                loss=stored["loss"] or given["loss"], optimizer=optimizer, batch_size=description["batch_size"],
                shuffle=description["shuffle"], seed=description["seed"], n_threads=description["n_threads"],
                # files of the first builds have neither
                loss_options=description.get("loss_options"), top_k=description.get("top_k"),
            )
            trainer._restore(tensors, description)
        if loss is not None and (loss != stored["loss"] or loss_options is not None):
            other = cls(trainer.net, loss=loss, optimizer=optimizer, loss_options=loss_options)
            for name in ("_loss", "_loss_options", "_class_weight", "_smoothing", "_delta", "_top_k"):
                setattr(trainer, name, getattr(other, name))
        elif loss_options is not None:
            raise ValueError("loss_options: pass the loss that they belong to as well")
        replaced = {name: given[name] for name in fields if given[name] is not None}
        if replaced:
            trainer._optimizer = dataclasses.replace(optimizer, **replaced)
            trainer._optimizer.check_fits(trainer.net.dtype)
            if trainer._optimizer.moment_names != optimizer.moment_names:
                raise ValueError("momentum: the stored training has none" if not optimizer.moment_names
                                 else "momentum: the stored training has some")
        return trainer

    def _restore(self, tensors, description):
        """All that a fresh trainer of that description lacks; what does not fit together is a ValueError."""
        epoch = boundary.integer("epoch", description["epoch"], 0)
        if any(tensors[name].shape != (epoch,) for name in HISTORY if name in tensors or name not in LATE):
            raise ValueError(f"the history has not {epoch} entries a column")
        for name in HISTORY:
            getattr(self._history, name).extend(tensors[name].tolist() if name in tensors else [math.nan] * epoch)
        # copies, for a tensor of a file holds all of it
        flats = {name: boundary.data(name, tensors[name], self._net.flat.shape, self._net.dtype).copy()
                 for name in ("shown", "parameters", "best") if name in tensors}
        if self._moments is not None:
            self._moments[...] = boundary.data("velocity", tensors["velocity"], self._moments.shape, self._net.dtype)
        partial, watch = description["partial"], description["watch"]
        if partial is not None:
            batch, loss_sum, weight_sum, n, *counts = partial
            counts = (*counts, 0.0, 0.0)[:2]
            n = boundary.integer("samples", n, 1)
            partial = (boundary.integer("batch", batch, 1, -(-n // self._batch_size)),
                       boundary.number("loss", loss_sum), boundary.number("weight", weight_sum, least=0.0), n,
                       *(boundary.number("count", count, least=0.0) for count in counts))
        if watch is not None:
            rule = dict(watch)
            best, waited = boundary.one_number("best", rule.pop("best")), rule.pop("waited")
            watch = _Watch(EarlyStopping(**rule), best, boundary.integer("waited", waited, 0), flats.get("best"))
        self._state.update(
            epoch=epoch, updates=boundary.integer("updates", description["updates"], 0, 2**62), partial=partial,
            # files of the first builds have none
            l1_total=boundary.number("l1_total", description.get("l1_total", 0.0), least=0.0),
            continuation=(flats["shown"], flats["parameters"]) if "shown" in flats else None, watch=watch,
        )


def _by_step(value):
    """Whether a rate or a momentum may be another at every step."""
    return callable(value) and not schedules.by_epoch(value)


def _stored(value):
    """A hyper-parameter as a file holds it; None for a callable."""
    if type(value) in schedules.SCHEDULES.values():
        return {"schedule": type(value).__name__} | dataclasses.asdict(value)
    return None if callable(value) else value


def _restored(value):
    if not isinstance(value, dict):
        return value
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items() if name != "schedule"}
    return schedules.SCHEDULES[value["schedule"]](**options)


def _callables(name, values):
    if callable(values):
        return [values]
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{name} must be a list of callables, got {values!r}")
    for i, value in enumerate(values):
        if not callable(value):
            raise TypeError(f"{name}[{i}] must be callable, got {value!r}")
    return values


class _NoBar:
    """In place of a progress bar."""

    def update_losses(self, history):
        pass

    def close(self):
        pass


class _Bar:
    """tqdm's bar over epochs, with the losses of the last one."""

    def __init__(self, tqdm, epochs):
        self._bar = tqdm(total=epochs, unit="epoch", file=sys.stderr)

    def update_losses(self, history):
        losses = {"loss": f"{history.loss[-1]:.4f}"}
        if not math.isnan(history.val_loss[-1]):
            losses["val_loss"] = f"{history.val_loss[-1]:.4f}"
        self._bar.set_postfix(losses, refresh=False)
        self._bar.update()

    def close(self):
        self._bar.close()


def _progress_bar(wanted, epochs):
    if not boundary.flag("progress", wanted):
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        warnings.warn("progress=True needs tqdm (the extra 'progress'): no bar is drawn", RuntimeWarning, stacklevel=3)
        return _NoBar()
    return _Bar(tqdm, epochs)

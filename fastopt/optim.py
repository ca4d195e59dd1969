"""Update rules: single steps on arrays, and the optimizer that a Trainer or a loop of your own runs."""

import dataclasses
import math

import numpy as np

from . import boundary
from ._dispatch import core
from .schedules import ReduceOnPlateau, by_epoch


def _step(rule, param, grad, velocity, lr, momentum, weight_decay, l1):
    p = boundary.parameter("param", param)
    inputs = {"param": param}
    if velocity is not None:
        boundary.output("velocity", velocity, p.shape, p.dtype, inputs)
        inputs["velocity"] = velocity
    numbers = [
        boundary.number("lr", lr, least=0.0),
        boundary.number("momentum", momentum, least=0.0, below=1.0),
        boundary.number("weight_decay", weight_decay, least=0.0),
        boundary.number("l1", l1, least=0.0),
    ]
    for name, value in zip(("lr", "momentum", "weight_decay", "l1"), numbers, strict=True):
        boundary.fits(name, value, p.dtype)
    g = boundary.data("grad", grad, p.shape, p.dtype)
    for name, array in inputs.items():
        boundary.output(name, array, p.shape, p.dtype, {"grad": grad})
    kernels = core(p.dtype)
    flat_velocity = None if velocity is None else velocity.reshape(-1)
    kernels.call_step(kernels.RULES[rule], p.reshape(-1), g.reshape(-1), flat_velocity, *numbers)


def sgd_step(param, grad, *, lr, weight_decay=0.0, l1=0.0):
    r"""One step of gradient descent, in place.

    .. math:: W \leftarrow S(W - \alpha g), \qquad g = \nabla W + wd\, W

    S is the soft threshold at α l1, the identity without l1 (proximal gradient: Parikh & Boyd 2014, § 4.2).

    Parameters
    ----------
    param : ndarray, float32 or float64
        W, updated in place: C-contiguous, writable.
    grad : array_like of the same shape
        Converted to the dtype of `param`.
    lr : float >= 0
        The learning rate α.
    weight_decay : float >= 0
        wd, a multiple of the parameter added to its gradient; l2 * sum(W**2) in the loss is wd = 2 l2.
    l1 : float >= 0
        The penalty l1 * sum(|W|); parameters become exact zeros.

    Raises
    ------
    ValueError, TypeError
        A hyper-parameter out of range, an array that cannot be updated in place or whose shapes differ, a gradient
        that is not finite; nothing is touched then.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> weight = np.array([1.0, -2.0])
    >>> fo.sgd_step(weight, [0.5, 0.5], lr=0.1)
    >>> weight
    array([ 0.95, -2.05])
    """
    _step("sgd", param, grad, None, lr, 0.0, weight_decay, l1)


def momentum_step(param, grad, velocity, *, lr, momentum=0.9, weight_decay=0.0, l1=0.0):
    r"""One step with momentum, in place; the learning rate is inside the velocity.

    .. math:: V \leftarrow \gamma V + \alpha g, \quad W \leftarrow W - V, \qquad g = \nabla W + wd\, W

    With l1: W⁺ = S(W - γV - αg), V ← W - W⁺, W ← W⁺, S the soft threshold at α l1, which reaches the minimiser of
    the penalised loss as written. Sources: Polyak 1964; Rumelhart, Hinton & Williams 1986.

    Parameters
    ----------
    param, velocity : ndarray, float32 or float64
        W and V, updated in place: C-contiguous, writable, of one shape and dtype. V starts at zero.
    grad : array_like of the same shape
        Converted to the dtype of `param`.
    lr : float >= 0
        The learning rate α.
    momentum : float in [0, 1)
        γ
    weight_decay, l1 : float >= 0
        As `sgd_step`.

    Raises
    ------
    ValueError, TypeError
        As `sgd_step`.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> weight, velocity = np.array([1.0]), np.array([0.5])
    >>> fo.momentum_step(weight, [1.0], velocity, lr=0.1)
    >>> weight, velocity
    (array([0.45]), array([0.55]))
    """
    boundary.parameter("velocity", velocity)
    _step("momentum", param, grad, velocity, lr, momentum, weight_decay, l1)


def nesterov_step(param, grad, velocity, *, lr, momentum=0.9, weight_decay=0.0, l1=0.0):
    r"""One step with Nesterov momentum in gradient-shift form, in place; the learning rate is inside the velocity.

    .. math::
        V \leftarrow \gamma V + \alpha g, \quad W \leftarrow W - (\gamma V + \alpha g), \qquad g = \nabla W + wd\, W

    W is the point that the gradient is taken at. With l1: θ = W + γV, θ⁺ = S(W - αg), V ← θ - θ⁺, W ← θ⁺ - γV, S the
    soft threshold at α l1; the sparse iterate is θ⁺ = W + γV. Sources: Sutskever et al. 2013; Beck & Teboulle 2009.

    Parameters
    ----------
    param, velocity : ndarray, float32 or float64
        W and V, updated in place: C-contiguous, writable, of one shape and dtype. V starts at zero.
    grad : array_like of the same shape
        Converted to the dtype of `param`.
    lr : float >= 0
        The learning rate α.
    momentum : float in [0, 1)
        γ
    weight_decay, l1 : float >= 0
        As `sgd_step`.

    Raises
    ------
    ValueError, TypeError
        As `sgd_step`.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> weight, velocity = np.array([1.0]), np.array([0.5])
    >>> fo.nesterov_step(weight, [1.0], velocity, lr=0.1)
    >>> weight.round(3), velocity
    (array([0.405]), array([0.55]))
    """
    boundary.parameter("velocity", velocity)
    _step("nesterov", param, grad, velocity, lr, momentum, weight_decay, l1)


#: What each convention fixes; a flag that is not here is free under it.
CONVENTIONS = {
    "classic": {},
    "torch": {"lr_in_velocity": False, "dampen_first": False, "decay": "coupled", "decay_bias": True,
              "penalty_scale": "loss"},
    "keras": {"lr_in_velocity": True, "dampening": 0.0, "decay": "decoupled", "decay_order": "before",
              "decay_bias": True, "penalty_scale": "loss", "l1_mode": "subgradient"},
    "optax": {"lr_in_velocity": False, "dampening": 0.0, "decay": "coupled", "decay_bias": True,
              "penalty_scale": "loss"},
    "sklearn_mlp": {"lr_in_velocity": True, "dampening": 0.0, "decay": "coupled", "decay_bias": False,
                    "penalty_scale": "batch"},
    "sklearn_sgd": {"momentum": 0.0, "dampening": 0.0, "decay": "decoupled", "decay_order": "before",
                    "decay_floor": True, "decay_bias": False, "penalty_scale": "loss", "l1_mode": "cumulative"},
}
#: The textbook's, where neither the convention nor the caller says otherwise.
FLAGS = {"lr_in_velocity": True, "dampening": 0.0, "dampen_first": True, "decay": "coupled", "decay_order": "before",
         "decay_bias": False, "penalty_scale": "loss", "l1_mode": "prox", "decay_floor": False}
CHOICES = {"decay": ("coupled", "decoupled", "independent"), "decay_order": ("before", "after"),
           "penalty_scale": ("loss", "batch"), "l1_mode": ("prox", "subgradient", "cumulative")}


@dataclasses.dataclass(eq=False)
class OptimizerState:
    """What `update` carries from step to step: the rule's name, the step's number, the moments of each array, which
    arrays decay, and the sum of the cumulative l1 so far."""

    rule: str
    step: int
    moments: list
    decay: list
    l1_total: float = 0.0

    @property
    def velocity(self):
        """The first moment of each array: V, of rules that have one."""
        return [moments[0] for moments in self.moments if moments]


class Optimizer:
    """What all optimizers share: `init` and `update` for loops of your own, and what a Trainer asks of them.

    A subclass is a frozen dataclass with `lr`, `weight_decay`, `l1`, `l2` and `decay_bias`, and says `rule`, `settings`
    and `moment_names`.
    """

    def _check(self, **checked):
        """Sets Python's own numbers, which files hold."""
        if not callable(self.lr):
            checked["lr"] = boundary.number("lr", self.lr, above=0.0)
        for name in ("weight_decay", "l1", "l2"):
            checked[name] = boundary.number(name, getattr(self, name), least=0.0)
        for name in ("clip_value", "clip_norm"):
            if getattr(self, name) is not None:
                checked[name] = boundary.number(name, getattr(self, name), above=0.0)
        if self.clip_value is not None and self.clip_norm is not None:
            raise ValueError("clip_value and clip_norm exclude each other")
        if self.decay_bias is not None:
            checked["decay_bias"] = boundary.flag("decay_bias", self.decay_bias)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def penalised(self):
        """Whether any decay or penalty acts."""
        return self.weight_decay > 0 or self.l1 > 0 or self.l2 > 0

    @property
    def decays_bias(self):
        """Whether biases decay and are penalised too."""
        return bool(self.settings["decay_bias"])

    def lr_at(self, step, epoch=None, history=None):
        """The learning rate of a step and epoch, counted from 0; `history` is that of the epochs before."""
        return _at("lr", self.lr, step, epoch, history)

    def momentum_at(self, step, epoch=None):
        """The momentum of a step and epoch, counted from 0."""
        return _at("momentum", self.momentum, step, epoch, None)

    def check_fits(self, dtype):
        """That the constants stay finite in the dtype."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float):
                boundary.fits(field.name, value, dtype)

    def init(self, params, decay=None):
        """The state for `update`: zero moments, step 0.

        Parameters
        ----------
        params : MLP, ndarray or list of ndarrays
        decay : bool or list of bool, optional
            Whether each array decays and is penalised; by default those of two or more dimensions do (all with
            decay_bias=True). A bare 1-D array with a penalty must say.

        Raises
        ------
        ValueError, TypeError
            Arrays that cannot be updated in place; decay of another length, or missing for a bare 1-D array.
        """
        arrays = _arrays("params", params)
        for name, array in arrays:
            boundary.parameter(name, array)
        if decay is None:
            convention = CONVENTIONS[getattr(self, "convention", "classic")]
            said = self.decay_bias is not None or "decay_bias" in convention
            if isinstance(params, np.ndarray) and params.ndim < 2 and self.penalised and not said:
                raise ValueError("decay must be given for a bare 1-D array: True to penalise it, False not to")
            flags = [array.ndim >= 2 or self.decays_bias for _, array in arrays]
        else:
            flags = list(decay) if np.ndim(decay) == 1 else [boundary.flag("decay", decay)]
            if len(flags) != len(arrays):
                raise ValueError(f"decay must have {len(arrays)} entries, got {len(flags)}")
            flags = [boundary.flag(f"decay[{i}]", value) for i, value in enumerate(flags)]
        moments = [[np.full_like(array, self.first_moment) for _ in self.moment_names] for _, array in arrays]
        return OptimizerState(self.rule, 0, moments, flags)

    def update(self, params, grads, state):
        """One step of all arrays, in place; `state` advances.

        Parameters
        ----------
        params : MLP, ndarray or list of ndarrays
            As given to `init`. After a step of Nesterov with l1 the sparse iterate is W + γV with the next step's γ
            (see `nesterov_step`).
        grads : of the form of `params`; for an MLP the flat gradient of `loss_and_grad`, or a list
        state : OptimizerState

        Raises
        ------
        ValueError, TypeError
            As the step functions, for any of the arrays; nothing is touched then.
        """
        arrays = _arrays("params", params)
        gradients = _gradients(params, grads, arrays)
        if not isinstance(state, OptimizerState):
            raise TypeError(f"state must be what init returned, got {type(state).__name__}")
        if not len(gradients) == len(state.decay) == len(state.moments) == len(arrays):
            raise ValueError(f"grads and state must have {len(arrays)} arrays, got {len(gradients)} and "
                             f"{len(state.decay)}")
        if state.rule != self.rule:
            raise ValueError(f"state was made for another rule: {state.rule}, not {self.rule}")
        settings, step = self.settings, boundary.integer("state.step", state.step, 0)
        if settings["penalty_scale"] == "batch" and self.penalised:
            raise ValueError('penalty_scale="batch" needs the number of samples, which update does not know: divide '
                             "the penalties yourself, or train with a Trainer")
        lr, momentum = self.lr_at(step), self.momentum_at(step)
        momenta = momentum, self.momentum_at(step + 1) if self.shows_theta else momentum
        l1_total, squares, calls = state.l1_total + lr * self.l1, 0.0, []
        for i, (name, array) in enumerate(arrays):
            param = boundary.parameter(name, array)
            self.check_fits(param.dtype)
            boundary.fits(f"lr({step})" if callable(self.lr) else "lr", lr, param.dtype)
            grad = boundary.data(gradients[i][0], gradients[i][1], param.shape, param.dtype)
            if len(state.moments[i]) != len(self.moment_names):
                raise ValueError(f"state was made for another rule: {self.rule} keeps {len(self.moment_names)} arrays, "
                                 f"not {len(state.moments[i])}")
            outputs = {name: param}
            for moment, values in zip(self.moment_names, state.moments[i], strict=True):
                boundary.output(f"the {moment} of {name}", values, param.shape, param.dtype, outputs)
                outputs[f"the {moment} of {name}"] = values
            boundary.check_apart(outputs, dict(gradients) | dict(arrays[:i]))
            calls.append((param.reshape(-1), grad.reshape(-1), [values.reshape(-1) for values in state.moments[i]]))
            if self.clip_norm is not None:
                squares += core(param.dtype).call_penalty(calls[i][1])[1]
        if not math.isfinite(squares):
            raise OverflowError("the norm of grads overflows")
        numbers = kernel_settings(self)
        for decays, call in zip(state.decay, calls, strict=True):
            core(call[0].dtype).call_update(numbers, step, lr, *momenta, l1_total, squares, decays, *call)
        state.step, state.l1_total = step + 1, l1_total


def _at(name, value, step, epoch, history):
    if not callable(value):
        return value
    if isinstance(value, ReduceOnPlateau):
        if history is None:
            raise ValueError(f"{name}: ReduceOnPlateau needs the history of a Trainer")
        return value.after(getattr(history, value.monitor))
    if by_epoch(value) and epoch is None:
        raise ValueError(f"{name}: a schedule per epoch needs a Trainer, which counts them")
    t = epoch if by_epoch(value) else step
    below = 1.0 if name == "momentum" else math.inf
    return boundary.number(f"{name}({t})", value(t), least=0.0, below=below)


def kernel_settings(optimizer):
    """The optimizer's settings by the names that the kernels know."""
    s = optimizer.settings
    return {
        "rule": optimizer.rule, "l1_mode": s["l1_mode"],
        "decay": s["decay"], "decay_after": s["decay_order"] == "after", "rate_inside": s["lr_in_velocity"],
        "damp_first": s["dampen_first"], "per_batch": s["penalty_scale"] == "batch",
        "eps_inside": s.get("eps_inside", False), "decay_bias": s["decay_bias"], "dampening": s["dampening"],
        "weight_decay": optimizer.weight_decay, "l1": optimizer.l1, "l2": optimizer.l2, "beta": s.get("beta", 0.0),
        "eps": s.get("eps", 0.0), "clip_value": math.inf if optimizer.clip_value is None else optimizer.clip_value,
        "decay_floor": s["decay_floor"], "clip_norm": math.inf if optimizer.clip_norm is None else optimizer.clip_norm,
    }


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    r"""Stochastic gradient descent, plain, with momentum, or with Nesterov momentum.

    .. math::
        g &= \nabla W + (wd + 2\, l2)\, W \\
        \text{plain:} \quad W &\leftarrow W - \alpha g \\
        \text{momentum:} \quad V &\leftarrow \gamma V + \alpha g, \quad W \leftarrow W - V \\
        \text{Nesterov:} \quad V &\leftarrow \gamma V + \alpha g, \quad W \leftarrow W - (\gamma V + \alpha g)

    from V = 0; l1 acts by the proximal forms of `sgd_step`, `momentum_step` and `nesterov_step`. Immutable. The flags
    below change one thing each, and `convention` all that another library does differently: docs/semantics.md has them
    side by side.

    Parameters
    ----------
    lr : float > 0, schedule or callable
        The learning rate α; one of `fastopt.schedules`, or a callable lr(step), step counted from 0, may return 0.
    momentum : float in [0, 1), schedule or callable
        γ; 0 is plain gradient descent.
    nesterov : bool
        Needs momentum.
    weight_decay : float >= 0
        Added to the gradient as wd * W; not part of the reported loss.
    l1, l2 : float >= 0
        Penalties l1 * sum(|W|) + l2 * sum(W**2), part of the reported loss.
    decay_bias : bool, optional
        Whether biases decay and are penalised too; None is the convention's, "classic": no.
    clip_value : float > 0, optional
        Every number of the loss's gradient is brought into [-clip_value, clip_value], before decay and penalties.
    clip_norm : float > 0, optional
        The loss's gradient is scaled down where the root of the sum of all its squares, over all weights and biases,
        exceeds this. Training holds a copy of the gradient then.
    convention : {"classic", "torch", "keras", "optax", "sklearn_mlp", "sklearn_sgd"}
        Whose rule it is. A flag given beside it must agree with it.
    lr_in_velocity : bool, optional
        True: V = γV + αg, W -= V. False: V = γV + (1 - τ)g, W -= αV, and Nesterov W -= α(γV + g). They differ once the
        rate changes.
    dampening : float in [0, 1), optional
        τ above; needs momentum, the rate outside the velocity, and no nesterov.
    dampen_first : bool, optional
        False: the first step takes V = g.
    decay : {"coupled", "decoupled", "independent"}, optional
        weight_decay as part of the gradient, or W *= 1 - α wd, or W *= 1 - wd, with the gradient of the W before.
    decay_order : {"before", "after"}, optional
        Whether that factor takes the W before the step or the one after. (In "sklearn_sgd" it is at least 0.)
    penalty_scale : {"loss", "batch"}, optional
        "batch" divides weight_decay, l1 and l2 by the number of the mini-batch's samples.
    l1_mode : {"prox", "subgradient", "cumulative"}, optional
        The proximal forms, exact zeros and the minimiser as written; l1 * sign(W), 0 at 0, in the gradient; or for
        plain descent what each weight owes in sum, never past zero (Tsuruoka, Tsujii & Ananiadou 2009).

    Raises
    ------
    ValueError, TypeError
        A hyper-parameter out of range, or flags that contradict each other or the convention.

    Examples
    --------
    A loop of your own:

    >>> import numpy as np, fastopt as fo
    >>> weight = np.array([[1.0, -2.0]])
    >>> opt = fo.SGD(0.1, momentum=0.9)
    >>> state = opt.init(weight)
    >>> for _ in range(2):
    ...     opt.update(weight, 2 * weight, state)
    >>> weight
    array([[ 0.46, -0.92]])
    """

    lr: object
    _: dataclasses.KW_ONLY
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    decay_bias: bool | None = None
    clip_value: float | None = None
    clip_norm: float | None = None
    convention: str = "classic"
    lr_in_velocity: bool | None = None
    dampening: float | None = None
    dampen_first: bool | None = None
    decay: str | None = None
    decay_order: str | None = None
    penalty_scale: str | None = None
    l1_mode: str | None = None

    first_moment = 0.0

    def __post_init__(self):
        boundary.choice("convention", self.convention, CONVENTIONS)
        checked = {
            "momentum": self.momentum if callable(self.momentum)
            else boundary.number("momentum", self.momentum, least=0.0, below=1.0),
            "nesterov": boundary.flag("nesterov", self.nesterov),
        }
        for name in ("lr_in_velocity", "dampen_first"):
            if getattr(self, name) is not None:
                checked[name] = boundary.flag(name, getattr(self, name))
        if self.dampening is not None:
            checked["dampening"] = boundary.number("dampening", self.dampening, least=0.0, below=1.0)
        for name, allowed in CHOICES.items():
            if getattr(self, name) is not None:
                boundary.choice(name, getattr(self, name), allowed)
        self._check(**checked)
        self._check_together()

    def _check_together(self):
        for name, value in CONVENTIONS[self.convention].items():
            given = getattr(self, name, None)
            if given is not None and given != value:
                raise ValueError(f"convention={self.convention!r} means {name}={value!r}, got {getattr(self, name)!r}")
        s = self.settings
        if isinstance(self.momentum, ReduceOnPlateau):
            raise ValueError("ReduceOnPlateau is for lr, not for momentum")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True needs momentum > 0, got momentum=0")
        if s["dampening"] > 0 and (self.nesterov or not self._has_momentum or s["lr_in_velocity"]):
            raise ValueError("dampening needs momentum > 0, lr_in_velocity=False and nesterov=False")
        if self.dampen_first is False and not self._has_momentum:
            raise ValueError("dampen_first=False needs momentum > 0, got momentum=0")
        if self.decay_order is not None and s["decay"] == "coupled":
            raise ValueError('decay_order needs decay="decoupled" or "independent": a coupled one is in the gradient')
        if s["decay"] == "independent" and self.weight_decay > 1:
            raise ValueError(f'weight_decay must be at most 1 with decay="independent", got {self.weight_decay!r}')
        if self.l1 > 0 and s["l1_mode"] == "cumulative" and self._has_momentum:
            raise ValueError('l1_mode="cumulative" is for plain descent: it needs momentum=0')
        if self.l1 > 0 and s["l1_mode"] == "prox" and self._has_momentum and not s["lr_in_velocity"]:
            raise ValueError('l1_mode="prox" with momentum needs lr_in_velocity=True; with the rate outside, choose '
                             'l1_mode="subgradient"')
        if self.l1 > 0 and s["l1_mode"] == "prox" and self.weight_decay > 0 and s["decay"] != "coupled":
            raise ValueError('l1_mode="prox" needs decay="coupled"')

    @property
    def settings(self):
        """Every flag's value: the caller's, else the convention's, else the textbook's."""
        given = {name: getattr(self, name) for name in FLAGS if getattr(self, name, None) is not None}
        fixed = {name: value for name, value in CONVENTIONS[self.convention].items() if name in FLAGS}
        return FLAGS | fixed | given

    @property
    def rule(self):
        """The name of the rule: "sgd", "momentum" or "nesterov"."""
        return "nesterov" if self.nesterov else "momentum" if self._has_momentum else "sgd"

    @property
    def _has_momentum(self):
        return callable(self.momentum) or self.momentum > 0

    @property
    def moment_names(self):
        """What the rule keeps for each parameter."""
        if self.l1 > 0 and self.settings["l1_mode"] == "cumulative":
            return ("paid penalty",)
        return () if self.rule == "sgd" else ("velocity",)

    @property
    def shows_theta(self):
        """Whether the sparse iterate of Nesterov's proximal form is W + γV."""
        return self.nesterov and self.l1 > 0 and self.settings["l1_mode"] == "prox"


def _arrays(name, params):
    """(name, array) of each array of a network, a list, or of one array."""
    if hasattr(params, "weights"):
        pairs = zip(params.weights, params.biases, strict=True)
        return [
            (f"{kind}[{i}]", array)
            for i, pair in enumerate(pairs)
            for kind, array in zip(("weights", "biases"), pair, strict=True)
        ]
    if isinstance(params, np.ndarray):
        return [(name, params)]
    if not isinstance(params, (list, tuple)):
        raise TypeError(f"{name} must be an MLP, an array or a list of arrays, got {type(params).__name__}")
    return [(f"{name}[{i}]", array) for i, array in enumerate(params)]


def _gradients(params, grads, arrays):
    """(name, gradient) for each of the arrays; a network's flat gradient is cut like its buffer."""
    if not hasattr(params, "weights") or not isinstance(grads, np.ndarray):
        return _arrays("grads", grads)
    flat = boundary.data("grads", grads, params.flat.shape, params.flat.dtype)
    ends = np.cumsum([array.size for _, array in arrays])
    pieces = np.split(flat, ends[:-1])
    return [(f"grads of {name}", piece.reshape(array.shape))
            for (name, array), piece in zip(arrays, pieces, strict=True)]

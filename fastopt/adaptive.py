"""Update rules with a step size for each parameter: AdaGrad, RMSProp, AdaDelta, Adam and AdamW."""

import dataclasses

import numpy as np

from . import boundary
from .optim import CHOICES, FLAGS, Optimizer

_PARAMETERS = """
    weight_decay : float >= 0
        wd; not part of the reported loss.
    l1, l2 : float >= 0
        Penalties l1 * sum(|W|) + l2 * sum(W**2), part of the reported loss.
    decay_bias : bool, optional
        Whether biases decay and are penalised too; None is no.
    decay : {"coupled", "decoupled", "independent"}
        wd * W as part of g, or W *= 1 - α wd, or W *= 1 - wd, before the step.
    clip_value, clip_norm : float > 0, optional
        As `SGD`'s.
    eps_inside : bool
        ε under the root, √(s + ε), or beside it, √s + ε.
    l1_mode : {"subgradient", "prox"}
        l1 * sign(W), 0 at 0, as part of g; or a soft threshold at l1 times each parameter's own step size, which gives
        exact zeros and, with coupled decay, the minimiser as written. That step size is α / ε where the gradient has
        been 0 so far: such a weight becomes 0 at once.

    Raises
    ------
    ValueError, TypeError
        A hyper-parameter out of range.
"""


@dataclasses.dataclass(frozen=True)
class _Adaptive(Optimizer):
    lr: object
    _: dataclasses.KW_ONLY
    weight_decay: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    decay_bias: bool | None = None
    decay: str = "coupled"
    clip_value: float | None = None
    clip_norm: float | None = None
    eps_inside: bool = False
    l1_mode: str = "subgradient"
    eps: float = 1e-8

    first_moment = 0.0
    momentum = 0.0
    shows_theta = False

    def __init_subclass__(cls):
        if cls.__doc__:
            cls.__doc__ = cls.__doc__.replace("\n    PENALTIES\n", _PARAMETERS)

    def __post_init__(self):
        boundary.choice("decay", self.decay, CHOICES["decay"])
        boundary.choice("l1_mode", self.l1_mode, ("prox", "subgradient"))
        self._check(
            eps=boundary.number("eps", self.eps, above=0.0), eps_inside=boundary.flag("eps_inside", self.eps_inside),
            **{name: boundary.number(name, getattr(self, name), least=0.0, below=1.0) for name in self._fractions},
        )

    def check_fits(self, dtype):
        """That the constants stay finite in the dtype, and a step with nothing but eps under it."""
        super().check_fits(dtype)
        least = float(np.finfo(dtype).tiny) * 2**20
        if self.eps < least:
            raise ValueError(f"eps must be at least {least:.2g} in {dtype}, got {self.eps!r}")

    @property
    def settings(self):
        """Every flag's value."""
        return FLAGS | {
            "lr_in_velocity": False, "decay": self.decay, "decay_bias": bool(self.decay_bias), "l1_mode": self.l1_mode,
            "eps_inside": self.eps_inside, "eps": self.eps,
            # how much of the squares stays
            "beta": getattr(self, "rho", getattr(self, "beta2", 0.0)),
        }


@dataclasses.dataclass(frozen=True)
class AdaGrad(_Adaptive):
    r"""Steps by the root of the sum of squared gradients.

    .. math:: s \leftarrow s + g^2, \qquad W \leftarrow W - \alpha\, g / (\sqrt{s} + \varepsilon)

    Source: Duchi, Hazan & Singer 2011. Immutable.

    Parameters
    ----------
    lr : float > 0, schedule or callable
        α; one of `fastopt.schedules`, or a callable lr(step), step counted from 0, may return 0.
    initial : float >= 0
        s before the first step.
    eps : float > 0
        ε
    PENALTIES
    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> weight = np.array([[1.0, -2.0]])
    >>> opt = fo.AdaGrad(0.1)
    >>> opt.update(weight, 2 * weight, opt.init(weight))
    >>> weight
    array([[ 0.9, -1.9]])
    """

    _: dataclasses.KW_ONLY
    initial: float = 0.0
    eps: float = 1e-10

    _fractions = ()
    rule = "adagrad"
    moment_names = ("sum of squares",)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "initial", boundary.number("initial", self.initial, least=0.0))

    @property
    def first_moment(self):
        """s before the first step."""
        return self.initial


@dataclasses.dataclass(frozen=True)
class RMSProp(_Adaptive):
    r"""Steps by the root of the running mean of squared gradients.

    .. math:: s \leftarrow \rho s + (1 - \rho) g^2, \qquad W \leftarrow W - \alpha\, g / (\sqrt{s} + \varepsilon)

    With momentum γ: V ← γV + g / (√s + ε), W ← W - αV. Source: Tieleman & Hinton 2012. Immutable.

    Parameters
    ----------
    lr : float > 0, schedule or callable
        α; one of `fastopt.schedules`, or a callable lr(step), step counted from 0, may return 0.
    rho : float in [0, 1)
        ρ
    momentum : float in [0, 1)
        γ; with l1 it needs l1_mode="subgradient". The rate is outside V, as PyTorch's; optax has it inside.
    eps : float > 0
        ε
    PENALTIES
    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> weight = np.array([[1.0, -2.0]])
    >>> opt = fo.RMSProp(0.01, rho=0.75)
    >>> opt.update(weight, 2 * weight, opt.init(weight))
    >>> weight.round(6)
    array([[ 0.98, -1.98]])
    """

    _: dataclasses.KW_ONLY
    rho: float = 0.9
    momentum: float = 0.0

    _fractions = ("rho", "momentum")

    def __post_init__(self):
        super().__post_init__()
        if self.momentum > 0 and self.l1 > 0 and self.l1_mode == "prox":
            raise ValueError('l1 with momentum needs l1_mode="subgradient" in RMSProp')

    @property
    def rule(self):
        """The name of the rule."""
        return "rmsprop_momentum" if self.momentum > 0 else "rmsprop"

    @property
    def moment_names(self):
        """What the rule keeps for each parameter."""
        return ("mean of squares", "velocity") if self.momentum > 0 else ("mean of squares",)


@dataclasses.dataclass(frozen=True)
class AdaDelta(_Adaptive):
    r"""Steps by the ratio of the roots of two running means: of squared steps, and of squared gradients.

    .. math::
        s \leftarrow \rho s + (1 - \rho) g^2, \quad
        \Delta = g \sqrt{d + \varepsilon} / \sqrt{s + \varepsilon}, \quad
        d \leftarrow \rho d + (1 - \rho) \Delta^2, \quad W \leftarrow W - \alpha \Delta

    Both ε stand under the roots. Source: Zeiler 2012. Immutable.

    Parameters
    ----------
    lr : float > 0, schedule or callable
        α; one of `fastopt.schedules`, or a callable lr(step), step counted from 0, may return 0.
    rho : float in [0, 1)
        ρ
    eps : float > 0
        ε
    PENALTIES
    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> weight = np.array([[1.0, -2.0]])
    >>> opt = fo.AdaDelta(eps=1e-4)
    >>> opt.update(weight, 2 * weight, opt.init(weight))
    >>> weight.round(3)
    array([[ 0.968, -1.968]])
    """

    lr: object = 1.0
    _: dataclasses.KW_ONLY
    rho: float = 0.9
    eps: float = 1e-6
    eps_inside: bool = True

    _fractions = ("rho",)
    rule = "adadelta"
    moment_names = ("mean of squares", "mean of squared steps")

    def __post_init__(self):
        super().__post_init__()
        if not self.eps_inside:
            raise ValueError("eps_inside must be True: AdaDelta has both eps under the roots")


@dataclasses.dataclass(frozen=True)
class Adam(_Adaptive):
    r"""Steps by the running mean of gradients and the root of that of their squares, both without their bias to zero.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad s \leftarrow \beta_2 s + (1 - \beta_2) g^2, \quad
        W \leftarrow W - \alpha\, \frac{m / (1 - \beta_1^t)}{\sqrt{s / (1 - \beta_2^t)} + \varepsilon}

    at the step t = 1, 2, ... Source: Kingma & Ba 2015. Immutable.

    Parameters
    ----------
    lr : float > 0, schedule or callable
        α; one of `fastopt.schedules`, or a callable lr(step), step counted from 0, may return 0.
    beta1, beta2 : float in [0, 1)
        β₁ and β₂
    eps : float > 0
        ε
    PENALTIES
    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> weight = np.array([[1.0, -2.0]])
    >>> opt = fo.Adam(0.1)
    >>> opt.update(weight, 2 * weight, opt.init(weight))
    >>> weight.round(6)
    array([[ 0.9, -1.9]])
    """

    lr: object = 0.001
    _: dataclasses.KW_ONLY
    beta1: float = 0.9
    beta2: float = 0.999

    _fractions = ("beta1", "beta2")
    rule = "adam"
    moment_names = ("mean", "mean of squares")

    @property
    def momentum(self):
        """β₁"""
        return self.beta1


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
    r"""Adam with decoupled weight decay.

    .. math:: W \leftarrow (1 - \alpha\, wd) W - \alpha\, \hat m / (\sqrt{\hat s} + \varepsilon)

    with m̂ and ŝ as `Adam`'s, whose g has no decay. Source: Loshchilov & Hutter 2019. Immutable.

    Parameters
    ----------
    lr : float > 0, schedule or callable
        α; one of `fastopt.schedules`, or a callable lr(step), step counted from 0, may return 0.
    beta1, beta2 : float in [0, 1)
        β₁ and β₂
    eps : float > 0
        ε
    PENALTIES
    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> weight = np.array([[1.0, -2.0]])
    >>> opt = fo.AdamW(0.1, weight_decay=0.5)
    >>> opt.update(weight, 2 * weight, opt.init(weight))
    >>> weight.round(6)
    array([[ 0.85, -1.8 ]])
    """

    _: dataclasses.KW_ONLY
    weight_decay: float = 0.01
    decay: str = "decoupled"

"""Schedules for the learning rate and the momentum: values by the step, or by the epoch.

A schedule is a frozen dataclass; called with a step or an epoch, counted from 0, it gives the value. The arithmetic is
the same on every machine: no function of the C library whose last bits differ.
"""

import dataclasses
import math

from . import boundary
from ._dispatch import core


def _power(base, exponent):
    """base**exponent for an integral exponent, by squaring; the C library's last bits differ between machines."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def _half_cosine(x):
    """(1 + cos(pi x)) / 2 for x in [0, 1], as cos(pi x / 2)**2 by the series of the cosine"""
    square = (math.pi * x / 2) ** 2
    total = 1.0
    for k in range(12, 0, -1):
        total = 1 - total * square / (2 * k * (2 * k - 1))
    return total * total


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What all schedules share.

    Parameters
    ----------
    value : float >= 0
        The first or the highest value.
    per : {"step", "epoch"}
        What is counted.
    """

    value: float
    _: dataclasses.KW_ONLY
    per: str = "step"

    def __post_init__(self):
        boundary.choice("per", self.per, ("step", "epoch"))
        for field in dataclasses.fields(self):
            least, most, kind = self._ranges.get(field.name, (0.0, math.inf, float))
            given = getattr(self, field.name)
            if field.name in ("per", "monitor", "starts", "values"):
                continue
            checked = (boundary.integer(field.name, given, least) if kind is int
                       else boundary.number(field.name, given, least=least))
            if checked > most:
                raise ValueError(f"{field.name} must be at most {most}, got {given!r}")
            object.__setattr__(self, field.name, checked)

    _ranges = {}

    def __call__(self, t):
        """The value at the step or epoch t, counted from 0."""
        return self._at(boundary.integer(self.per, t, 0))


def by_epoch(value):
    """Whether a rate or a momentum, whatever it is given as, is a schedule per epoch."""
    return isinstance(value, Schedule) and value.per == "epoch"


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """value

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.schedules.Constant(0.1)(7)
    0.1
    """

    def _at(self, t):
        return self.value


@dataclasses.dataclass(frozen=True)
class Piecewise(Schedule):
    """value, then values[i] from t = starts[i] on.

    Examples
    --------
    A momentum of 0.5 in the first ten epochs, 0.9 later:

    >>> import fastopt as fo
    >>> momentum = fo.schedules.Piecewise(0.5, (10,), (0.9,), per="epoch")
    >>> momentum(9), momentum(10)
    (0.5, 0.9)
    """

    starts: tuple
    values: tuple

    def __post_init__(self):
        super().__post_init__()
        for name in ("starts", "values"):
            if not isinstance(getattr(self, name), (tuple, list)):
                raise TypeError(f"{name} must be a tuple of numbers, got {getattr(self, name)!r}")
        if len(self.starts) != len(self.values):
            raise ValueError(f"starts and values must be of one length, got {len(self.starts)} and {len(self.values)}")
        starts = tuple(boundary.integer(f"starts[{i}]", t, 0) for i, t in enumerate(self.starts))
        if list(starts) != sorted(set(starts)):
            raise ValueError(f"starts must rise, got {self.starts!r}")
        object.__setattr__(self, "starts", starts)
        object.__setattr__(self, "values", tuple(boundary.number(f"values[{i}]", value, least=0.0)
                                                 for i, value in enumerate(self.values)))

    def _at(self, t):
        value = self.value
        for start, later in zip(self.starts, self.values, strict=True):
            value = later if t >= start else value
        return value


@dataclasses.dataclass(frozen=True)
class StepDecay(Schedule):
    """value * factor**(t // every)

    Examples
    --------
    >>> import fastopt as fo
    >>> [fo.schedules.StepDecay(1.0, 2, 0.5)(t) for t in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    every: int
    factor: float

    _ranges = {"every": (1, math.inf, int), "factor": (0.0, 1.0, float)}

    def _at(self, t):
        return self.value * _power(self.factor, t // self.every)


@dataclasses.dataclass(frozen=True)
class Exponential(Schedule):
    """value * factor**t

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.schedules.Exponential(1.0, 0.5)(3)
    0.125
    """

    factor: float

    _ranges = {"factor": (0.0, 1.0, float)}

    def _at(self, t):
        return self.value * _power(self.factor, t)


@dataclasses.dataclass(frozen=True)
class InverseScaling(Schedule):
    """value / (t + 1)**power, the "invscaling" of scikit-learn's SGDRegressor, which makes a step a sample.

    Examples
    --------
    >>> import fastopt as fo
    >>> round(fo.schedules.InverseScaling(1.0, 0.5)(3), 12)
    0.5
    """

    power: float = 0.5

    def _at(self, t):
        return self.value / core("float64").call_power(t + 1.0, self.power)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """A linear rise to `value` in `warmup`, then half a cosine down to `least` at `length`, which stays.

    At t < warmup: value * (t + 1) / warmup. Source: Loshchilov & Hutter 2017, without restarts.

    Examples
    --------
    >>> import fastopt as fo
    >>> [round(fo.schedules.Cosine(1.0, 6, warmup=2)(t), 3) for t in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """

    length: int
    warmup: int = 0
    least: float = 0.0

    _ranges = {"length": (1, math.inf, int), "warmup": (0, math.inf, int)}

    def __post_init__(self):
        super().__post_init__()
        if self.warmup >= self.length:
            raise ValueError(f"warmup must be below length={self.length}, got {self.warmup}")

    def _at(self, t):
        if t < self.warmup:
            return self.value * (t + 1) / self.warmup
        part = min(1.0, (t - self.warmup) / (self.length - self.warmup))
        return self.least + (self.value - self.least) * _half_cosine(part)


@dataclasses.dataclass(frozen=True)
class OneCycle(Schedule):
    """From `first` up to `value` in the share `rise` of `length`, then down to `last`, both by half a cosine.

    Source: Smith & Topin 2018. For the momentum give the lowest as `value`, with `first` and `last` above it.

    Examples
    --------
    >>> import fastopt as fo
    >>> cycle = fo.schedules.OneCycle(1.0, 10, first=0.1, last=0.0, rise=0.4)
    >>> [round(cycle(t), 3) for t in (0, 2, 4, 7, 10)]
    [0.1, 0.55, 1.0, 0.5, 0.0]
    """

    length: int
    first: float
    last: float
    rise: float = 0.3

    _ranges = {"length": (1, math.inf, int), "rise": (0.0, 1.0, float)}

    def _at(self, t):
        top = self.rise * self.length
        if t < top:
            return self.value + (self.first - self.value) * _half_cosine(t / top)
        part = 1.0 if t >= self.length else (t - top) / (self.length - top)
        return self.last + (self.value - self.last) * _half_cosine(part)


@dataclasses.dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """Times `factor` whenever `monitor` has not improved in more than `patience` epochs; for the learning rate.

    An epoch improves if its value is below the best one less `min_delta`. After a reduction `cooldown` epochs are not
    counted; the value does not fall below `least`. It is a function of the history: a resumed training goes on with it.

    Examples
    --------
    >>> import fastopt as fo
    >>> fo.schedules.ReduceOnPlateau(1.0, 0.5, patience=1).after([3.0, 2.0, 2.0, 2.0])
    0.5
    """

    factor: float = 0.1
    patience: int = 10
    min_delta: float = 0.0
    cooldown: int = 0
    least: float = 0.0
    monitor: str = "val_loss"
    _: dataclasses.KW_ONLY
    per: str = "epoch"

    _ranges = {"factor": (0.0, 1.0, float), "patience": (0, math.inf, int), "cooldown": (0, math.inf, int)}

    def __post_init__(self):
        super().__post_init__()
        boundary.choice("monitor", self.monitor, ("val_loss", "loss"))
        boundary.choice("per", self.per, ("epoch",))
        if self.least > self.value:
            raise ValueError(f"least must be at most value={self.value!r}, got {self.least!r}")

    def __call__(self, t):
        raise TypeError("ReduceOnPlateau needs the history of a Trainer")

    def after(self, values):
        """The value for the epoch after those whose monitored values are given."""
        value, best, bad, rest = self.value, math.inf, 0, 0
        for monitored in values:
            if monitored < best - self.min_delta:
                best, bad = monitored, 0
            else:
                bad += 1
            if rest > 0:
                rest, bad = rest - 1, 0
            if bad > self.patience:
                value, bad, rest = max(self.least, value * self.factor), 0, self.cooldown
        return value


SCHEDULES = {cls.__name__: cls for cls in
             (Constant, Piecewise, StepDecay, Exponential, InverseScaling, Cosine, OneCycle, ReduceOnPlateau)}

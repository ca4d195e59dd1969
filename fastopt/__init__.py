"""fastopt: fast, reproducible training of dense networks and linear classifiers on the CPU."""

from . import penalties, schedules
from .adaptive import AdaDelta, AdaGrad, Adam, AdamW, RMSProp
from .config import __version__, show_config
from .dense import dense_backward, dense_forward
from .errors import DivergenceError, ModelFormatError
from .gradcheck import check_gradient
from .losses import (
    accuracy,
    binary_cross_entropy,
    hinge,
    huber,
    mae,
    mse,
    msle,
    softmax,
    softmax_cross_entropy,
    squared_hinge,
    top_k_accuracy,
)
from .lr_range import LRRange, lr_range_test
from .network import MLP
from .optim import SGD, momentum_step, nesterov_step, sgd_step
from .training import EarlyStopping, History, Trainer

__all__ = [
    "MLP", "SGD", "AdaDelta", "AdaGrad", "Adam", "AdamW", "DivergenceError", "EarlyStopping", "History", "LRRange",
    "ModelFormatError", "RMSProp", "Trainer", "__version__", "accuracy", "binary_cross_entropy", "check_gradient",
    "dense_backward", "dense_forward", "hinge", "huber", "lr_range_test", "mae", "momentum_step", "mse", "msle",
    "nesterov_step", "penalties", "schedules", "sgd_step", "show_config", "softmax", "softmax_cross_entropy",
    "squared_hinge", "top_k_accuracy",
]

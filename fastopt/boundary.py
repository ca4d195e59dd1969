"""The boundary: everything that comes from outside is checked and converted here, before anything is touched.

Each function takes the argument's name and value and returns what the kernels take, or raises TypeError or
ValueError naming the argument, what was expected and what came; for data, the first offending position.
"""

import functools
import math
import numbers
import os
import re
import warnings

import numpy as np

from ._dispatch import core

ACTIVATIONS = {None: 0, "relu": 1, "sigmoid": 2, "tanh": 3}
LABEL_LOSSES = ("softmax_cross_entropy", "hinge", "squared_hinge")
TARGET_LOSSES = ("binary_cross_entropy", "mse", "mae", "msle", "huber")
#: What a loss takes beside scores, labels or targets, and weights.
LOSS_OPTIONS = {"softmax_cross_entropy": ("class_weight", "label_smoothing"), "hinge": ("class_weight",),
                "squared_hinge": ("class_weight",), "binary_cross_entropy": ("label_smoothing",), "huber": ("delta",)}
MAX_THREADS = 64
#: Multiply-adds that are worth a thread, about 0.1 ms of them: beside a busy neighbour a thread starts that late.
WORTH_A_THREAD = 3_000_000

# -- memory -----------------------------------------------------------------------------------------------------


#: How the interpreter reports a function, NumPy's in general, that had no memory for an exception.
NO_REASON = re.compile("without setting an exception|without exception set|NULL object passed")


def memory_errors(function):
    """A MemoryError for what the interpreter says in other words where memory is short."""

    @functools.wraps(function)
    def wrapped(*arguments, **options):
        try:
            return function(*arguments, **options)
        except SystemError as error:
            if type(error) is SystemError and NO_REASON.search(str(error)):
                raise MemoryError(str(error)) from error
            raise

    return wrapped


# -- scalars ----------------------------------------------------------------------------------------------------


def _show(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_real(name, value):
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {_show(value)}")


def number(name, value, *, least=-math.inf, above=-math.inf, below=math.inf):
    """A finite real number with least <= value, above < value < below."""
    _check_real(name, value)
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not (math.isfinite(result) and result >= least and above < result < below):
        limits = [f">= {least:g}"] * (least > -math.inf)
        limits += [f"> {above:g}"] * (above > -math.inf) + [f"< {below:g}"] * (below < math.inf)
        raise ValueError(f"{name} must be finite{''.join(' and ' + limit for limit in limits)}, got {_show(value)}")
    return result


def fits(name, value, dtype):
    """A number that stays finite in the dtype."""
    if abs(value) > float(np.finfo(dtype).max):
        raise ValueError(f"{name} = {value!r} does not fit {np.dtype(dtype).name}")
    return value


def one_number(name, value):
    """A real number, finite or not, that may come as an array of one entry."""
    if np.size(value) != 1:
        raise ValueError(f"{name} must be one number, got shape {np.shape(value)}")
    if isinstance(value, np.ndarray):
        value = value.item()
    _check_real(name, value)
    return float(value)


def integer(name, value, least, most=None):
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {_show(value)}")
    if value < least or most is not None and value > most:
        wanted = f">= {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name} must be {wanted}, got {_show(value)}")
    return int(value)


def flag(name, value):
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {_show(value)}")
    return bool(value)


def dtype(value):
    """float32 or float64, given as NumPy takes dtypes."""
    try:
        found = None if value is None else np.dtype(value)
    except TypeError:
        found = None
    if found not in (np.float32, np.float64):
        shown = value if found is None else found.name if found.isnative else found.str
        raise ValueError(f"dtype must be one of 'float32', 'float64', got {_show(shown)}")
    return found


def choice(name, value, allowed):
    """One of a few names (or None)."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {_show(value)}")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {_show(value)}")
    return value


def activation(value):
    return ACTIVATIONS[choice("activation", value, tuple(ACTIVATIONS))]


# -- threads ----------------------------------------------------------------------------------------------------


@functools.cache
def _from_environment(name):
    text = os.environ.get(name)
    if text is None:
        return None
    try:
        value = int(text.split(",")[0])
    except ValueError:
        value = 0
    if not 1 <= value <= 4096:
        warnings.warn(f"{name}={text!r} is not a number of threads: ignored", RuntimeWarning, stacklevel=2)
        return None
    return value


#: Where the kernel lists this process's control groups, and where it shows them.
CGROUP_LIST, CGROUPS = "/proc/self/cgroup", "/sys/fs/cgroup"


def _read(*path):
    try:
        with open(os.path.join(*path)) as file:
            return file.read()
    except (OSError, UnicodeError):
        return ""


@functools.cache
def _cgroup_quota():
    """CPUs granted by the least quota of this process's control groups and those above them, or None."""
    quotas = []
    for line in _read(CGROUP_LIST).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, files = CGROUPS, ["cpu.max"]
        elif "cpu" in controllers.split(","):  # version 1
            folder, files = os.path.join(CGROUPS, "cpu"), ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        # a container may show its own group as the root, under a path that it has outside only
        names = path.strip("/").split("/")
        for depth in range(len(names) + 1):
            try:
                quota, period = map(int, " ".join(_read(folder, *names[:depth], file) for file in files).split())
            except ValueError:
                continue  # "max", or no such group
            if quota > 0 and period > 0:
                quotas.append(max(1, math.ceil(quota / period)))
    return min(quotas, default=None)


def processors():
    """Processors this process may use: affinity, container quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(affinity, _cgroup_quota() or affinity)


def available_threads():
    """The same, and at most OMP_NUM_THREADS and FASTOPT_NUM_THREADS."""
    limits = (processors(), _from_environment("OMP_NUM_THREADS"), _from_environment("FASTOPT_NUM_THREADS"))
    return min(limit for limit in limits if limit is not None)


def threads(n_threads, operations):
    """How many threads for so many multiply-adds between two synchronisations: as are worth it, at most n_threads."""
    limit = MAX_THREADS if n_threads is None else integer("n_threads", n_threads, 1)
    limit = min(limit, max(1, int(operations) // WORTH_A_THREAD), MAX_THREADS)
    if limit == 1:
        return 1
    return min(limit, available_threads() if n_threads is None else processors())


# -- arrays -----------------------------------------------------------------------------------------------------


def _shape_text(shape):
    return str(tuple("n" if size is None else size for size in shape)).replace("'", "")


def _place(name, index):
    """An element as messages name it: X[17, 3]."""
    return f"{name}[{', '.join(str(int(i)) for i in index)}]"


def _check_unmasked(name, value):
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost: fill it first")


def _check_ndarray(name, value):
    _check_unmasked(name, value)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {type(value).__name__}")


def rectangular(name, value):
    """Any array."""
    _check_unmasked(name, value)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a rectangular array: {error}") from None


def real_array(name, value):
    """An array of real numbers (bool, integer or floating), as it is.

    A view: another thread may give the caller's array another shape or dtype after that was checked.
    """
    array = rectangular(name, value).view()
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array


def _check_shape(name, array, shape):
    """Sizes of None are free; an empty array is an error."""
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{name} must have shape {_shape_text(shape)}, got {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} is empty: shape {array.shape}")


def _for_kernels(array, dtype):
    """What the kernels read: C-contiguous, aligned, of that dtype; a copy where it is not."""
    with np.errstate(over="ignore"):
        array = np.asarray(array, dtype, order="C")
    return array if array.flags.aligned else array.copy()


def float_dtype(array):
    """The dtype an array decides: float32 if it is that in any byte order, else float64."""
    return np.dtype(np.float32 if array.dtype.newbyteorder("=") == np.float32 else np.float64)


def first_nonfinite(name, original, dtype, row_offset=0):
    """The error for an array in which some value is not finite in the dtype."""
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(original.astype(dtype, copy=False))
    index = np.unravel_index(int(np.argmax(bad)), original.shape)
    value = original[index]
    place = _place(name, (index[0] + row_offset, *index[1:]) if index else index)
    if np.isfinite(value):
        return ValueError(f"{place} = {value} does not fit {np.dtype(dtype).name}")
    return ValueError(f"{place} is {value}")


def data(name, value, shape, dtype=None):
    """A finite C-contiguous array of that shape; the dtype is the given one, or decided by the array."""
    original = real_array(name, value)
    _check_shape(name, original, shape)
    dtype = dtype or float_dtype(original)
    array = _for_kernels(original, dtype)
    if not core(dtype).call_all_finite(array.reshape(-1)):
        raise first_nonfinite(name, original, dtype)
    return array


def output(name, value, shape, dtype, inputs):
    """A writable C-contiguous array of exactly that shape and dtype that overlaps no input."""
    _check_ndarray(name, value)
    if value.dtype != dtype:
        raise ValueError(f"{name} must be {np.dtype(dtype).name}, got {value.dtype}")
    if value.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {_shape_text(shape)}, got {value.shape}")
    if not value.flags.c_contiguous or not value.flags.aligned:
        raise ValueError(f"{name} must be C-contiguous and aligned, got strides {value.strides}")
    if not value.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    check_apart({name: value}, inputs)
    return value


def check_apart(outputs, inputs):
    """That no output shares memory with an input; None and lists are nobody's memory."""
    for name, out in outputs.items():
        for other_name, other in inputs.items():
            if other is not None and not isinstance(other, (list, tuple)) and _shares_memory(out, np.asarray(other)):
                raise ValueError(f"{name} must not overlap {other_name}")


def _shares_memory(a, b):
    try:
        return np.may_share_memory(a, b) and np.shares_memory(a, b, max_work=10_000)
    except np.exceptions.TooHardError:
        return True  # bounds overlap and nothing cheap shows that elements do not


def parameter(name, value):
    """An array that is updated in place: float32 or float64, C-contiguous, writable, not empty."""
    _check_ndarray(name, value)
    if value.dtype not in (np.float32, np.float64):
        raise ValueError(f"{name} must be float32 or float64, got {value.dtype}")
    if value.size == 0:
        raise ValueError(f"{name} is empty: shape {value.shape}")
    return output(name, value, value.shape, value.dtype, {})


def check_overflow(name, array):
    """That a product of finite arrays stayed finite."""
    if not core(array.dtype).call_all_finite(array.reshape(-1)):
        index = np.unravel_index(int(np.argmin(np.isfinite(array))), array.shape)
        raise OverflowError(f"{_place(name, index)} overflows {array.dtype}")


def check_parameters(flat):
    """That a network's parameters are finite: `load` refuses others."""
    if not core(flat.dtype).call_all_finite(flat):
        index = int(np.argmin(np.isfinite(flat)))
        raise ValueError(f"net.flat[{index}] is {flat[index]}: a network with it cannot be saved")


def features(name, value, n_features, dtype):
    """(n, n_features) of any real dtype and layout, read where it lies; n may be 0."""
    array = real_array(name, value)
    if array.ndim != 2 or array.shape[1] != n_features:
        raise ValueError(f"{name} must have shape {_shape_text((None, n_features))}, got {array.shape}")
    if not array.dtype.isnative or array.dtype.char == "g":
        raise TypeError(f"{name} has dtype {array.dtype.str}: convert it to a native float, integer or bool first")
    return core(dtype).Features(array)


def check_features_finite(name, value, held, dtype):
    """Raises for the first value, in the array's order, that is not finite in the dtype."""
    if np.asarray(value).dtype.kind == "f":
        row = held.find_nonfinite()
        if row >= 0:
            raise first_nonfinite(name, np.asarray(value)[row : row + 1], dtype, row)


def _bad_label(name, array, ok, allowed):
    index = int(np.argmin(ok))
    return ValueError(f"{name}[{index}] = {array[index]} is not in {allowed}")


def labels(name, value, n, n_classes, signs):
    """(n,) labels 0 .. n_classes-1, or the signs -1 and 1, as int64; always a copy.

    The kernels index memory by them: nobody else may hold the array that was checked.
    """
    array = real_array(name, value).copy()
    if array.dtype.kind == "b":
        raise TypeError(f"{name} must hold integer labels, got dtype bool")
    _check_shape(name, array, (n,))
    if signs:
        ok, allowed = (array == 1) | (array == -1), "-1, 1"
    else:
        ok, allowed = (array >= 0) & (array < n_classes), f"0..{n_classes - 1}"
        if array.dtype.kind == "f":
            ok &= array == np.floor(array)
    if not ok.all():
        raise _bad_label(name, array, ok, allowed)
    return _for_kernels(array, np.int64)


def targets(name, value, shape, dtype, loss):
    """Targets of the predictions' shape; (n,) also matches (n, 1). Within the loss's domain."""
    array = real_array(name, value)
    array = data(name, array, shape[:1] if array.shape == shape[:1] and shape[1:] == (1,) else shape, dtype)
    _check_domain(name, array, loss)
    return array.reshape(shape[0], -1)


def _check_domain(name, array, loss):
    if loss == "binary_cross_entropy":
        ok, domain = (array >= 0) & (array <= 1), "in [0, 1]"
    elif loss == "msle":
        ok, domain = array > -1, "> -1"
    else:
        return
    if not ok.all():
        index = np.unravel_index(int(np.argmin(ok)), array.shape)
        raise ValueError(f"{_place(name, index)} = {array[index]} is not {domain}")


def sample_weight(value, n, dtype, name="sample_weight"):
    """(n,) weights >= 0 with a positive sum, or None."""
    if value is None:
        return None
    array = data(name, value, (n,), dtype)
    if (array < 0).any():
        index = int(np.argmax(array < 0))
        raise ValueError(f"{name}[{index}] = {array[index]} is negative")
    if not (array > 0).any():
        raise ValueError(f"{name} sums to zero")
    _check_sum(name, array)
    return array


def _check_sum(name, weight):
    if not math.isfinite(core(weight.dtype).call_weighted_sum(weight, None)):
        raise ValueError(f"{name}: the sum of the samples' weights overflows")


def class_weight(value, n_outputs):
    """A weight for each class, not negative; for one output of the labels -1 and 1."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple, range, np.ndarray)):
        raise TypeError(f"class_weight must be a sequence of a number for each class, got {_show(value)}")
    array = data("class_weight", list(value), (max(2, n_outputs),), np.dtype("float64"))
    if (array < 0).any() or not (array > 0).any():
        raise ValueError(f"class_weight must be >= 0 and not all 0, got {value!r}")
    return array


def weight_by_class(weight, class_weight, labels, n_outputs, dtype):
    """The samples' weights times those of their classes."""
    if class_weight is None:
        return weight
    by_class = data("class_weight", class_weight, class_weight.shape, dtype)
    by_class = by_class[labels if n_outputs > 1 else (labels + 1) // 2]
    with np.errstate(over="ignore"):
        weight = by_class if weight is None else weight * by_class
    if not (weight > 0).any():
        raise ValueError("class_weight and sample_weight give every sample the weight 0")
    _check_sum("class_weight", weight)
    return weight


def label_smoothing(value):
    """A share in [0, 1]."""
    smoothing = number("label_smoothing", value, least=0.0)
    if smoothing > 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {value!r}")
    return smoothing


def loss_options(loss, options, n_outputs):
    """(class_weight, label_smoothing, delta) of a loss's options."""
    if options is not None and not isinstance(options, dict):
        raise TypeError(f"loss_options must be a dict, got {type(options).__name__}")
    options = dict(options or {})
    allowed = () if callable(loss) else LOSS_OPTIONS.get(loss, ())
    for name in options:
        if name not in allowed:
            what = "a loss of your own" if callable(loss) else loss
            raise ValueError(f"loss_options must be {', '.join(allowed) or 'empty'} for {what}, got {name!r}")
    return (class_weight(options.get("class_weight"), n_outputs), label_smoothing(options.get("label_smoothing", 0.0)),
            number("delta", options.get("delta", 1.0), above=0.0))


def smoothed(targets, smoothing):
    """Targets in [0, 1], the share `smoothing` of each taken to 1/2."""
    of = targets.dtype.type
    return targets if smoothing == 0 else targets * of(1 - smoothing) + of(smoothing / 2)


def no_sample_weight(value):
    """That a loss written in Python comes without weights."""
    if value is not None:
        raise ValueError("sample_weight cannot be used with a loss of your own: weight the samples inside it")


def loss_inputs(loss, scores_name, scores, y_name, y, weight, by_class=None):
    """What a loss kernel takes: scores (n, k), labels, targets, weights."""
    original = real_array(scores_name, scores)
    if original.ndim not in (1, 2):
        raise ValueError(f"{scores_name} must have shape (n,) or (n, m), got {original.shape}")
    if loss == "softmax_cross_entropy" and original.ndim == 1:
        raise ValueError(f"{scores_name} must have shape (n, K), got {original.shape}")
    _check_shape(scores_name, original, original.shape)
    dtype = float_dtype(original)
    array = _for_kernels(original, dtype).reshape(len(original), -1)
    n, k = array.shape
    label_array = target_array = None
    if loss in LABEL_LOSSES:
        label_array = labels(y_name, y, n, k, signs=k == 1 and loss != "softmax_cross_entropy")
    else:
        target_array = targets(y_name, y, original.shape, dtype, loss)
    weight = sample_weight(weight, n, dtype)
    if by_class is not None:
        weight = weight_by_class(weight, class_weight(by_class, k), label_array, k, dtype)
    return array, label_array, target_array, weight


def explain_loss(loss, scores_name, scores, dtype):
    """The error for a loss that is not finite: a score that is not, one outside the domain, or an overflow."""
    original = np.asarray(scores)
    with np.errstate(over="ignore"):
        if not np.isfinite(original.astype(dtype)).all():
            return first_nonfinite(scores_name, original, dtype)
    try:
        _check_domain(scores_name, original, loss if loss == "msle" else None)
    except ValueError as error:
        return error
    return OverflowError(f"the {loss} loss of finite {scores_name} overflows {np.dtype(dtype).name}")


def loss_result(result, scores):
    """(value, dscores) of a loss written in Python, as a float and an array like the scores."""
    try:
        value, dscores = result
    except (TypeError, ValueError):
        raise TypeError(f"loss must return (value, dscores), got {_show(result)}") from None
    value = one_number("the value of loss", value)
    dscores = real_array("dscores of loss", dscores)
    _check_shape("dscores of loss", dscores, scores.shape)
    return value, _for_kernels(dscores, scores.dtype)

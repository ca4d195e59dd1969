# Update rules, in place. One body: what conventions differ in are numbers of an Update, and l1 in its proximal mode
# acts such that the minimiser reached is that of loss + l1 * sum(|param|) as written.

cdef enum Rule:
    SGD
    MOMENTUM
    NESTEROV
    ADAGRAD
    RMSPROP
    RMSPROP_MOMENTUM
    ADADELTA
    ADAM

cdef enum L1:
    NO_L1
    PROXIMAL
    SUBGRADIENT
    CUMULATIVE

cdef enum Decay:
    COUPLED
    DECOUPLED
    INDEPENDENT

cdef struct Settings:               # of an optimizer: what its `settings` in Python says
    int rule, l1_mode, decay
    bint decay_after, decay_floor, rate_inside, damp_first, per_batch, eps_inside, decay_bias
    double dampening, weight_decay, l1, l2, beta, eps, clip_value, clip_norm

cdef struct Update:                 # the numbers of one step
    int rule, l1_mode
    bint eps_inside
    bint plain                      # scale, keep_before and keep_after are 1, clip is infinite
    real scale                      # of the gradient, for its norm
    real clip                       # of its values
    real gain                       # of the gradient in the velocity
    real rate                       # of the velocity, or of what stands for it, in the parameter
    real momentum, next_momentum
    real weight_decay
    real keep_before, keep_after    # what decay leaves of the parameter, before or after the rest of the step
    real l1                         # threshold, slope, or its sum over the steps so far
    real beta, new                  # of the squares: how much stays, how much is new
    real eps
    real root                       # of the bias correction of the squares


cdef double power(double base, int64_t exponent) noexcept nogil:
    """base**exponent by squaring: the same everywhere, as the C library's is not"""
    cdef double result = 1
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


cdef Update update_at(const Settings* s, int64_t step, double lr, double momentum, double next_momentum, Py_ssize_t n,
                      double l1_total, bint penalised) noexcept nogil:
    """The numbers of the step, counted from 0, of a batch of n samples"""
    cdef Update u
    cdef double share = 1.0 / n if s.per_batch else 1.0, left = 1
    cdef double decay = s.weight_decay * share if penalised else 0, l1 = s.l1 * share if penalised else 0
    u.rule, u.eps_inside, u.eps = s.rule, s.eps_inside, <real> s.eps
    u.momentum, u.next_momentum = <real> momentum, <real> next_momentum
    u.gain, u.rate = 1, <real> lr
    if s.rule == MOMENTUM or s.rule == NESTEROV:
        if s.rate_inside:
            u.gain, u.rate = <real> lr, 1
        elif step > 0 or s.damp_first:
            u.gain = <real> (1 - s.dampening)
    u.beta, u.new, u.root = <real> s.beta, <real> (1 - s.beta), 1
    if s.rule == ADAM:
        u.gain = <real> (1 - momentum)
        u.rate = <real> (lr / (1 - power(momentum, step + 1)))
        u.root = <real> (1 / sqrt(1 - power(s.beta, step + 1)))
    u.weight_decay = <real> ((decay if s.decay == COUPLED else 0) + (2 * s.l2 * share if penalised else 0))
    if s.decay != COUPLED:
        left = 1 - (decay if s.decay == INDEPENDENT else lr * decay)
        if s.decay_floor and left < 0:
            left = 0
    u.keep_before = <real> (1 if s.decay_after else left)
    u.keep_after = <real> (left if s.decay_after else 1)
    u.scale, u.clip = 1, <real> s.clip_value
    u.plain = left == 1 and s.clip_value == INFINITY
    u.l1_mode = s.l1_mode if l1 > 0 else NO_L1
    u.l1 = <real> l1
    if u.l1_mode == CUMULATIVE:
        u.l1 = <real> l1_total
    elif u.l1_mode == PROXIMAL and s.rule <= NESTEROV:
        u.l1 = <real> (lr * l1)
    return u


cdef void scale_for_norm(Update* u, double clip_norm, double squares) noexcept nogil:
    """The gradient's scale, given the sum of the squares of all of it"""
    cdef double norm = sqrt(squares)
    if not norm <= clip_norm:
        u.scale, u.plain = <real> (clip_norm / norm), False


cdef Update classic(int rule, double lr, double momentum, double weight_decay, double l1) noexcept nogil:
    cdef Settings s
    memset(&s, 0, sizeof(s))
    s.rule, s.l1_mode, s.rate_inside, s.weight_decay, s.l1 = rule, PROXIMAL, True, weight_decay, l1
    s.clip_value = INFINITY
    return update_at(&s, 0, lr, momentum, momentum, 1, 0, True)


cdef inline INLINED_VEC soft_threshold(vec z, vec t) noexcept nogil:
    """sign(z) max(|z| - t, 0); NaN stays NaN."""
    cdef vec shrunk = vselect_less(z, vset(0), z + t, z - t)
    return vselect_less(t, vabs(z), shrunk, z - z)


cdef inline INLINED_VEC updated(int rule, int l1_mode, bint plain, const Update* u, vec param, vec grad,
                                vec* first, vec* second) noexcept nogil:
    cdef vec zero = vset(0), threshold = vset(u.l1), rate = vset(u.rate), m = vset(u.momentum)
    cdef vec clip = vset(u.clip)
    if not plain:
        grad = grad * vset(u.scale)
        grad = vselect_less(clip, grad, clip, vselect_less(grad, -clip, -clip, grad))
    cdef vec g = vfma(vset(u.weight_decay), param, grad)
    cdef vec base = param if plain else vset(u.keep_before) * param
    cdef vec w, v, direction, root, ahead
    if l1_mode == SUBGRADIENT:
        g = g + vselect_less(param, zero, -threshold, vselect_less(zero, param, threshold, zero))
    if rule == MOMENTUM and l1_mode == PROXIMAL:
        # W+ = S(W - mV - lr g), V = W - W+
        w = soft_threshold(base - vfma(m, first[0], vset(u.gain) * g), threshold)
        first[0] = param - w
        return w
    if rule == NESTEROV and l1_mode == PROXIMAL:
        # theta = W + mV, theta+ = S(W - lr g), V = theta - theta+, W = theta+ - mV. The product is rounded by itself
        # so that adding it back gives theta+ = 0 exactly.
        ahead = param + m * first[0]
        w = soft_threshold(vfma(-vset(u.gain), g, base), threshold)
        first[0] = ahead - w
        return w - vset(u.next_momentum) * first[0]
    direction = g
    if rule == MOMENTUM or rule == NESTEROV:
        v = vfma(m, first[0], vset(u.gain) * g)
        first[0] = v
        direction = v if rule == MOMENTUM else vfma(m, v, vset(u.gain) * g)
    elif rule == ADADELTA:
        first[0] = vfma(vset(u.beta), first[0], vset(u.new) * g * g)
        direction = vsqrt(second[0] + vset(u.eps)) / vsqrt(first[0] + vset(u.eps))
        threshold = rate * direction * threshold
        direction = direction * g
        second[0] = vfma(vset(u.beta), second[0], vset(u.new) * direction * direction)
    elif rule == ADAM:
        first[0] = vfma(m, first[0], vset(u.gain) * g)
        second[0] = vfma(vset(u.beta), second[0], vset(u.new) * g * g)
        root = vset(u.root) * vsqrt(second[0])
        root = vsqrt(vfma(root, root, vset(u.eps))) if u.eps_inside else root + vset(u.eps)
        rate = rate / root
        threshold = rate * threshold
        direction = first[0]
    elif rule != SGD:
        if rule == ADAGRAD:
            first[0] = vfma(g, g, first[0])
        else:
            first[0] = vfma(vset(u.beta), first[0], vset(u.new) * g * g)
        root = vsqrt(first[0] + vset(u.eps)) if u.eps_inside else vsqrt(first[0]) + vset(u.eps)
        if rule == RMSPROP_MOMENTUM:
            second[0] = vfma(m, second[0], g / root)
            direction = second[0]
        else:
            rate = rate / root
            threshold = rate * threshold
    w = vfma(-rate, direction, base)
    if not plain:
        w = w * vset(u.keep_after)
    if l1_mode == PROXIMAL:
        return soft_threshold(w, threshold)
    if l1_mode == CUMULATIVE:
        # towards 0, and not past it, by what the steps so far owe each weight
        v = vselect_less(zero, w, w - (threshold + first[0]), w + (threshold - first[0]))
        v = vselect_less(zero, w, vselect_less(v, zero, zero, v), vselect_less(zero, v, zero, v))
        v = vselect_less(zero, vabs(w), v, w)
        first[0] = first[0] + (v - w)
        return v
    return w


cdef inline INLINED update_all(int rule, int l1_mode, bint plain, const Update* numbers, real* param, const real* grad,
                               real* first, real* second, Py_ssize_t n) noexcept nogil:
    cdef bint has_first = rule != SGD or l1_mode == CUMULATIVE
    cdef bint has_second = rule == RMSPROP_MOMENTUM or rule == ADADELTA or rule == ADAM
    cdef Update of_step = numbers[0]    # which no store can change: they stay in registers
    cdef const Update* u = &of_step
    cdef vec a = vset(0), b = vset(0)
    cdef Py_ssize_t i = 0
    while i + VL <= n:
        if has_first:
            a = vload(first + i)
        if has_second:
            b = vload(second + i)
        vstore(param + i, updated(rule, l1_mode, plain, u, vload(param + i), vload(grad + i), &a, &b))
        if has_first:
            vstore(first + i, a)
        if has_second:
            vstore(second + i, b)
        i += VL
    if i < n:
        if has_first:
            a = vload_part(first + i, n - i, 0)
        if has_second:
            b = vload_part(second + i, n - i, 0)
        vstore_part(param + i, updated(rule, l1_mode, plain, u, vload_part(param + i, n - i, 0),
                                       vload_part(grad + i, n - i, 0), &a, &b), n - i)
        if has_first:
            vstore_part(first + i, a, n - i)
        if has_second:
            vstore_part(second + i, b, n - i)


cdef inline INLINED update_by(int rule, const Update* u, real* param, const real* grad, real* first, real* second,
                              Py_ssize_t n) noexcept nogil:
    if u.l1_mode == NO_L1 and u.plain:
        update_all(rule, NO_L1, True, u, param, grad, first, second, n)
    elif u.l1_mode == NO_L1:
        update_all(rule, NO_L1, False, u, param, grad, first, second, n)
    elif u.l1_mode == PROXIMAL:
        update_all(rule, PROXIMAL, False, u, param, grad, first, second, n)
    elif u.l1_mode == SUBGRADIENT:
        update_all(rule, SUBGRADIENT, False, u, param, grad, first, second, n)
    else:
        update_all(SGD, CUMULATIVE, False, u, param, grad, first, second, n)


cdef void update(const Update* u, real* param, const real* grad, real* first, real* second,
                 Py_ssize_t n) noexcept nogil:
    """One step of n parameters; first and second are what the rule keeps of earlier ones"""
    if u.rule == SGD:
        update_by(SGD, u, param, grad, first, second, n)
    elif u.rule == MOMENTUM:
        update_by(MOMENTUM, u, param, grad, first, second, n)
    elif u.rule == NESTEROV:
        update_by(NESTEROV, u, param, grad, first, second, n)
    elif u.rule == ADAGRAD:
        update_by(ADAGRAD, u, param, grad, first, second, n)
    elif u.rule == RMSPROP:
        update_by(RMSPROP, u, param, grad, first, second, n)
    elif u.rule == RMSPROP_MOMENTUM:
        update_by(RMSPROP_MOMENTUM, u, param, grad, first, second, n)
    elif u.rule == ADADELTA:
        update_by(ADADELTA, u, param, grad, first, second, n)
    else:
        update_by(ADAM, u, param, grad, first, second, n)


cdef api void sgd_step(real* param, const real* grad, Py_ssize_t n, double lr, double weight_decay,
                       double l1) noexcept nogil:
    """W -= lr g"""
    cdef Update u = classic(SGD, lr, 0, weight_decay, l1)
    update(&u, param, grad, NULL, NULL, n)


cdef api void momentum_step(real* param, const real* grad, real* velocity, Py_ssize_t n, double lr, double momentum,
                            double weight_decay, double l1) noexcept nogil:
    """V = m V + lr g, W -= V"""
    cdef Update u = classic(MOMENTUM, lr, momentum, weight_decay, l1)
    update(&u, param, grad, velocity, NULL, n)


cdef api void nesterov_step(real* param, const real* grad, real* velocity, Py_ssize_t n, double lr, double momentum,
                            double weight_decay, double l1) noexcept nogil:
    """V = m V + lr g, W -= m V + lr g"""
    cdef Update u = classic(NESTEROV, lr, momentum, weight_decay, l1)
    update(&u, param, grad, velocity, NULL, n)


RULES = {"sgd": SGD, "momentum": MOMENTUM, "nesterov": NESTEROV, "adagrad": ADAGRAD, "rmsprop": RMSPROP,
         "rmsprop_momentum": RMSPROP_MOMENTUM, "adadelta": ADADELTA, "adam": ADAM}
L1_MODES = {"prox": PROXIMAL, "subgradient": SUBGRADIENT, "cumulative": CUMULATIVE}
DECAYS = {"coupled": COUPLED, "decoupled": DECOUPLED, "independent": INDEPENDENT}


cdef Settings settings_from(dict settings):
    cdef Settings s = settings | {"rule": RULES[settings["rule"]], "l1_mode": L1_MODES[settings["l1_mode"]],
                                  "decay": DECAYS[settings["decay"]]}
    return s


def call_step(int rule, real[::1] param, const real[::1] grad, real[::1] velocity, double lr, double momentum,
              double weight_decay, double l1):
    cdef real* velocity_start = &velocity[0] if velocity is not None else NULL
    cdef Update u
    with nogil:
        u = classic(rule, lr, momentum, weight_decay, l1)
        update(&u, &param[0], &grad[0], velocity_start, NULL, param.shape[0])


def call_update(dict settings, int64_t step, double lr, double momentum, double next_momentum, double l1_total,
                double squares, bint penalised, real[::1] param, const real[::1] grad, list moments):
    """One step of an array by an optimizer's settings; moments as many as its rule keeps"""
    cdef Settings s = settings_from(settings)
    cdef Update u = update_at(&s, step, lr, momentum, next_momentum, 1, l1_total, penalised)
    cdef real[::1] first = moments[0] if len(moments) > 0 else param
    cdef real[::1] second = moments[1] if len(moments) > 1 else param
    scale_for_norm(&u, s.clip_norm, squares)
    with nogil:
        update(&u, &param[0], &grad[0], &first[0], &second[0], param.shape[0])

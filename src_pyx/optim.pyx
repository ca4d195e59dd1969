# Update rules, in place. The gradient takes weight_decay * param; l1 acts by soft-thresholding such that the
# minimiser reached is that of loss + l1 * sum(|param|) as written, under every rule.

cdef enum Rule:
    SGD
    MOMENTUM
    NESTEROV


cdef inline INLINED_VEC soft_threshold(vec z, vec t) noexcept nogil:
    """sign(z) max(|z| - t, 0); NaN stays NaN."""
    cdef vec shrunk = vselect_less(z, vset(0), z + t, z - t)
    return vselect_less(t, vabs(z), shrunk, z - z)


cdef inline INLINED_VEC updated(int rule, bint proximal, vec param, vec grad, vec* velocity, vec lr, vec momentum,
                                vec weight_decay, vec threshold) noexcept nogil:
    cdef vec g = vfma(weight_decay, param, grad)
    cdef vec v, w, ahead
    if rule == SGD:
        w = vfma(-lr, g, param)
        return soft_threshold(w, threshold) if proximal else w
    if not proximal:
        v = vfma(momentum, velocity[0], lr * g)
        velocity[0] = v
        return param - v if rule == MOMENTUM else param - vfma(momentum, v, lr * g)
    if rule == MOMENTUM:
        # W+ = S(W - mV - lr g), V = W - W+
        w = soft_threshold(param - vfma(momentum, velocity[0], lr * g), threshold)
        velocity[0] = param - w
        return w
    # theta = W + mV, theta+ = S(W - lr g), V = theta - theta+, W = theta+ - mV. The product is rounded by itself
    # so that adding it back gives theta+ = 0 exactly.
    ahead = param + momentum * velocity[0]
    w = soft_threshold(vfma(-lr, g, param), threshold)
    velocity[0] = ahead - w
    return w - momentum * velocity[0]


cdef inline INLINED update_all(int rule, bint proximal, real* param, const real* grad, real* velocity, Py_ssize_t n,
                               double lr, double momentum, double weight_decay, double l1) noexcept nogil:
    cdef vec rate = vset(<real> lr), m = vset(<real> momentum), decay = vset(<real> weight_decay)
    cdef vec threshold = vset(<real> (lr * l1))
    cdef vec w, v = vset(0)
    cdef Py_ssize_t i = 0
    while i + VL <= n:
        if rule != SGD:
            v = vload(velocity + i)
        w = updated(rule, proximal, vload(param + i), vload(grad + i), &v, rate, m, decay, threshold)
        vstore(param + i, w)
        if rule != SGD:
            vstore(velocity + i, v)
        i += VL
    if i < n:
        if rule != SGD:
            v = vload_part(velocity + i, n - i, 0)
        w = updated(rule, proximal, vload_part(param + i, n - i, 0), vload_part(grad + i, n - i, 0), &v,
                    rate, m, decay, threshold)
        vstore_part(param + i, w, n - i)
        if rule != SGD:
            vstore_part(velocity + i, v, n - i)


cdef api void sgd_step(real* param, const real* grad, Py_ssize_t n, double lr, double weight_decay,
                       double l1) noexcept nogil:
    """W -= lr g"""
    if l1 > 0:
        update_all(SGD, True, param, grad, NULL, n, lr, 0, weight_decay, l1)
    else:
        update_all(SGD, False, param, grad, NULL, n, lr, 0, weight_decay, l1)


cdef api void momentum_step(real* param, const real* grad, real* velocity, Py_ssize_t n, double lr, double momentum,
                            double weight_decay, double l1) noexcept nogil:
    """V = m V + lr g, W -= V"""
    if l1 > 0:
        update_all(MOMENTUM, True, param, grad, velocity, n, lr, momentum, weight_decay, l1)
    else:
        update_all(MOMENTUM, False, param, grad, velocity, n, lr, momentum, weight_decay, l1)


cdef api void nesterov_step(real* param, const real* grad, real* velocity, Py_ssize_t n, double lr, double momentum,
                            double weight_decay, double l1) noexcept nogil:
    """V = m V + lr g, W -= m V + lr g"""
    if l1 > 0:
        update_all(NESTEROV, True, param, grad, velocity, n, lr, momentum, weight_decay, l1)
    else:
        update_all(NESTEROV, False, param, grad, velocity, n, lr, momentum, weight_decay, l1)


cdef inline void step(int rule, real* param, const real* grad, real* velocity, Py_ssize_t n, double lr,
                      double momentum, double weight_decay, double l1) noexcept nogil:
    if rule == SGD:
        sgd_step(param, grad, n, lr, weight_decay, l1)
    elif rule == MOMENTUM:
        momentum_step(param, grad, velocity, n, lr, momentum, weight_decay, l1)
    else:
        nesterov_step(param, grad, velocity, n, lr, momentum, weight_decay, l1)


RULES = {"sgd": SGD, "momentum": MOMENTUM, "nesterov": NESTEROV}


def call_step(int rule, real[::1] param, const real[::1] grad, real[::1] velocity, double lr, double momentum,
              double weight_decay, double l1):
    cdef real* velocity_start = &velocity[0] if velocity is not None else NULL
    with nogil:
        step(rule, &param[0], &grad[0], velocity_start, param.shape[0], lr, momentum, weight_decay, l1)

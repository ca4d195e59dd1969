# Losses with their gradients in one pass. Each kernel writes losses[i], the loss of sample i, and
# dscores[i] = factor[i] * d losses[i] / d scores[i]; factor NULL is 1. Sums over a sample's scores run on SUM_LANES
# virtual lanes, whatever the vector's width, and are closed by the same tree. A score that is not finite makes its
# sample's loss NaN: a sum of 0 * score goes into every loss.

cdef enum:
    MAX_SUM_VECTORS = 8  # SUM_LANES doubles in 16-byte vectors

cdef enum Loss:
    SOFTMAX_CROSS_ENTROPY
    HINGE
    SQUARED_HINGE
    BINARY_CROSS_ENTROPY
    MSE
    MAE
    MSLE
    HUBER


cdef inline real sum_lanes(vec* lanes) noexcept nogil:
    cdef real values[SUM_LANES]
    cdef int i, half = SUM_LANES // 2
    for i in range(SUM_LANES // VL):
        vstore(values + i * VL, lanes[i])
    while half > 0:
        for i in range(half):
            values[i] += values[i + half]
        half //= 2
    return values[0]


cdef inline INLINED clear(vec* lanes) noexcept nogil:
    cdef int i
    for i in range(SUM_LANES // VL):
        lanes[i] = vset(0)


cdef inline INLINED_VEC load_up_to(const real* p, Py_ssize_t n, real pad) noexcept nogil:
    return vload(p) if n >= VL else vload_part(p, n, pad)


cdef inline INLINED store_up_to(real* p, vec a, Py_ssize_t n) noexcept nogil:
    if n >= VL:
        vstore(p, a)
    else:
        vstore_part(p, a, n)


cdef inline real max_of(const real* values, Py_ssize_t k) noexcept nogil:
    cdef vec highest = vset(values[0]), a
    cdef Py_ssize_t j
    cdef real result
    for j from 0 <= j < k by VL:
        a = load_up_to(values + j, k - j, values[0])
        highest = vselect_less(highest, a, a, highest)
    result = vlane(highest, 0)
    for j in range(1, VL):
        if vlane(highest, j) > result:
            result = vlane(highest, j)
    return result


cdef inline real exp_shifted(const real* scores, real* to, Py_ssize_t k, real shift, real* poison) noexcept nogil:
    """to = exp(scores - shift); returns their sum, and in poison the sum of 0 * scores"""
    cdef vec sums[MAX_SUM_VECTORS]
    cdef vec s, e, zeros = vset(0)
    cdef Py_ssize_t j
    cdef int lane = 0
    clear(sums)
    for j from 0 <= j < k by VL:
        s = load_up_to(scores + j, k - j, shift)
        zeros = vfma(s, vset(0), zeros)
        e = vexp(s - vset(shift))
        store_up_to(to + j, e, k - j)
        if k - j < VL:
            e = vload_part(to + j, k - j, 0)
        sums[lane] = sums[lane] + e
        lane = (lane + 1) % (SUM_LANES // VL)
    poison[0] = 0
    for lane in range(VL):
        poison[0] += vlane(zeros, lane)
    return sum_lanes(sums)


cdef inline real mean_shifted(const real* scores, Py_ssize_t k, real shift) noexcept nogil:
    """The mean of scores - shift, by halves."""
    cdef vec sums[MAX_SUM_VECTORS]
    cdef vec half = vset(0.5), share = vset(1 / <real> k)
    cdef Py_ssize_t j
    cdef int lane = 0
    clear(sums)
    for j from 0 <= j < k by VL:
        sums[lane] = vfma(share, load_up_to(scores + j, k - j, shift) * half - vset(shift) * half, sums[lane])
        lane = (lane + 1) % (SUM_LANES // VL)
    return 2 * sum_lanes(sums)


cdef api void softmax(const real* scores, real* out, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """out (n, k) = exp(scores) / the sum of exp(scores) over each row"""
    cdef Py_ssize_t i, j
    cdef real total, poison
    for i in range(n):
        total = exp_shifted(scores + i * k, out + i * k, k, max_of(scores + i * k, k), &poison)
        for j in range(k):
            out[i * k + j] = out[i * k + j] / total + poison


cdef inline INLINED_VEC tree_sum(vec* values, Py_ssize_t k) noexcept nogil:
    """values[0] + ... + values[k-1], k <= SUM_LANES, in the order of sum_lanes; overwrites them"""
    cdef Py_ssize_t i, half = SUM_LANES // 2
    while half > 0:
        for i in range(min(half, k - half)):
            values[i] = values[i] + values[i + half]
        half //= 2
    return values[0]


cdef void softmax_cross_entropy_lanes(const real* scores, const int64_t* y, const real* factor, real* losses,
                                      real* dscores, Py_ssize_t lanes, Py_ssize_t k,
                                      double label_smoothing) noexcept nogil:
    """The kernel below for `lanes` samples, whole vectors of them, and k <= SUM_LANES: scores are (k, lanes)."""
    cdef vec terms[SUM_LANES]
    cdef real labels[MAX_VL]
    cdef vec s, highest, label, at_label, exp_at_label, zeros, total, loss, f, scale, mean
    cdef vec half = vset(0.5), spread = vset(<real> (label_smoothing / k)), on = vset(<real> (1 - label_smoothing))
    cdef vec share = vset(1 / <real> k)
    cdef Py_ssize_t i, j
    for i from 0 <= i < lanes by VL:
        for j in range(VL):
            labels[j] = <real> y[i + j]
        label = vload(labels)
        highest = vload(scores + i)
        for j in range(1, k):
            s = vload(scores + j * lanes + i)
            highest = vselect_less(highest, s, s, highest)
        zeros, at_label, exp_at_label = vset(0), vset(0), vset(0)
        for j in range(k):
            s = vload(scores + j * lanes + i)
            zeros = vfma(s, vset(0), zeros)
            terms[j] = vexp(s - highest)
            vstore(dscores + j * lanes + i, terms[j])
            at_label = vselect_less(vabs(label - <real> j), half, s, at_label)
            exp_at_label = vselect_less(vabs(label - <real> j), half, terms[j], exp_at_label)
        total = tree_sum(terms, k)
        # by halves, so that no difference of finite scores overflows
        loss = (vlog(total) - 2 * (on * (half * at_label - half * highest))) + zeros
        if label_smoothing > 0:
            for j in range(k):
                terms[j] = vfma(share, vload(scores + j * lanes + i) * half - highest * half, vset(0))
            mean = 2 * tree_sum(terms, k)
            loss = loss - vset(<real> label_smoothing) * mean
        vstore(losses + i, loss)
        f = vload(factor + i)
        scale = f / total
        exp_at_label = f * (exp_at_label / total - (on + spread))
        for j in range(k):
            s = vfma(vload(dscores + j * lanes + i), scale, -(f * spread))
            vstore(dscores + j * lanes + i, vselect_less(vabs(label - <real> j), half, exp_at_label, s))


cdef void softmax_cross_entropy_narrow(const real* scores, const int64_t* y, const real* factor, real* losses,
                                       real* dscores, Py_ssize_t n, Py_ssize_t k,
                                       double label_smoothing) noexcept nogil:
    cdef real turned[SUM_LANES * MAX_VL]
    cdef real dturned[SUM_LANES * MAX_VL]
    cdef real factors[MAX_VL]
    cdef real losses_of[MAX_VL]
    cdef int64_t labels[MAX_VL]
    cdef Py_ssize_t i, r, rows
    memset(turned, 0, sizeof(turned))
    memset(labels, 0, sizeof(labels))
    for i from 0 <= i < n by VL:
        rows = min(n - i, <Py_ssize_t> VL)
        for r in range(VL):
            factors[r] = 1
        memcpy(labels, y + i, rows * sizeof(int64_t))
        if factor != NULL:
            memcpy(factors, factor + i, rows * sizeof(real))
        transpose(scores + i * k, k, rows, k, turned, VL)
        softmax_cross_entropy_lanes(turned, labels, factors, losses_of, dturned, VL, k, label_smoothing)
        transpose(dturned, VL, k, rows, dscores + i * k, k)
        memcpy(losses + i, losses_of, rows * sizeof(real))


cdef api void softmax_cross_entropy(const real* scores, const int64_t* y, const real* factor, real* losses,
                                    real* dscores, Py_ssize_t n, Py_ssize_t k,
                                    double label_smoothing) noexcept nogil:
    """losses = log(sum(e**s)) - sum(t * s), dscores = factor * (softmax(s) - t), t = (1-e) onehot(y) + e/k"""
    cdef const real* s
    cdef real* d
    cdef vec scale, shift
    cdef Py_ssize_t i, j
    cdef real half = 0.5, highest, total, poison, f, exp_y, smoothing = <real> label_smoothing
    cdef real spread = <real> (label_smoothing / k), on = <real> (1 - label_smoothing)
    if k <= SUM_LANES:
        softmax_cross_entropy_narrow(scores, y, factor, losses, dscores, n, k, label_smoothing)
        return
    for i in range(n):
        s = scores + i * k
        d = dscores + i * k
        f = factor[i] if factor != NULL else 1
        highest = max_of(s, k)
        total = exp_shifted(s, d, k, highest, &poison)
        # by halves, so that no difference of finite scores overflows
        losses[i] = (vlane(vlog(vset(total)), 0) - 2 * (on * (half * s[y[i]] - half * highest))) + poison
        if smoothing > 0:
            losses[i] -= smoothing * mean_shifted(s, k, highest)
        exp_y = d[y[i]] / total
        scale, shift = vset(f / total), vset(-(f * spread))
        for j from 0 <= j < k by VL:
            store_up_to(d + j, vfma(load_up_to(d + j, k - j, 0), scale, shift), k - j)
        d[y[i]] = f * (exp_y - (on + spread))


cdef inline INLINED_VEC hinge_slope(bint squared, vec h) noexcept nogil:
    """The derivative of max(0, m) or its square by the margin m, from h = max(0, m); 0 at the kink."""
    return 2 * h if squared else vselect_less(vset(0), h, vset(1), vset(0))


cdef inline INLINED hinge_rows(bint squared, const real* scores, const int64_t* y, const real* factor, real* losses,
                               real* dscores, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    cdef vec hinges[MAX_SUM_VECTORS]
    cdef vec slopes[MAX_SUM_VECTORS]
    cdef vec s, h, d, zeros, correct, f
    cdef Py_ssize_t i, j
    cdef int lane
    cdef real poison
    for i in range(n):
        f = vset(factor[i] if factor != NULL else 1)
        correct = vset(scores[i * k + y[i]])
        zeros = vset(0)
        clear(hinges)
        clear(slopes)
        lane = 0
        for j from 0 <= j < k by VL:
            s = load_up_to(scores + i * k + j, k - j, 0)
            zeros = vfma(s, vset(0), zeros)
            h = (s - correct) + 1
            h = vselect_less(h, vset(0), vset(0), h)
            if j <= y[i] < j + VL:
                h = vset_lane(h, y[i] - j, 0)
            if k - j < VL:
                # the lanes past the last class
                vstore_part(dscores + i * k + j, h, k - j)
                h = vload_part(dscores + i * k + j, k - j, 0)
            d = hinge_slope(squared, h)
            hinges[lane] = vfma(h, h, hinges[lane]) if squared else hinges[lane] + h
            slopes[lane] = slopes[lane] + d
            store_up_to(dscores + i * k + j, f * d, k - j)
            lane = (lane + 1) % (SUM_LANES // VL)
        poison = 0
        for lane in range(VL):
            poison += vlane(zeros, lane)
        losses[i] = sum_lanes(hinges) + poison
        dscores[i * k + y[i]] = -vlane(f, 0) * sum_lanes(slopes)


cdef inline INLINED_VEC element_loss(int loss, vec pred, vec target, vec delta, vec* dpred) noexcept nogil:
    """The loss of each lane and its derivative."""
    cdef vec a
    if loss == HUBER:
        # d (a - d/2) with d = a brought into [-delta, delta]
        a = pred - target
        dpred[0] = vselect_less(delta, a, delta, vselect_less(a, -delta, -delta, a))
        return dpred[0] * (a - vset(0.5) * dpred[0])
    if loss == BINARY_CROSS_ENTROPY:
        # log(1 + e**s) - t s = |s| (t or 1 - t) + log(1 + e**-|s|), where no large terms cancel
        a = vabs(pred) * vselect_less(pred, vset(0), target, 1 - target)
        dpred[0] = vsigmoid(pred) - target
        return a + vlog1p(vexp(-vabs(pred)))
    if loss == MSE:
        a = pred - target
        dpred[0] = 2 * a
        return a * a
    if loss == MAE:
        a = pred - target
        dpred[0] = vselect_less(vset(0), a, vset(1), vselect_less(a, vset(0), vset(-1), vset(0)))
        return vabs(a)
    if loss == MSLE:
        a = vlog1p(pred) - vlog1p(target)
        a = vselect_less(vset(-1), pred, a, vset(NOT_A_NUMBER))
        dpred[0] = 2 * a / (1 + pred)
        return a * a
    # binary hinges: target is -1 or 1
    a = 1 - target * pred
    a = vselect_less(a, vset(0), vset(0), a)
    dpred[0] = -target * hinge_slope(loss == SQUARED_HINGE, a)
    return a * a if loss == SQUARED_HINGE else a


cdef inline INLINED element_rows(int loss, const real* pred, const real* target, const real* factor, real* losses,
                                 real* dpred, Py_ssize_t n, Py_ssize_t m, double delta=1) noexcept nogil:
    """Row i's loss is the mean of its m element losses."""
    cdef vec bound = vset(<real> delta)
    cdef vec sums[MAX_SUM_VECTORS]
    cdef vec p, loss_of, d, f
    cdef Py_ssize_t i, j
    cdef int lane
    if m == 1:
        # a sample a lane
        for i from 0 <= i < n by VL:
            p = load_up_to(pred + i, n - i, 0)
            loss_of = element_loss(loss, p, load_up_to(target + i, n - i, 0), bound, &d)
            f = load_up_to(factor + i, n - i, 0) if factor != NULL else vset(1)
            store_up_to(losses + i, vfma(p, vset(0), loss_of), n - i)
            store_up_to(dpred + i, f * d, n - i)
        return
    for i in range(n):
        f = vset((factor[i] if factor != NULL else 1) / <real> m)
        clear(sums)
        lane = 0
        for j from 0 <= j < m by VL:
            p = load_up_to(pred + i * m + j, m - j, 0)
            loss_of = element_loss(loss, p, load_up_to(target + i * m + j, m - j, 0), bound, &d)
            loss_of = vfma(p, vset(0), loss_of)
            store_up_to(dpred + i * m + j, loss_of, m - j)
            if m - j < VL:
                loss_of = vload_part(dpred + i * m + j, m - j, 0)
            sums[lane] = sums[lane] + loss_of
            store_up_to(dpred + i * m + j, f * d, m - j)
            lane = (lane + 1) % (SUM_LANES // VL)
        losses[i] = sum_lanes(sums) / <real> m


cdef inline INLINED binary_hinge_rows(int loss, const real* scores, const int64_t* y, const real* factor,
                                      real* losses, real* dscores, Py_ssize_t n) noexcept nogil:
    cdef real target[MAX_VL]
    cdef Py_ssize_t i, j, part
    for i from 0 <= i < n by VL:
        part = min(n - i, <Py_ssize_t> VL)
        for j in range(part):
            target[j] = <real> y[i + j]
        element_rows(loss, scores + i, target, factor + i if factor != NULL else NULL, losses + i, dscores + i,
                     part, 1)


cdef api void hinge(const real* scores, const int64_t* y, const real* factor, real* losses, real* dscores,
                    Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """losses = the sum over j != y of max(0, s_j - s_y + 1); for k = 1, y in {-1, 1}: max(0, 1 - y s)"""
    if k == 1:
        binary_hinge_rows(HINGE, scores, y, factor, losses, dscores, n)
    else:
        hinge_rows(False, scores, y, factor, losses, dscores, n, k)


cdef api void squared_hinge(const real* scores, const int64_t* y, const real* factor, real* losses, real* dscores,
                            Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """losses = the sum over j != y of max(0, s_j - s_y + 1)**2; for k = 1, y in {-1, 1}: max(0, 1 - y s)**2"""
    if k == 1:
        binary_hinge_rows(SQUARED_HINGE, scores, y, factor, losses, dscores, n)
    else:
        hinge_rows(True, scores, y, factor, losses, dscores, n, k)


cdef api void binary_cross_entropy(const real* scores, const real* y, const real* factor, real* losses,
                                   real* dscores, Py_ssize_t n, Py_ssize_t m) noexcept nogil:
    """losses = the mean over m of log(1 + e**s) - y s"""
    element_rows(BINARY_CROSS_ENTROPY, scores, y, factor, losses, dscores, n, m)


cdef api void mse(const real* pred, const real* target, const real* factor, real* losses, real* dpred,
                  Py_ssize_t n, Py_ssize_t m) noexcept nogil:
    """losses = the mean over m of (pred - target)**2"""
    element_rows(MSE, pred, target, factor, losses, dpred, n, m)


cdef api void mae(const real* pred, const real* target, const real* factor, real* losses, real* dpred,
                  Py_ssize_t n, Py_ssize_t m) noexcept nogil:
    """losses = the mean over m of |pred - target|"""
    element_rows(MAE, pred, target, factor, losses, dpred, n, m)


cdef api void msle(const real* pred, const real* target, const real* factor, real* losses, real* dpred,
                   Py_ssize_t n, Py_ssize_t m) noexcept nogil:
    """losses = the mean over m of (log(1 + pred) - log(1 + target))**2"""
    element_rows(MSLE, pred, target, factor, losses, dpred, n, m)


cdef api void huber(const real* pred, const real* target, const real* factor, real* losses, real* dpred,
                    Py_ssize_t n, Py_ssize_t m, double delta) noexcept nogil:
    """losses = the mean over m of a**2 / 2, or delta (|a| - delta / 2) where |a| > delta; a = pred - target"""
    element_rows(HUBER, pred, target, factor, losses, dpred, n, m, delta)


cdef void rank_lanes(const real* scores, const int64_t* y, real* ranks, Py_ssize_t n, Py_ssize_t lanes,
                     Py_ssize_t k) noexcept nogil:
    """ranks[i] = how many classes come before sample i's label, of equal scores the first; scores are (k, lanes)

    For k = 1 and labels -1 and 1 it is 0 where the score's sign is the label's, of 0 -1's, else 1.
    """
    cdef real labels[MAX_VL]
    cdef vec label, at_label, rank, s, equal, half = vset(0.5), one = vset(1), zero = vset(0)
    cdef Py_ssize_t i, j, part
    for i from 0 <= i < n by VL:
        part = min(n - i, <Py_ssize_t> VL)
        for j in range(VL):
            labels[j] = <real> y[i + min(j, part - 1)]
        label, rank, at_label = vload(labels), zero, zero
        if k == 1:
            s = vselect_less(zero, vload(scores + i), one, -one)
            rank = vselect_less(vabs(s - label), half, zero, one)
        else:
            for j in range(k):
                at_label = vselect_less(vabs(label - <real> j), half, vload(scores + j * lanes + i), at_label)
            for j in range(k):
                s = vload(scores + j * lanes + i)
                equal = vselect_less(s, at_label, zero, vselect_less(vset(<real> j), label, one, zero))
                rank = rank + vselect_less(at_label, s, one, equal)
        store_up_to(ranks + i, rank, part)


cdef void loss_rows(int loss, const real* scores, const int64_t* labels, const real* targets, const real* factor,
                    real* losses, real* dscores, Py_ssize_t n, Py_ssize_t k, double option) noexcept nogil:
    """The kernel of that number: labels for the classifiers, targets for the others; its label_smoothing or delta."""
    if loss == SOFTMAX_CROSS_ENTROPY:
        softmax_cross_entropy(scores, labels, factor, losses, dscores, n, k, option)
    elif loss == HUBER:
        huber(scores, targets, factor, losses, dscores, n, k, option)
    elif loss == HINGE:
        hinge(scores, labels, factor, losses, dscores, n, k)
    elif loss == SQUARED_HINGE:
        squared_hinge(scores, labels, factor, losses, dscores, n, k)
    elif loss == BINARY_CROSS_ENTROPY:
        binary_cross_entropy(scores, targets, factor, losses, dscores, n, k)
    elif loss == MSE:
        mse(scores, targets, factor, losses, dscores, n, k)
    elif loss == MAE:
        mae(scores, targets, factor, losses, dscores, n, k)
    else:
        msle(scores, targets, factor, losses, dscores, n, k)


cdef double weighted_sum(const real* values, const real* weight, Py_ssize_t n) noexcept nogil:
    """sum(values * weight) in double precision, element after element; weight NULL is 1"""
    cdef double total = 0
    cdef Py_ssize_t i
    for i in range(n):
        total += <double> values[i] * <double> (weight[i] if weight != NULL else 1)
    return total


LOSSES = {
    "softmax_cross_entropy": SOFTMAX_CROSS_ENTROPY,
    "hinge": HINGE,
    "squared_hinge": SQUARED_HINGE,
    "binary_cross_entropy": BINARY_CROSS_ENTROPY,
    "mse": MSE,
    "mae": MAE,
    "msle": MSLE,
    "huber": HUBER,
}


def call_loss(int loss, const real[:, ::1] scores, const int64_t[::1] labels, const real[:, ::1] targets,
              const real[::1] factor, real[::1] losses, real[:, ::1] dscores, double option=0.0):
    cdef Py_ssize_t n = scores.shape[0], k = scores.shape[1]
    cdef const int64_t* labels_start = &labels[0] if labels is not None else NULL
    cdef const real* targets_start = &targets[0, 0] if targets is not None else NULL
    cdef const real* factor_start = &factor[0] if factor is not None else NULL
    with nogil:
        loss_rows(loss, &scores[0, 0], labels_start, targets_start, factor_start, &losses[0], &dscores[0, 0],
                  n, k, option)


def call_softmax(const real[:, ::1] scores, real[:, ::1] out):
    with nogil:
        softmax(&scores[0, 0], &out[0, 0], scores.shape[0], scores.shape[1])


def call_weighted_sum(const real[::1] values, const real[::1] weight):
    cdef const real* weight_start = &weight[0] if weight is not None else NULL
    cdef double total
    with nogil:
        total = weighted_sum(&values[0], weight_start, values.shape[0])
    return total


def call_ranks(const real[:, ::1] scores, const int64_t[::1] labels, int64_t[::1] ranks):
    """rank_lanes of samples one after another"""
    cdef Py_ssize_t i, j, k = scores.shape[1]
    cdef const real* s
    cdef real at_label
    with nogil:
        for i in range(scores.shape[0]):
            s = &scores[i, 0]
            if k == 1:
                ranks[i] = (s[0] > 0) != (labels[i] > 0)
                continue
            at_label = s[labels[i]]
            ranks[i] = 0
            for j in range(k):
                ranks[i] += s[j] > at_label or (s[j] == at_label and j < labels[i])

# The training engine: whole epochs of gather, forward, loss, backward and update.
#
# A step has two phases of independent units. The rows phase takes blocks of the batch's rows through forward, loss
# and the gradients of the activations, all with the weights of the step before; the weights phase takes blocks of a
# layer's inputs through the weight gradient and, while it is in the first-level cache, the update.
#
# Weights live in panels [out / lanes][in][lanes] of two vectors of outputs (the last may be one vector): the forward
# product reads them with lanes along the outputs, the input gradient broadcasts from them with lanes along the rows,
# and the update writes them where they are. The caller's flat arrays are read by load and written by store only.

cdef enum:
    ROWS_A_GROUP = 32          # two vectors of rows on the widest path
    INPUTS_A_UNIT = 56         # four of the tallest tiles
    PHASE_SHIFT = 28           # units left are counted in the low bits of the shared word
    UNITS_MASK = (1 << 28) - 1

cdef enum Phase:
    ROWS
    FORWARD
    BACKWARD
    WEIGHTS

cdef enum Outcome:
    RUNNING
    PAUSED
    COMPLETED
    STOPPED
    DIVERGED
    BAD_INPUT

cdef struct Layer:
    Py_ssize_t n_in
    Py_ssize_t n_out
    Py_ssize_t ld               # values from a row of outputs to the next
    int activation
    real* weight                # panels
    real* bias
    real* weight_velocity
    real* bias_velocity
    const real** inputs         # the batch's rows
    real* output                # (batch, ld), after activation and dropout
    real* active                # (batch, ld), before dropout; the output itself without
    real* factors               # (batch, ld), dropout's; NULL without
    real* doutput               # (batch, ld), before the activation
    real* doutput_t             # (n_out, batch_ld), the same with lanes along the rows


cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    """n rounded up to whole vectors, and off the strides that fall into one cache set."""
    n = (n + VL - 1) // VL * VL
    return n + VL if n * <Py_ssize_t> sizeof(real) % 1024 == 0 else n


cdef inline double seconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + 1e-9 * now.tv_nsec


cdef class Engine:
    cdef Layer* layers
    cdef int n_layers
    cdef list memory
    cdef Py_ssize_t batch, batch_ld, row_block
    cdef int rule, loss
    cdef double momentum, weight_decay, l1, dropout
    cdef bint decay_bias
    cdef uint64_t seed
    # the data set
    cdef Features features
    cdef const int64_t[::1] labels
    cdef const real[:, ::1] targets
    cdef const real[::1] sample_weight
    cdef const int64_t[::1] order
    cdef const double[::1] rates
    # the batch
    cdef real* gathered
    cdef real* scores
    cdef real* dscores
    cdef real* losses
    cdef real* batch_weight
    cdef real* factor
    cdef int64_t* batch_labels
    cdef real* batch_targets
    cdef Py_ssize_t n, start
    cdef double rate
    # progress
    cdef bint check_finite, stepwise
    cdef readonly Py_ssize_t next_batch
    cdef Py_ssize_t last_batch, first_batch
    cdef readonly uint64_t update_count
    cdef readonly double loss_sum, weight_sum
    cdef int outcome
    cdef readonly object error
    cdef double next_check
    cdef Py_ssize_t claims, claims_a_check
    # shared between threads, each word on a cache line of its own
    cdef int phase
    cdef int n_threads
    cdef int64_t* word
    cdef int64_t* remaining
    cdef int64_t* finished
    cdef int64_t* stop_requested
    cdef int64_t* bad_input

    def __cinit__(self, sizes, activations, Py_ssize_t batch, int loss, int rule, double momentum,
                  double weight_decay, double l1, bint decay_bias, double dropout, uint64_t seed):
        cdef Layer* layer
        cdef Py_ssize_t i, weights = 0, width
        self.memory = []
        self.n_layers = len(sizes) - 1
        self.batch = batch
        self.batch_ld = padded(batch)
        self.loss, self.rule, self.momentum = loss, rule, momentum
        self.weight_decay, self.l1, self.decay_bias = weight_decay, l1, decay_bias
        self.dropout, self.seed = dropout, seed
        self.layers = <Layer*> self.allocate(self.n_layers * sizeof(Layer))
        for i in range(self.n_layers):
            layer = &self.layers[i]
            layer.n_in, layer.n_out, layer.activation = sizes[i], sizes[i + 1], activations[i]
            layer.ld = padded(layer.n_out)
            width = (layer.n_out + VL - 1) // VL * VL
            weights += layer.n_in * width
            layer.weight = self.allocate_reals(layer.n_in * width)
            layer.bias = self.allocate_reals(width)
            if rule != SGD:
                layer.weight_velocity = self.allocate_reals(layer.n_in * width)
                layer.bias_velocity = self.allocate_reals(width)
            layer.inputs = <const real**> self.allocate(batch * sizeof(real*))
            layer.output = self.allocate_reals(batch * layer.ld)
            layer.active = layer.output
            if dropout > 0 and i + 1 < self.n_layers:
                layer.active = self.allocate_reals(batch * layer.ld)
                layer.factors = self.allocate_reals(batch * layer.ld)
            layer.doutput = self.allocate_reals(batch * layer.ld)
            if i > 0:
                layer.doutput_t = self.allocate_reals((layer.n_out + 2 * VL) * self.batch_ld)
        self.link_hidden_rows()
        width = sizes[self.n_layers]
        self.scores = self.allocate_reals(batch * width)
        self.dscores = self.allocate_reals(batch * width)
        self.losses = self.allocate_reals(batch)
        self.batch_weight = self.allocate_reals(batch)
        self.factor = self.allocate_reals(batch)
        self.batch_labels = <int64_t*> self.allocate(batch * sizeof(int64_t))
        self.batch_targets = self.allocate_reals(batch * width)
        self.word = <int64_t*> self.allocate(5 * 64)
        self.remaining = self.word + 8
        self.finished = self.word + 16
        self.stop_requested = self.word + 24
        self.bad_input = self.word + 32
        # Rows in a unit: few leave work for every thread, many read large weights less often.
        self.row_block = ROWS_A_GROUP if weights * <Py_ssize_t> sizeof(real) < (1 << 20) else 4 * ROWS_A_GROUP
        # About a clock reading per million operations.
        self.claims_a_check = max(1, 1000000 // (6 * max(1, weights) * batch))

    cdef void* allocate(self, size_t size) except NULL:
        memory = Memory(size)
        self.memory.append(memory)
        return (<Memory> memory).start

    cdef real* allocate_reals(self, size_t n) except NULL:
        return <real*> self.allocate(n * sizeof(real))

    cdef void link_hidden_rows(self) noexcept:
        cdef int i
        cdef Py_ssize_t r
        for i in range(1, self.n_layers):
            for r in range(self.batch):
                self.layers[i].inputs[r] = self.layers[i - 1].output + r * self.layers[i - 1].ld

    # -- parameters ---------------------------------------------------------------------------------------------

    def load(self, const real[::1] flat, const real[::1] velocity):
        """Parameters (and velocity, unless the rule has none) from flat arrays: weights[0], biases[0], ..."""
        self.move(<real*> &flat[0], True, False)
        if velocity is not None:
            self.move(<real*> &velocity[0], True, True)

    def store(self, real[::1] flat, real[::1] velocity, dict state, dict changes):
        """The reverse of load, and the changes of the state that goes with it: as `commit`, all or none."""
        self.move(&flat[0], False, False)
        if velocity is not None:
            self.move(&velocity[0], False, True)
        state.update(changes)

    cdef void move(self, real* flat, bint inward, bint velocity) noexcept:
        cdef Layer* layer
        cdef Py_ssize_t o, width, lanes
        cdef real* panel
        cdef real* bias
        cdef int i
        for i in range(self.n_layers):
            layer = &self.layers[i]
            bias = layer.bias_velocity if velocity else layer.bias
            for o from 0 <= o < layer.n_out by 2 * VL:
                width = min(layer.n_out - o, <Py_ssize_t> (2 * VL))
                lanes = vectors(width) * VL
                panel = (layer.weight_velocity if velocity else layer.weight) + o * layer.n_in
                if inward:
                    transpose(flat + o * layer.n_in, layer.n_in, width, layer.n_in, panel, lanes)
                else:
                    transpose(panel, lanes, layer.n_in, width, flat + o * layer.n_in, layer.n_in)
            flat += layer.n_in * layer.n_out
            if inward:
                memcpy(bias, flat, layer.n_out * sizeof(real))
            else:
                memcpy(flat, bias, layer.n_out * sizeof(real))
            flat += layer.n_out

    def parameters_finite(self):
        cdef Layer* layer
        cdef int i
        cdef Py_ssize_t width
        for i in range(self.n_layers):
            layer = &self.layers[i]
            width = (layer.n_out + VL - 1) // VL * VL
            if not (all_finite(layer.weight, layer.n_in * width) and all_finite(layer.bias, width)):
                return False
        return True

    # -- data ---------------------------------------------------------------------------------------------------

    def bind(self, Features features, const int64_t[::1] labels, const real[:, ::1] targets,
             const real[::1] sample_weight):
        """The data set of the coming epochs; labels or targets as the loss wants them."""
        self.features, self.labels, self.targets, self.sample_weight = features, labels, targets, sample_weight
        if not features.direct and self.gathered == NULL:
            self.gathered = self.allocate_reals(self.batch * padded(features.width))

    def begin_epoch(self, const int64_t[::1] order, const double[::1] rates, Py_ssize_t first_batch,
                    uint64_t update_count, double loss_sum, double weight_sum, bint check_finite):
        """An epoch over `order` from first_batch on; rates are those of its remaining batches."""
        self.order, self.rates = order, rates
        self.first_batch = self.next_batch = first_batch
        self.last_batch = (self.features.n + self.batch - 1) // self.batch
        self.update_count = update_count
        self.loss_sum, self.weight_sum = loss_sum, weight_sum
        self.check_finite = check_finite
        self.outcome = RUNNING
        self.error = None
        atomic_write(self.bad_input, 0)

    def set_order(self, int64_t[::1] order, uint64_t epoch):
        """order <- the epoch's order of the samples"""
        with nogil:
            shuffle(&order[0], order.shape[0], self.seed, epoch)

    def request_stop(self):
        """Ends the running epoch before its next batch; safe from any thread."""
        atomic_write(self.stop_requested, 1)

    # -- one step -----------------------------------------------------------------------------------------------

    cdef void open_batch(self) noexcept nogil:
        cdef Py_ssize_t r
        cdef double total
        if atomic_read(self.stop_requested):
            self.outcome = STOPPED
            return
        if self.next_batch == self.last_batch:
            self.outcome = COMPLETED
            return
        self.start = self.next_batch * self.batch
        self.n = min(self.batch, self.features.n - self.start)
        self.rate = self.rates[self.next_batch - self.first_batch]
        if self.sample_weight is None:
            for r in range(self.n):
                self.factor[r] = <real> (1.0 / self.n)
        else:
            total = 0
            for r in range(self.n):
                self.batch_weight[r] = self.sample_weight[self.order[self.start + r]]
                total += <double> self.batch_weight[r]
            for r in range(self.n):
                self.factor[r] = <real> (<double> self.batch_weight[r] / total) if total > 0 else 0

    cdef void add_losses(self) noexcept nogil:
        """The batch's losses into the epoch's; a loss that is not finite ends the epoch before the update."""
        cdef bint weighted = self.sample_weight is not None
        cdef double batch_sum = weighted_sum(self.losses, self.batch_weight if weighted else NULL, self.n)
        if atomic_read(self.bad_input):
            self.outcome = BAD_INPUT
        elif batch_sum - batch_sum != 0:
            self.outcome = DIVERGED
        else:
            self.loss_sum += batch_sum
            self.weight_sum += weighted_sum(self.batch_weight, NULL, self.n) if weighted else self.n

    cdef void gather_rows(self, Py_ssize_t r0, Py_ssize_t r1) noexcept nogil:
        cdef Py_ssize_t r, i, ld = padded(self.features.width), width = self.layers[self.n_layers - 1].n_out
        cdef const real* row
        # the rows of the unit that follows, while this one computes
        for r in range(self.start + r1, min(self.start + r1 + self.row_block, self.features.n)):
            self.features.prefetch_row(self.order[r])
        for r in range(r0, r1):
            i = self.order[self.start + r]
            row = self.features.row(i, self.gathered + r * ld if self.gathered != NULL else NULL)
            self.layers[0].inputs[r] = row
            if self.labels is not None:
                self.batch_labels[r] = self.labels[i]
            if self.targets is not None:
                memcpy(self.batch_targets + r * width, &self.targets[i, 0], width * sizeof(real))

    cdef void check_rows(self, Layer* layer, Py_ssize_t r0, Py_ssize_t r1) noexcept nogil:
        # A value that is not finite makes every output of its row's chains so, whatever the weight: one is looked at
        # before the activation, and the row itself only to tell such a value from an overflow.
        cdef Py_ssize_t r
        cdef real first
        for r in range(r0, r1):
            first = layer.active[r * layer.ld]
            if first - first != 0 and not all_finite(layer.inputs[r], layer.n_in):
                atomic_write(self.bad_input, 1)

    cdef void forward_rows(self, Py_ssize_t r0, Py_ssize_t r1) noexcept nogil:
        cdef Layer* layer = self.layers
        cdef Py_ssize_t o, r, j, width, lanes, n_out
        cdef int i
        for i in range(self.n_layers):
            layer = &self.layers[i]
            for o from 0 <= o < layer.n_out by 2 * VL:
                width = min(layer.n_out - o, <Py_ssize_t> (2 * VL))
                lanes = vectors(width) * VL
                product(False, vectors(width), r1 - r0, layer.inputs + r0, 0, layer.n_in,
                        layer.weight + o * layer.n_in, lanes, layer.bias + o, 0,
                        layer.active + r0 * layer.ld + o, layer.ld)
            if i == 0 and self.check_finite:
                self.check_rows(layer, r0, r1)
            for r in range(r0, r1):
                activation_forward(layer.activation, layer.active + r * layer.ld, layer.n_out)
            if layer.factors != NULL:
                for r in range(r0, r1):
                    dropout_factors(layer.factors + r * layer.ld, layer.n_out, r, self.dropout,
                                    self.seed, self.update_count, i)
                    for j in range(layer.n_out):
                        layer.output[r * layer.ld + j] = (layer.active[r * layer.ld + j]
                                                          * layer.factors[r * layer.ld + j])
        n_out = layer.n_out
        for r in range(r0, r1):
            memcpy(self.scores + r * n_out, layer.output + r * layer.ld, n_out * sizeof(real))

    cdef void loss_of_rows(self, Py_ssize_t r0, Py_ssize_t r1) noexcept nogil:
        cdef Py_ssize_t k = self.layers[self.n_layers - 1].n_out
        loss_rows(self.loss, self.scores + r0 * k, self.batch_labels + r0, self.batch_targets + r0 * k,
                  self.factor + r0, self.losses + r0, self.dscores + r0 * k, r1 - r0, k, 0)

    cdef void backward_rows(self, Py_ssize_t r0, Py_ssize_t r1) noexcept nogil:
        """The gradient before every activation, from dscores down to the first layer's."""
        cdef Layer* layer = &self.layers[self.n_layers - 1]
        cdef Layer* below
        cdef Py_ssize_t r, j
        cdef int i
        for r in range(r0, r1):
            memcpy(layer.doutput + r * layer.ld, self.dscores + r * layer.n_out, layer.n_out * sizeof(real))
        for i in range(self.n_layers - 1, 0, -1):
            layer = &self.layers[i]
            below = &self.layers[i - 1]
            transpose(layer.doutput + r0 * layer.ld, layer.ld, r1 - r0, layer.n_out,
                      layer.doutput_t + r0, self.batch_ld)
            for r from r0 <= r < r1 by 2 * VL:
                self.input_gradient(layer, r, min(r1 - r, <Py_ssize_t> (2 * VL)), below.doutput, below.ld)
            for r in range(r0, r1):
                if below.factors != NULL:
                    for j in range(below.n_out):
                        below.doutput[r * below.ld + j] *= below.factors[r * below.ld + j]
                if below.activation != IDENTITY:
                    activation_backward(below.activation, below.active + r * below.ld, below.doutput + r * below.ld,
                                        below.doutput + r * below.ld, below.n_out)

    cdef void input_gradient(self, Layer* layer, Py_ssize_t r, Py_ssize_t n, real* dinput,
                             Py_ssize_t ld) noexcept nogil:
        """dinput[r:r+n] = doutput[r:r+n] @ weight for at most two vectors of rows, which are the lanes"""
        cdef real dinput_t[INPUTS_A_UNIT * 2 * MAX_VL]
        cdef const real* rows[INPUTS_A_UNIT]
        cdef int nv = vectors(n)
        cdef Py_ssize_t lanes_of_rows = nv * VL
        cdef Py_ssize_t k, m, o, j, width, lanes
        cdef const real* start
        for k from 0 <= k < layer.n_in by INPUTS_A_UNIT:
            m = min(layer.n_in - k, <Py_ssize_t> INPUTS_A_UNIT)
            start = NULL
            for o from 0 <= o < layer.n_out by 2 * VL:
                width = min(layer.n_out - o, <Py_ssize_t> (2 * VL))
                lanes = vectors(width) * VL
                for j in range(m):
                    rows[j] = layer.weight + o * layer.n_in + (k + j) * lanes
                product(False, nv, m, rows, 0, width, layer.doutput_t + o * self.batch_ld + r, self.batch_ld,
                        start, lanes_of_rows, dinput_t, lanes_of_rows)
                start = dinput_t
            transpose(dinput_t, lanes_of_rows, m, n, dinput + r * ld + k, ld)

    cdef void update_inputs(self, Layer* layer, Py_ssize_t k, Py_ssize_t m) noexcept nogil:
        """The gradient of weight[:, k:k+m], and its update"""
        cdef real dweight[INPUTS_A_UNIT * 2 * MAX_VL]
        cdef Py_ssize_t o, lanes, at
        for o from 0 <= o < layer.n_out by 2 * VL:
            lanes = vectors(min(layer.n_out - o, <Py_ssize_t> (2 * VL))) * VL
            product(True, <int> (lanes // VL), m, layer.inputs, k, self.n, layer.doutput + o, layer.ld,
                    NULL, 0, dweight, lanes)
            at = o * layer.n_in + k * lanes
            step(self.rule, layer.weight + at, dweight, layer.weight_velocity + at if self.rule != SGD else NULL,
                 m * lanes, self.rate, self.momentum, self.weight_decay, self.l1)

    cdef void update_bias(self, Layer* layer) noexcept nogil:
        cdef real dbias[2 * MAX_VL]
        cdef Py_ssize_t o, width
        for o from 0 <= o < layer.n_out by 2 * VL:
            width = min(layer.n_out - o, <Py_ssize_t> (2 * VL))
            memset(dbias, 0, sizeof(dbias))
            add_rows(layer.doutput + o, layer.ld, self.n, width, dbias)
            step(self.rule, layer.bias + o, dbias, layer.bias_velocity + o if self.rule != SGD else NULL,
                 width, self.rate, self.momentum,
                 self.weight_decay if self.decay_bias else 0, self.l1 if self.decay_bias else 0)

    # -- phases -------------------------------------------------------------------------------------------------

    cdef Py_ssize_t units(self) noexcept nogil:
        """How many units the phase has."""
        cdef Py_ssize_t total = 0
        cdef int i
        if self.phase != WEIGHTS:
            return (self.n + self.row_block - 1) // self.row_block
        for i in range(self.n_layers):
            total += (self.layers[i].n_in + INPUTS_A_UNIT - 1) // INPUTS_A_UNIT
        return total

    cdef void run_unit(self, Py_ssize_t unit) noexcept nogil:
        cdef Py_ssize_t r0, r1, blocks
        cdef Layer* layer
        cdef int i
        if self.phase != WEIGHTS:
            r0 = unit * self.row_block
            r1 = min(self.n, r0 + self.row_block)
            if self.phase != BACKWARD:
                self.gather_rows(r0, r1)
                self.forward_rows(r0, r1)
            if self.phase == ROWS:
                self.loss_of_rows(r0, r1)
            if self.phase != FORWARD:
                self.backward_rows(r0, r1)
            return
        for i in range(self.n_layers):
            layer = &self.layers[i]
            blocks = (layer.n_in + INPUTS_A_UNIT - 1) // INPUTS_A_UNIT
            if unit < blocks:
                self.update_inputs(layer, unit * INPUTS_A_UNIT,
                                   min(layer.n_in - unit * INPUTS_A_UNIT, <Py_ssize_t> INPUTS_A_UNIT))
                if unit == 0:
                    self.update_bias(layer)
                return
            unit -= blocks

    cdef void next_phase(self) noexcept nogil:
        """What follows the phase that just ended; alone, by whichever thread ended it."""
        if self.phase == ROWS:
            self.add_losses()
            self.phase = WEIGHTS
        elif self.phase == BACKWARD:
            self.phase = WEIGHTS
        elif self.phase == FORWARD:
            self.outcome = PAUSED
        else:
            self.next_batch += 1
            self.update_count += 1
            self.phase = ROWS
            if self.stepwise:
                self.outcome = PAUSED
            else:
                self.open_batch()

    # -- threads ------------------------------------------------------------------------------------------------
    # One word holds the phase's number and how many of its units are unclaimed. A thread claims a share of them by
    # compare-and-swap and reads nothing of the step before that succeeds; the phase ends when all claimed units are
    # done, not when all threads have come. So no step waits for a thread that has not started.

    cdef void publish(self, int64_t number) noexcept nogil:
        cdef int64_t count = self.units()
        atomic_write(self.remaining, count)
        atomic_write(self.word, number << PHASE_SHIFT | count)

    cdef void work(self, bint is_caller) noexcept nogil:
        cdef int64_t word, left, share, unit
        cdef Py_ssize_t waits = 0
        while not atomic_read(self.finished):
            word = atomic_read(self.word)
            left = word & UNITS_MASK
            share = (left + self.n_threads - 1) // self.n_threads
            if left == 0 or not atomic_swap_if(self.word, word, word - share):
                spin(waits)
                waits += 1
                continue
            waits = 0
            for unit in range(left - share, left):
                self.run_unit(unit)
            if is_caller:
                self.watch_signals()
            if atomic_subtract(self.remaining, share) == 0:
                self.next_phase()
                if self.outcome != RUNNING:
                    atomic_write(self.finished, 1)
                else:
                    self.publish((word >> PHASE_SHIFT) + 1)

    cdef void watch_signals(self) noexcept nogil:
        cdef double now, waited
        self.claims += 1
        if self.claims < self.claims_a_check:
            return
        self.claims = 0
        now = seconds()
        if now < self.next_check:
            return
        with gil:
            waited = seconds() - now
            try:
                PyErr_CheckSignals()
            except BaseException as error:
                self.error = error
                self.request_stop()
        # beside a busy Python thread the lock itself costs milliseconds
        self.next_check = seconds() + (0.08 if waited > 1e-3 else 0.02)

    cdef void run_phases(self, int n_threads) noexcept nogil:
        """Phases from the one set until the outcome is known."""
        self.n_threads = n_threads
        atomic_write(self.finished, 0)
        self.publish(atomic_read(self.word) >> PHASE_SHIFT)
        if n_threads == 1:
            self.work(True)
        else:
            with parallel(num_threads=n_threads):
                self.work(threadid() == 0)

    def run(self, int n_threads):
        """Trains to the end of the epoch, or to the batch where `outcome` says why not."""
        with nogil:
            self.stepwise = False
            self.open_batch()
            if self.outcome == RUNNING:
                self.phase = ROWS
                self.run_phases(n_threads)
        return OUTCOMES[self.outcome]

    # A step around a Python loss: forward_batch, the loss, backward_batch.

    def forward_batch(self, real[:, ::1] scores, int n_threads):
        """Scores of the next batch into scores[:n]; its outcome is "paused" unless there is no batch to run."""
        with nogil:
            self.stepwise = True
            self.outcome = RUNNING
            self.open_batch()
            if self.outcome == RUNNING:
                self.phase = FORWARD
                self.run_phases(n_threads)
            if atomic_read(self.bad_input):
                self.outcome = BAD_INPUT
            if self.outcome == PAUSED:
                memcpy(&scores[0, 0], self.scores, self.n * scores.shape[1] * sizeof(real))
        return OUTCOMES[self.outcome], self.n

    def backward_batch(self, const real[:, ::1] dscores, double loss_sum, int n_threads):
        """The update for that batch, given the gradient at its scores and the sum of its losses."""
        with nogil:
            memcpy(self.dscores, &dscores[0, 0], self.n * dscores.shape[1] * sizeof(real))
            self.loss_sum += loss_sum
            self.weight_sum += self.n
            self.outcome = RUNNING
            self.phase = BACKWARD
            self.run_phases(n_threads)


# What a signal handler, and so KeyboardInterrupt, must not find half done is done here: no Python bytecode runs
# between the first change and the last.

def commit(list copies, dict state, dict changes, list entries):
    """Copies (to, from) between arrays, changes of the state, entries (list, value) appended."""
    cdef real[::1] to
    cdef const real[::1] source
    cdef list column
    for to, source in copies:
        memcpy(&to[0], &source[0], to.shape[0] * sizeof(real))
    state.update(changes)
    for column, value in entries:
        column.append(value)


cdef class Turn:
    """A context that only one at a time can be in; a second is refused, not kept waiting."""
    cdef object holder

    def __enter__(self):
        if self.holder is not None:
            raise RuntimeError("a fit of this trainer is already running")
        self.holder = get_ident()

    def __exit__(self, *exception):
        self.holder = None

    def is_anothers(self):
        """Whether another thread is in it."""
        return self.holder is not None and self.holder != get_ident()


OUTCOMES = {PAUSED: "paused", COMPLETED: "completed", STOPPED: "stopped", DIVERGED: "diverged", BAD_INPUT: "bad input"}

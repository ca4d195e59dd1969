# The training engine: whole epochs of gather, forward, loss, backward and update.
#
# A step has two phases of independent units. The rows phase takes blocks of the batch's rows through forward, loss
# and the gradients of the activations, all with the weights of the step before; the weights phase takes blocks of a
# layer's inputs through the weight gradient and, while it is in the first-level cache, the update. (Where the
# gradient's norm must be known first, the gradient is kept and a third phase updates.)
#
# In the rows phase vector lanes run along the batch's rows: what belongs to a group of LANES rows lies side by side,
# [out][LANES], as the tiles leave it and as the next layer's want it; only X is transposed, in registers. In the
# weights phase lanes run along a layer's inputs. Weights live in panels [in / LANES][out][LANES], padded with zeros,
# which all three products read where they lie and the update writes. The caller's flat arrays are read by load and
# written by store only.

cdef enum Phase:
    ROWS
    FORWARD
    BACKWARD
    WEIGHTS
    UPDATE      # where the gradient's norm must be known before

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
    int activation
    real* weight                # [in / LANES][out][LANES]
    real* bias
    real* weight_moments[2]     # what the update rule keeps, in the same layout
    real* bias_moments[2]
    real* gradient              # in the same layout, where its norm must be known before the update, and then
    real* bias_gradient
    double* squares             # (in,), of an input's gradients
    real* active                # [rows / LANES][out][LANES], before dropout; the output itself without
    real* factors               # [rows / LANES][out][LANES], dropout's; NULL without
    real* output                # [rows / LANES][out][LANES], after activation and dropout
    real* doutput               # [rows / LANES][out][LANES], before the activation
    # the same for the weights phase, a row's values side by side
    const real** inputs         # a row's first panel of inputs
    Py_ssize_t panel            # from there to its next
    Py_ssize_t unit             # inputs that a unit of the weights phase takes
    real* hidden                # [in / LANES][rows][LANES], where `inputs` points but for the first layer
    real* doutput_rows          # [out / height of a tile][rows][height]


cdef inline Py_ssize_t whole(Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    """n rounded up to a multiple of size"""
    return (n + size - 1) // size * size


cdef inline double seconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + 1e-9 * now.tv_nsec


cdef class Engine:
    cdef Layer* layers
    cdef int n_layers
    cdef list memory
    cdef Py_ssize_t batch, row_block
    cdef bint streamed
    cdef int loss, n_moments
    cdef double loss_option         # label_smoothing or delta
    cdef Settings settings
    cdef double dropout
    cdef uint64_t seed
    # the data set
    cdef Features features
    cdef const int64_t[::1] labels
    cdef const real[:, ::1] targets
    cdef const real[::1] sample_weight
    cdef const int64_t[::1] order
    cdef const double[::1] rates
    cdef const double[::1] momenta
    # the batch
    cdef real* gathered           # the batch's rows where they can't be read in place
    cdef Py_ssize_t gathered_row  # from one of them to the next
    cdef bint crowded             # in place, rows would share cache sets
    cdef const real** ends       # a row's last inputs, where they don't fill a panel,
    cdef real* end_panel         # (batch, LANES), padded with zeros
    cdef const char** places[2]  # where the rows lie of batches 0, 2, ... and 1, 3, ...
    cdef Py_ssize_t n_next
    cdef real* scores
    cdef real* dscores
    cdef real* losses
    cdef real* ranks
    cdef real* batch_weight
    cdef real* factor
    cdef int64_t* batch_labels
    cdef real* batch_targets
    cdef Py_ssize_t n, start
    cdef double rate, momentum, next_momentum
    cdef Update weight_update, bias_update
    cdef double next_l1_total
    # progress
    cdef bint check_finite, stepwise, together
    cdef readonly Py_ssize_t next_batch
    cdef Py_ssize_t last_batch, first_batch
    cdef readonly uint64_t update_count
    cdef readonly double loss_sum, weight_sum
    cdef readonly double l1_total   # of the cumulative penalty
    cdef readonly double n_correct  # samples whose highest score was at their label,
    cdef readonly double n_in_top   # or whose label was among the top_k
    cdef double top_k
    cdef int outcome
    cdef readonly object error
    cdef double next_check
    cdef Py_ssize_t claims, claims_a_check
    cdef int phase
    cdef Job job
    # from any thread
    cdef int64_t stop_requested
    cdef int64_t bad_input

    def __cinit__(self, sizes, activations, Py_ssize_t batch, int loss, double loss_option, double top_k,
                  dict settings, int n_moments, double dropout, uint64_t seed):
        cdef Layer* layer
        cdef Py_ssize_t i, r, j, weights = 0, size, rows = whole(batch, LANES)
        if batch > (1 << 56) // (max(sizes) + 64):  # below, no size in bytes overflows
            raise MemoryError(f"for batches of {batch} samples")
        self.memory = []
        self.n_layers = len(sizes) - 1
        self.batch = batch
        self.loss_option, self.top_k = loss_option, top_k
        self.rate = <double> NOT_A_NUMBER
        self.loss, self.settings, self.n_moments = loss, settings_from(settings), n_moments
        self.dropout, self.seed = dropout, seed
        self.layers = <Layer*> self.allocate(self.n_layers * sizeof(Layer))
        memset(self.layers, 0, self.n_layers * sizeof(Layer))
        for i in range(self.n_layers):
            layer = &self.layers[i]
            layer.n_in, layer.n_out, layer.activation = sizes[i], sizes[i + 1], activations[i]
            size = whole(layer.n_in, LANES) * layer.n_out
            weights += size
            layer.weight = self.allocate_reals(size)
            layer.bias = self.allocate_reals(layer.n_out)
            for j in range(2):
                # without, any address will do
                layer.weight_moments[j] = self.allocate_reals(size) if j < n_moments else layer.weight
                layer.bias_moments[j] = self.allocate_reals(layer.n_out) if j < n_moments else layer.bias
            if self.settings.clip_norm < INFINITY:
                layer.gradient = self.allocate_reals(size)
                layer.bias_gradient = self.allocate_reals(layer.n_out)
                layer.squares = <double*> self.allocate(whole(layer.n_in, LANES) * sizeof(double))
            layer.output = self.allocate_reals(rows * layer.n_out)
            layer.active = layer.output
            if dropout > 0 and i + 1 < self.n_layers:
                layer.active = self.allocate_reals(rows * layer.n_out)
                layer.factors = self.allocate_reals(rows * layer.n_out)
            layer.doutput = self.allocate_reals(rows * layer.n_out)
            layer.doutput_rows = self.allocate_reals(rows * layer.n_out)
            layer.inputs = <const real**> self.allocate((rows + AHEAD) * sizeof(real*))
            layer.panel = LANES
            layer.unit = max(1, 32 // layer.n_out) * LANES  # so that a unit of a narrow layer is worth its claim
            if i > 0:
                layer.panel = rows * LANES
                layer.hidden = self.allocate_reals(rows * whole(layer.n_in, LANES))
                memset(layer.hidden, 0, rows * whole(layer.n_in, LANES) * sizeof(real))  # its last panel's padding
                for r in range(rows + AHEAD):
                    layer.inputs[r] = layer.hidden + r * LANES
        self.ends = <const real**> self.allocate((rows + AHEAD) * sizeof(real*))
        self.end_panel = self.allocate_reals(rows * LANES)
        for i in range(2):
            self.places[i] = <const char**> self.allocate(batch * sizeof(char*))
        for r in range(rows + AHEAD):
            self.layers.inputs[r] = self.end_panel
            self.ends[r] = self.end_panel + r * LANES
        size = sizes[self.n_layers]
        self.scores = self.allocate_reals(batch * size)
        self.dscores = self.allocate_reals(batch * size)
        self.losses = self.allocate_reals(rows)
        self.ranks = self.allocate_reals(rows)
        self.batch_weight = self.allocate_reals(batch)
        self.factor = self.allocate_reals(rows)
        self.batch_labels = <int64_t*> self.allocate(rows * sizeof(int64_t))
        self.batch_targets = self.allocate_reals(batch * size)
        # Rows in a unit: few leave work for every thread, many read large weights less often.
        self.row_block = ROWS_A_UNIT if weights * <Py_ssize_t> sizeof(real) < (1 << 20) else 2 * ROWS_A_UNIT
        self.streamed = weights * <Py_ssize_t> sizeof(real) > (1 << 20)
        # About a clock reading per million operations.
        self.claims_a_check = max(1, 1000000 // (6 * max(1, weights) * batch))

    cdef void* allocate(self, size_t size) except NULL:
        memory = Memory(size)
        self.memory.append(memory)
        return (<Memory> memory).start

    cdef real* allocate_reals(self, size_t n) except NULL:
        return <real*> self.allocate(n * sizeof(real))

    # -- parameters ---------------------------------------------------------------------------------------------

    def load(self, const real[::1] flat, const real[::1] moments):
        """Parameters from a flat array, weights[0], biases[0], ...; moments, None without, from one after another"""
        cdef int which
        self.move(<real*> &flat[0], True, -1)
        for which in range(self.n_moments):
            self.move(<real*> &moments[which * flat.shape[0]], True, which)

    def store(self, real[::1] flat, real[::1] moments):
        """The reverse of load; moments are None where they are not wanted."""
        self.put(flat, moments)

    cdef void put(self, real[::1] flat, real[::1] moments) noexcept:
        cdef int which
        self.move(&flat[0], False, -1)
        if moments is not None:
            for which in range(self.n_moments):
                self.move(&moments[which * flat.shape[0]], False, which)

    cdef void move(self, real* flat, bint inward, int moment) noexcept:
        cdef Layer* layer
        cdef Py_ssize_t o, k, width
        cdef real* panel
        cdef real* bias
        cdef int i
        for i in range(self.n_layers):
            layer = &self.layers[i]
            bias = layer.bias if moment < 0 else layer.bias_moments[moment]
            panel = layer.weight if moment < 0 else layer.weight_moments[moment]
            if inward:
                memset(panel, 0, whole(layer.n_in, LANES) * layer.n_out * sizeof(real))
            for k from 0 <= k < layer.n_in by LANES:
                width = min(layer.n_in - k, <Py_ssize_t> LANES)
                for o in range(layer.n_out):
                    if inward:
                        memcpy(panel + o * LANES, flat + o * layer.n_in + k, width * sizeof(real))
                    else:
                        memcpy(flat + o * layer.n_in + k, panel + o * LANES, width * sizeof(real))
                panel += layer.n_out * LANES
            flat += layer.n_in * layer.n_out
            if inward:
                memcpy(bias, flat, layer.n_out * sizeof(real))
            else:
                memcpy(flat, bias, layer.n_out * sizeof(real))
            flat += layer.n_out

    def parameters_finite(self):
        """Whether the parameters are, and what the rule keeps"""
        cdef Layer* layer
        cdef int i, j
        for i in range(self.n_layers):
            layer = &self.layers[i]
            if not (all_finite(layer.weight, whole(layer.n_in, LANES) * layer.n_out)
                    and all_finite(layer.bias, layer.n_out)):
                return False
            for j in range(self.n_moments):
                if not (all_finite(layer.weight_moments[j], whole(layer.n_in, LANES) * layer.n_out)
                        and all_finite(layer.bias_moments[j], layer.n_out)):
                    return False
        return True

    # -- data ---------------------------------------------------------------------------------------------------

    def bind(self, Features features, const int64_t[::1] labels, const real[:, ::1] targets,
             const real[::1] sample_weight):
        """The data set of the coming epochs; labels or targets as the loss wants them."""
        self.features, self.labels, self.targets, self.sample_weight = features, labels, targets, sample_weight
        # Lines at such distances share a cache set, whose ways don't suffice for a group of rows. A narrow layer gives
        # too little to compute meanwhile.
        self.crowded = (features.direct and features.buffer.strides[0] % 4096 == 0
                        and tiles_of(self.layers.n_out) == 1)
        if (self.crowded or not features.direct) and self.gathered == NULL:
            self.gathered_row = whole(features.width, LANES) + VL
            self.gathered = self.allocate_reals(self.batch * self.gathered_row)

    def begin_epoch(self, const int64_t[::1] order, const double[::1] rates, const double[::1] momenta,
                    Py_ssize_t first_batch, uint64_t update_count, double loss_sum, double weight_sum,
                    double n_correct, double n_in_top, double l1_total, bint check_finite):
        """An epoch over `order` from first_batch on; rates and momenta are those of its remaining batches, and of the
        next epoch's first."""
        self.order, self.rates, self.momenta = order, rates, momenta
        self.n_correct, self.n_in_top = n_correct, n_in_top
        self.l1_total = self.next_l1_total = l1_total
        self.first_batch = self.next_batch = first_batch
        self.last_batch = (self.features.n + self.batch - 1) // self.batch
        self.update_count = update_count
        self.loss_sum, self.weight_sum = loss_sum, weight_sum
        self.check_finite = check_finite
        self.outcome = RUNNING
        self.error = None
        atomic_write(&self.bad_input, 0)

    def set_order(self, int64_t[::1] order, uint64_t epoch):
        """order <- the epoch's order of the samples"""
        with nogil:
            shuffle(&order[0], order.shape[0], self.seed, epoch)

    def request_stop(self):
        """Ends the running epoch before its next batch; safe from any thread."""
        atomic_write(&self.stop_requested, 1)

    # -- one step -----------------------------------------------------------------------------------------------

    cdef void open_batch(self) noexcept nogil:
        cdef Py_ssize_t r, i = self.next_batch - self.first_batch
        cdef double total
        if atomic_read(&self.stop_requested):
            self.outcome = STOPPED
            return
        if self.next_batch == self.last_batch:
            self.outcome = COMPLETED
            return
        self.start = self.next_batch * self.batch
        self.n = min(self.batch, self.features.n - self.start)
        self.set_updates(self.rates[i], self.momenta[i], self.momenta[i + 1])
        if self.next_batch == self.first_batch:
            self.place_rows(self.next_batch % 2, self.start)
        self.n_next = self.place_rows((self.next_batch + 1) % 2, self.start + self.n)
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

    cdef void set_updates(self, double rate, double momentum, double next_momentum) noexcept nogil:
        """The numbers of the batch's step; those of the one before where nothing in them changes"""
        cdef Settings* s = &self.settings
        cdef double l1 = rate * s.l1
        cdef bint every = s.rule == ADAM or s.per_batch or s.l1_mode == CUMULATIVE or s.clip_norm < INFINITY
        if (rate == self.rate and momentum == self.momentum and next_momentum == self.next_momentum and not every
                and self.update_count > 1):
            return
        self.rate, self.momentum, self.next_momentum = rate, momentum, next_momentum
        if s.l1_mode == CUMULATIVE:
            self.next_l1_total = self.l1_total + (l1 / self.n if s.per_batch else l1)
        self.weight_update = update_at(s, self.update_count, rate, momentum, next_momentum, self.n, self.next_l1_total,
                                       True)
        self.bias_update = update_at(s, self.update_count, rate, momentum, next_momentum, self.n, self.next_l1_total,
                                     s.decay_bias)

    cdef void add_losses(self) noexcept nogil:
        """The batch's losses into the epoch's; a loss that is not finite ends the epoch before the update."""
        cdef bint weighted = self.sample_weight is not None
        cdef Py_ssize_t r, n_correct = 0, n_in_top = 0
        cdef double batch_sum = weighted_sum(self.losses, self.batch_weight if weighted else NULL, self.n)
        if atomic_read(&self.bad_input):
            self.outcome = BAD_INPUT
        elif batch_sum - batch_sum != 0:
            self.outcome = DIVERGED
        else:
            self.loss_sum += batch_sum
            if self.labels is not None:
                for r in range(self.n):
                    n_correct += self.ranks[r] < 1
                    n_in_top += self.ranks[r] < self.top_k
                self.n_correct += n_correct
                self.n_in_top += n_in_top
            self.weight_sum += weighted_sum(self.batch_weight, NULL, self.n) if weighted else self.n

    cdef void gather_rows(self, Py_ssize_t r0, Py_ssize_t r1) noexcept nogil:
        cdef Layer* first = self.layers
        cdef Py_ssize_t r, i, whole_panels = first.n_in // LANES * LANES, ragged = first.n_in - whole_panels
        cdef Py_ssize_t n_out = self.layers[self.n_layers - 1].n_out
        cdef const real* row
        for r in range(r0, r1):
            i = self.order[self.start + r]
            row = self.features.row(i, self.gathered + r * self.gathered_row if self.gathered != NULL else NULL)
            first.inputs[r] = self.gathered + r * self.gathered_row if self.crowded else row
            if ragged > 0:
                vstore(self.end_panel + r * LANES, vload_part(row + whole_panels, min(ragged, <Py_ssize_t> VL), 0))
            if ragged > VL:
                vstore(self.end_panel + r * LANES + VL, vload_part(row + whole_panels + VL, ragged - VL, 0))
            if self.labels is not None:
                self.batch_labels[r] = self.labels[i]
            if self.targets is not None:
                memcpy(self.batch_targets + r * n_out, &self.targets[i, 0], n_out * sizeof(real))
        # lanes without a row of their own
        for r in range(r1, whole(r1, VL)):
            first.inputs[r] = first.inputs[r1 - 1]

    cdef void fetch_ahead(self, Fetch* fetch, bint in_weights_phase, Py_ssize_t part, Py_ssize_t parts,
                          Py_ssize_t steps) noexcept nogil:
        """Part 0 .. parts-1 of the rows that the phase asks for, spread over `steps` steps of tiles"""
        # The batch's second half while the first is computed, then the next batch's first half: a whole batch ahead,
        # a large one would not stay in the second-level cache. A batch of one unit is needed all at once, and so is
        # what several threads compute together.
        cdef bint whole_batch = self.together or self.n <= self.row_block
        cdef Py_ssize_t batch = self.next_batch + (in_weights_phase or whole_batch)
        cdef Py_ssize_t n = self.n if batch == self.next_batch else self.n_next
        cdef Py_ssize_t first = 0 if in_weights_phase != whole_batch else n // 2
        n = n - n // 2 if first > 0 else n // 2
        cdef const char** rows = self.places[batch % 2] + first
        cdef Py_ssize_t lines = max(<Py_ssize_t> 1, self.features.lines), total = n * self.features.lines
        cdef Py_ssize_t start = part * total // parts
        cdef Py_ssize_t group = start // (8 * lines) * 8, height = max(<Py_ssize_t> 1, min(<Py_ssize_t> 8, n - group))
        fetch.rows, fetch.n_rows, fetch.lines = rows, n, lines
        fetch.left = (part + 1) * total // parts - start
        fetch.steps = max(1, steps // max(1, fetch.left))
        fetch.line = (start - group * lines) // height
        fetch.row = group + (start - group * lines) % height

    cdef Py_ssize_t place_rows(self, int which, Py_ssize_t start) noexcept nogil:
        """Where the rows of the batch from `start` on lie; how many they are"""
        cdef Py_ssize_t r, i, n = min(self.batch, self.features.n - start)
        for r in range(n):
            # in either half rows from everywhere, where threads are to ask for what they will compute themselves
            i = r if not self.together else 2 * r if r < (n + 1) // 2 else 2 * (r - (n + 1) // 2) + 1
            self.places[which][r] = self.features.place(self.order[start + i])
        return n

    cdef const real** rows_from(self, Py_ssize_t r, Py_ssize_t r1, Py_ssize_t k, Py_ssize_t steps,
                                const real** rows) noexcept nogil:
        """rows[j] = row r + j of X from k on, for VL of them; crowded ones of r .. r1 - 1 are copied so far"""
        cdef Py_ssize_t j
        for j in range(VL):
            rows[j] = self.layers.inputs[r + j] + k
            if self.crowded and r + j < r1:
                memcpy(<real*> rows[j], <const real*> self.features.place(self.order[self.start + r + j]) + k,
                       steps * sizeof(real))
        return rows

    cdef void check_rows(self, Py_ssize_t r0, Py_ssize_t r1) noexcept nogil:
        # A value that is not finite makes every output of its row's chains so, whatever the weight: one is looked at
        # before the activation, and the row itself only to tell such a value from an overflow.
        cdef Layer* first = self.layers
        cdef Py_ssize_t r
        cdef real value
        for r in range(r0, r1):
            value = first.active[r // LANES * LANES * first.n_out + r % LANES]
            if value - value != 0 and not all_finite(first.inputs[r], first.n_in):
                atomic_write(&self.bad_input, 1)

    cdef void forward_rows(self, Py_ssize_t r0, Py_ssize_t r1) noexcept nogil:
        cdef vec x_block[BLOCK_VECTORS]
        cdef vec block[MAX_VL]
        cdef const real* rows[MAX_VL]
        cdef real* x = <real*> x_block
        cdef Layer* layer = self.layers
        cdef const real* inputs
        cdef real* active
        cdef real* weight
        cdef real* ahead
        cdef Py_ssize_t r, k, j, o, t, height, tiles, steps, lanes
        cdef int i, v, nv
        cdef bint turned
        cdef Fetch fetch
        fetch_nothing(&fetch)
        self.fetch_ahead(&fetch, False, r0 // self.row_block, (self.n + self.row_block - 1) // self.row_block,
                         (r1 - r0 + LANES - 1) // LANES * tiles_of(layer.n_out) * layer.n_in)
        for i in range(self.n_layers):
            layer = &self.layers[i]
            tiles = tiles_of(layer.n_out)
            turned = i > 0 or tiles > 1
            for k from 0 <= k < layer.n_in by BLOCK:
                steps = min(layer.n_in - k, <Py_ssize_t> BLOCK)
                if i == 0 and turned:
                    for r from r0 <= r < r1 by VL:
                        # VL rows after one another in lanes of their own, LANES rows side by side
                        self.rows_from(r, r1, k, steps, rows)
                        lanes = vectors(r1 - (r - r % LANES)) * VL
                        for j from 0 <= j < steps by VL:
                            load_turned(rows, j, min(steps - j, <Py_ssize_t> VL), block)
                            for v in range(VL):
                                vstore(x + (r - r % LANES - r0) * BLOCK + (j + v) * lanes + r % LANES, block[v])
                o = 0
                for t in range(tiles):
                    height = layer.n_out * (t + 1) // tiles - o
                    weight = layer.weight + k * layer.n_out + o * LANES
                    for r from r0 <= r < r1 by LANES:
                        nv = vectors(r1 - r)
                        lanes = nv * VL
                        active = layer.active + r * layer.n_out + o * lanes
                        if k == 0:
                            for j in range(height):
                                vstore(active + j * lanes, vset(layer.bias[o + j]))
                                if nv == 2:
                                    vstore(active + j * lanes + VL, vset(layer.bias[o + j]))
                        if i == 0:
                            inputs = x + (r - r0) * BLOCK
                        else:
                            inputs = self.layers[i - 1].output + r * layer.n_in + k * lanes
                        if self.streamed:
                            # the next tile's weights: two of its panels for one group of rows, two for another
                            ahead = weight + height * LANES + (r - r0) * 2 % BLOCK // LANES * layer.n_out * LANES
                            add_addresses(&fetch, 0, ahead, height * LANES)
                            add_addresses(&fetch, BLOCK // 2, ahead + layer.n_out * LANES, height * LANES)
                        if turned:
                            product(BY_PANEL, nv, height, weight, layer.n_out * LANES, steps, inputs, lanes, NULL, True,
                                    active, lanes, addresses_of(&fetch, steps))
                            continue
                        for v in range(nv):
                            product(TURNED, 1, height, weight, layer.n_out * LANES, steps, NULL, 0,
                                    self.rows_from(r + v * VL, r1, k, steps, rows), True, active + v * VL, lanes,
                                    addresses_of(&fetch, steps))
                    o += height
            if i == 0:
                fetch_nothing(&fetch)
            if i == 0 and self.check_finite:
                self.check_rows(r0, r1)
            for r from r0 <= r < r1 by LANES:
                lanes = vectors(r1 - r) * VL
                active = layer.active + r * layer.n_out
                activation_forward(layer.activation, active, layer.n_out * lanes)
                if layer.factors != NULL:
                    dropout_factors(layer.factors + r * layer.n_out, lanes, layer.n_out, r, self.dropout,
                                    self.seed, self.update_count, i)
                    multiply(active, layer.factors + r * layer.n_out, layer.output + r * layer.n_out,
                             layer.n_out * lanes)

    cdef void loss_of_rows(self, Py_ssize_t r0, Py_ssize_t r1, bint scores_only, bint given) noexcept nogil:
        """The loss at the last layer's output, and its gradient"""
        cdef Layer* layer = &self.layers[self.n_layers - 1]
        cdef Py_ssize_t k = layer.n_out, r, n, lanes
        for r from r0 <= r < r1 by LANES:
            n = min(r1 - r, <Py_ssize_t> LANES)
            lanes = vectors(n) * VL
            if self.labels is not None:
                rank_lanes(layer.output + r * k, self.batch_labels + r, self.ranks + r, n, lanes, k)
            if self.loss == SOFTMAX_CROSS_ENTROPY and k <= SUM_LANES:
                softmax_cross_entropy_lanes(layer.output + r * k, self.batch_labels + r, self.factor + r,
                                            self.losses + r, layer.doutput + r * k, lanes, k, self.loss_option)
                continue
            if not given:
                transpose(layer.output + r * k, lanes, k, n, self.scores + r * k, k)
            if scores_only:
                continue
            if not given:
                loss_rows(self.loss, self.scores + r * k, self.batch_labels + r, self.batch_targets + r * k,
                          self.factor + r, self.losses + r, self.dscores + r * k, n, k, self.loss_option)
            transpose(self.dscores + r * k, k, n, k, layer.doutput + r * k, lanes)

    cdef void backward_rows(self, Py_ssize_t r0, Py_ssize_t r1) noexcept nogil:
        """The gradient before every activation, from the last layer's down to the first's"""
        cdef Layer* layer
        cdef Layer* below
        cdef Py_ssize_t r, size
        cdef int i
        for i in range(self.n_layers - 1, 0, -1):
            layer = &self.layers[i]
            below = &self.layers[i - 1]
            self.input_gradient(layer, r0, r1, below.doutput)
            for r from r0 <= r < r1 by LANES:
                size = vectors(r1 - r) * VL * below.n_out
                if below.factors != NULL:
                    multiply(below.doutput + r * below.n_out, below.factors + r * below.n_out,
                             below.doutput + r * below.n_out, size)
                if below.activation != IDENTITY:
                    activation_backward(below.activation, below.active + r * below.n_out,
                                        below.doutput + r * below.n_out, below.doutput + r * below.n_out, size)

    cdef void input_gradient(self, Layer* layer, Py_ssize_t r0, Py_ssize_t r1, real* dinput) noexcept nogil:
        """dinput = weight.T @ doutput"""
        cdef Py_ssize_t r, k, o, m, steps, lanes
        cdef real* weight
        cdef real* ahead
        cdef Fetch fetch
        fetch_nothing(&fetch)
        for k from 0 <= k < layer.n_in by LANES:
            m = min(layer.n_in - k, <Py_ssize_t> LANES)
            for o from 0 <= o < layer.n_out by BLOCK:
                steps = min(layer.n_out - o, <Py_ssize_t> BLOCK)
                for r from r0 <= r < r1 by LANES:
                    lanes = vectors(r1 - r) * VL
                    weight = layer.weight + k * layer.n_out + o * LANES
                    if self.streamed:
                        ahead = weight + (BLOCK + (r - r0) // LANES % 2 * BLOCK // 2) * LANES
                        add_addresses(&fetch, 0, ahead, BLOCK // 4 * LANES)
                        add_addresses(&fetch, 1, ahead + BLOCK // 4 * LANES, BLOCK // 4 * LANES)
                    product(BY_COLUMN, vectors(r1 - r), m, weight, LANES, steps,
                            layer.doutput + r * layer.n_out + o * lanes, lanes, NULL, o > 0,
                            dinput + r * layer.n_in + k * lanes, lanes, fetch.addresses)

    cdef void turn_rows(self, Py_ssize_t r0, Py_ssize_t r1) noexcept nogil:
        """Hidden outputs and gradients as the weights phase reads them: a row's values side by side"""
        cdef Layer* layer
        cdef Py_ssize_t r, n, k, o, t, height, lanes, rows = whole(self.batch, LANES)
        cdef int i
        for i in range(self.n_layers):
            layer = &self.layers[i]
            for r from r0 <= r < r1 by LANES:
                n = min(r1 - r, <Py_ssize_t> LANES)
                lanes = vectors(n) * VL
                if i > 0:
                    for k from 0 <= k < layer.n_in by LANES:
                        transpose(self.layers[i - 1].output + r * layer.n_in + k * lanes, lanes,
                                  min(layer.n_in - k, <Py_ssize_t> LANES), n,
                                  layer.hidden + k * rows + r * LANES, LANES)
                o = 0
                for t in range(tiles_of(layer.n_out)):
                    height = layer.n_out * (t + 1) // tiles_of(layer.n_out) - o
                    transpose(layer.doutput + r * layer.n_out + o * lanes, lanes, height, n,
                              layer.doutput_rows + o * rows + r * height, height)
                    o += height

    cdef void update_panels(self, Layer* layer, Py_ssize_t unit, Py_ssize_t units) noexcept nogil:
        """The gradient of a unit's panels of weights, and their update"""
        cdef Py_ssize_t k, start = unit * layer.unit
        cdef Fetch fetch
        fetch_nothing(&fetch)
        if layer == self.layers:
            self.fetch_ahead(&fetch, True, unit, units, layer.unit // LANES * tiles_of(layer.n_out) * self.n)
        for k from start <= k < min(start + layer.unit, layer.n_in) by LANES:
            self.update_panel(layer, k, &fetch)
        if unit == 0:
            self.update_bias(layer)

    cdef void update_panel(self, Layer* layer, Py_ssize_t k, Fetch* fetch) noexcept nogil:
        """The gradient of weight[:, k:k+LANES], and its update"""
        cdef vec dweight_tile[MR * 2]
        cdef real* dweight = <real*> dweight_tile
        cdef Py_ssize_t r, n, t, o = 0, next_o, tiles = tiles_of(layer.n_out), at, offset = k // LANES * layer.panel
        cdef Py_ssize_t rows = whole(self.batch, LANES)
        cdef const real** inputs = layer.inputs
        cdef int nv = vectors(layer.n_in - k)
        if nv == 1:
            memset(dweight, 0, sizeof(dweight_tile))
        if layer == self.layers and k + LANES > layer.n_in:
            inputs, offset = self.ends, 0
        for t in range(tiles):
            next_o = layer.n_out * (t + 1) // tiles
            if self.streamed:
                at = k * layer.n_out + next_o * LANES
                add_addresses(fetch, 0, layer.weight + at, (next_o - o) * LANES)
                if self.n_moments > 0:
                    add_addresses(fetch, 1, layer.weight_moments[0] + at, (next_o - o) * LANES)
            for r from 0 <= r < self.n by BLOCK:
                n = min(self.n - r, <Py_ssize_t> BLOCK)
                product(SCATTERED, nv, next_o - o, layer.doutput_rows + o * rows + r * (next_o - o), next_o - o, n,
                        NULL, offset, inputs + r, r > 0, dweight, LANES, addresses_of(fetch, n))
            at = k * layer.n_out + o * LANES
            if layer.gradient == NULL:
                update(&self.weight_update, layer.weight + at, dweight, layer.weight_moments[0] + at,
                       layer.weight_moments[1] + at, (next_o - o) * LANES)
            else:
                memcpy(layer.gradient + at, dweight, (next_o - o) * LANES * sizeof(real))
            o = next_o
        if layer.gradient != NULL:
            add_squares(layer.gradient + k * layer.n_out, layer.n_out, layer.squares + k)

    cdef void update_bias(self, Layer* layer) noexcept nogil:
        cdef real dbias[2 * MAX_VL]
        cdef Py_ssize_t t, o = 0, height, rows = whole(self.batch, LANES)
        for t in range(tiles_of(layer.n_out)):
            height = layer.n_out * (t + 1) // tiles_of(layer.n_out) - o
            memset(dbias, 0, sizeof(dbias))
            add_rows(layer.doutput_rows + o * rows, height, self.n, height, dbias)
            if layer.gradient == NULL:
                update(&self.bias_update, layer.bias + o, dbias, layer.bias_moments[0] + o, layer.bias_moments[1] + o,
                       height)
            else:
                memcpy(layer.bias_gradient + o, dbias, height * sizeof(real))
            o += height

    cdef void scale_gradient(self) noexcept nogil:
        """The scale of the update, from the norm of the whole gradient: each input's squares, one after another"""
        cdef Layer* layer
        cdef double squares = 0
        cdef Py_ssize_t j
        cdef int i
        for i in range(self.n_layers):
            layer = &self.layers[i]
            for j in range(layer.n_in):
                squares += layer.squares[j]
            for j in range(layer.n_out):
                squares += <double> layer.bias_gradient[j] * <double> layer.bias_gradient[j]
        if squares - squares != 0:
            self.outcome = DIVERGED
        scale_for_norm(&self.weight_update, self.settings.clip_norm, squares)
        scale_for_norm(&self.bias_update, self.settings.clip_norm, squares)

    cdef void apply_gradient(self, Layer* layer, Py_ssize_t unit) noexcept nogil:
        """The update of a unit's panels of weights by the gradient kept"""
        cdef Py_ssize_t start = unit * layer.unit, at = start * layer.n_out
        cdef Py_ssize_t stop = min(start + layer.unit, whole(layer.n_in, LANES))
        update(&self.weight_update, layer.weight + at, layer.gradient + at, layer.weight_moments[0] + at,
               layer.weight_moments[1] + at, (stop - start) * layer.n_out)
        if unit == 0:
            update(&self.bias_update, layer.bias, layer.bias_gradient, layer.bias_moments[0], layer.bias_moments[1],
                   layer.n_out)

    # -- phases -------------------------------------------------------------------------------------------------

    cdef Py_ssize_t units(self) noexcept nogil:
        """How many units the phase has."""
        cdef Py_ssize_t total = 0
        cdef int i
        if self.phase < WEIGHTS:
            return (self.n + self.row_block - 1) // self.row_block
        for i in range(self.n_layers):
            total += (self.layers[i].n_in + self.layers[i].unit - 1) // self.layers[i].unit
        return total

    cdef void run_unit(self, Py_ssize_t unit) noexcept nogil:
        cdef Py_ssize_t r0, r1, units
        cdef Layer* layer
        cdef int i
        if self.phase < WEIGHTS:
            r0 = unit * self.row_block
            r1 = min(self.n, r0 + self.row_block)
            if self.phase != BACKWARD:
                self.gather_rows(r0, r1)
                self.forward_rows(r0, r1)
            self.loss_of_rows(r0, r1, self.phase == FORWARD, self.phase == BACKWARD)
            if self.phase != FORWARD:
                self.backward_rows(r0, r1)
                self.turn_rows(r0, r1)
            return
        for i in range(self.n_layers):
            layer = &self.layers[i]
            units = (layer.n_in + layer.unit - 1) // layer.unit
            if unit < units:
                if self.phase == WEIGHTS:
                    self.update_panels(layer, unit, units)
                else:
                    self.apply_gradient(layer, unit)
                return
            unit -= units

    cdef Py_ssize_t next_phase(self) noexcept nogil:
        """What follows the phase that just ended; alone, by whichever thread ended it. Units, 0 where nothing does."""
        if self.phase == ROWS:
            self.add_losses()
            self.phase = WEIGHTS
        elif self.phase == BACKWARD:
            self.phase = WEIGHTS
        elif self.phase == FORWARD:
            self.outcome = PAUSED
        elif self.phase == WEIGHTS and self.settings.clip_norm < INFINITY:
            self.scale_gradient()
            if self.outcome == DIVERGED:
                return 0
            self.phase = UPDATE
        else:
            self.next_batch += 1
            self.update_count += 1
            self.l1_total = self.next_l1_total
            self.phase = ROWS
            if self.stepwise:
                self.outcome = PAUSED
            else:
                self.open_batch()
        return self.units() if self.outcome == RUNNING else 0

    # -- epochs -------------------------------------------------------------------------------------------------

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
        # not on the stack: the interpreter ends a daemon thread in watch_signals, while helpers go on
        self.job.run_unit, self.job.next_phase, self.job.watch = engine_unit, engine_phase, engine_watch
        self.job.self = <void*> self
        run_job(&self.job, self.units(), n_threads)

    def run(self, int n_threads):
        """Trains to the end of the epoch, or to the batch where `outcome` says why not."""
        with nogil:
            self.stepwise, self.together = False, n_threads > 1
            self.open_batch()
            if self.outcome == RUNNING:
                self.phase = ROWS
                self.run_phases(n_threads)
        return OUTCOMES[self.outcome]

    # A step around a Python loss: forward_batch, the loss, backward_batch.

    def forward_batch(self, real[:, ::1] scores, int n_threads):
        """Scores of the next batch into scores[:n]; its outcome is "paused" unless there is no batch to run."""
        with nogil:
            self.stepwise, self.together = True, n_threads > 1
            self.outcome = RUNNING
            self.open_batch()
            if self.outcome == RUNNING:
                self.phase = FORWARD
                self.run_phases(n_threads)
            if atomic_read(&self.bad_input):
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
        return OUTCOMES[self.outcome]


cdef void engine_unit(void* engine, Py_ssize_t unit, int thread) noexcept nogil:
    (<Engine> engine).run_unit(unit)


cdef Py_ssize_t engine_phase(void* engine) noexcept nogil:
    return (<Engine> engine).next_phase()


cdef void engine_watch(void* engine) noexcept nogil:
    (<Engine> engine).watch_signals()


# What a signal handler, and so KeyboardInterrupt, must not find half done is done here: no Python bytecode runs
# between the first change and the last.

def commit(list copies, dict state, dict changes, list entries, Engine engine=None, real[::1] flat=None,
           real[::1] moments=None):
    """The engine's parameters and moments stored, copies (to, from) between arrays, changes of the state's values,
    entries (list, value) appended: all of it or, where memory is short, none."""
    cdef real[::1] to
    cdef const real[::1] source
    cdef Py_ssize_t i, appended = 0
    cdef list places = []
    for to, source in copies:
        places.append((<size_t> &to[0], <size_t> &source[0], to.shape[0]))
    try:
        for column, value in entries:
            column.append(value)
            appended += 1
        state.update(changes)
    except BaseException:
        for i in range(appended):
            entries[i][0].pop()
        raise
    # nothing below allocates
    if engine is not None:
        engine.put(flat, moments)
    for i in range(len(places)):
        memcpy(<void*> <size_t> places[i][0], <const void*> <size_t> places[i][1],
               <size_t> places[i][2] * sizeof(real))


cdef class Turn:
    """A context that only one at a time can be in; a second is refused, not kept waiting."""
    cdef object holder
    cdef int process    # a forked child does not have the thread that was in it

    def __enter__(self):
        if self.holder is not None and self.process == getpid():
            raise RuntimeError("a fit or a save of this trainer is already running")
        self.holder, self.process = get_ident(), getpid()

    def __exit__(self, *exception):
        self.holder = None

    def is_anothers(self):
        """Whether another thread is in it."""
        return self.holder is not None and self.process == getpid() and self.holder != get_ident()

    def is_mine(self):
        """Whether this thread is in it."""
        return self.holder == get_ident() and self.process == getpid()


OUTCOMES = {RUNNING: "abandoned", PAUSED: "paused", COMPLETED: "completed", STOPPED: "stopped", DIVERGED: "diverged",
            BAD_INPUT: "bad input"}

# Dense layers. Every element of a product is one chain of fused multiply-adds over the contraction index, in
# ascending order; vector lanes run along the output. Vector width, tile shape, block and thread change no bit.

cdef enum:
    AHEAD = 8    # scattered rows that are asked for before their turn
    MAX_VL = 16  # VL and LANES are known to the C compiler only; array sizes must suit every path

cdef enum Operand:
    BY_ROW      # a[i, k] = a[i*lda + k]
    BY_PANEL    # a[i, k] = a[i*LANES + k % LANES + k // LANES * lda]
    BY_COLUMN   # a[i, k] = a[i + k*lda]
    SCATTERED   # the same, and the rows of b lie wherever b_rows says
    TURNED      # a BY_PANEL; the columns of b are rows that lie wherever b_rows says


cdef struct Fetch:
    # Cache lines to be asked for while tiles compute. A tile asks for one at each of its steps, as a burst would hold
    # up its own reads; the same line of 8 rows after another, so that their pages are looked up together.
    const char** rows
    Py_ssize_t n_rows
    Py_ssize_t lines             # of a row
    Py_ssize_t row, line         # the next
    Py_ssize_t left
    Py_ssize_t steps             # from one line to the next; a line that is there is asked for in between
    const char* addresses[BLOCK]


cdef inline void fetch_nothing(Fetch* fetch) noexcept nogil:
    cdef Py_ssize_t k
    fetch.left = 0
    for k in range(BLOCK):
        fetch.addresses[k] = <const char*> fetch


cdef inline const char** addresses_of(Fetch* fetch, Py_ssize_t length) noexcept nogil:
    """What a tile of that length is to ask for"""
    cdef Py_ssize_t k
    if fetch.left > 0:
        for k from 0 <= k < length by fetch.steps:
            if fetch.left == 0:
                break
            fetch.addresses[k] = fetch.rows[fetch.row] + fetch.line * 64
            fetch.left -= 1
            fetch.row += 1
            if fetch.row % 8 == 0 or fetch.row == fetch.n_rows:
                fetch.line += 1
                if fetch.line == fetch.lines:
                    fetch.line = 0
                else:
                    fetch.row = (fetch.row - 1) // 8 * 8
    return fetch.addresses


cdef inline void add_addresses(Fetch* fetch, Py_ssize_t first, const real* start, Py_ssize_t n) noexcept nogil:
    """And n values side by side, one line in every second step from `first` on"""
    cdef Py_ssize_t i
    for i in range(min(n * <Py_ssize_t> sizeof(real) // 64, (BLOCK - first) // 2)):
        fetch.addresses[first + 2 * i] = <const char*> start + i * 64


cdef inline INLINED load_turned(const real** rows, Py_ssize_t offset, Py_ssize_t width, vec* columns) noexcept nogil:
    """columns[j][i] = rows[i][offset + j], for VL rows and width <= VL; the other columns are 0"""
    cdef int i
    if width == VL:
        for i in range(VL // 2):
            columns[i] = vload_halves(rows[i] + offset, rows[i + VL // 2] + offset)
            columns[i + VL // 2] = vload_halves(rows[i] + offset + VL // 2, rows[i + VL // 2] + offset + VL // 2)
        vtranspose(columns, VL // 4)
    else:
        for i in range(VL):
            columns[i] = vload_part(rows[i] + offset, width, 0)
        vtranspose(columns, VL // 2)


cdef inline INLINED turned_steps(int m, int nv, const real* a, const real** rows, Py_ssize_t offset, Py_ssize_t width,
                                 vec* acc, bint fetching, const char** fetch) noexcept nogil:
    cdef vec columns[2][MAX_VL]
    cdef vec value
    cdef int i, j, v
    for v in range(nv):
        load_turned(rows + v * VL, offset, width, columns[v])
    for j in range(VL):
        if j < width:
            if fetching:
                prefetch(fetch[j])
            for i in range(m):
                value = vset(a[i * LANES + j])
                for v in range(nv):
                    acc[i * nv + v] = vfma(value, columns[v][j], acc[i * nv + v])


cdef inline INLINED turned_tile(int m, int nv, const real* a, Py_ssize_t lda, Py_ssize_t length, const real** rows,
                                Py_ssize_t offset, real* out, Py_ssize_t ldo, bint fetching,
                                const char** fetch) noexcept nogil:
    """out (m, nv*VL) += a b, lane j of b[k] at rows[j] + offset + k; what is turned stays in registers"""
    cdef vec acc[MR * 2]
    cdef Py_ssize_t k = 0
    cdef int i, v
    for i in range(m):
        for v in range(nv):
            acc[i * nv + v] = vload(out + i * ldo + v * VL)
    while k + VL <= length:
        turned_steps(m, nv, a + k // LANES * lda + k % LANES, rows, offset + k, VL, acc, fetching, fetch + k)
        k += VL
    if k < length:
        turned_steps(m, nv, a + k // LANES * lda + k % LANES, rows, offset + k, length - k, acc, False, fetch)
    for i in range(m):
        for v in range(nv):
            vstore(out + i * ldo + v * VL, acc[i * nv + v])


cdef inline INLINED tile(int operand, int m, int nv, const real* a, Py_ssize_t lda, Py_ssize_t length,
                         const real* b, Py_ssize_t ldb, const real** b_rows, bint add,
                         real* out, Py_ssize_t ldo, const char** fetch) noexcept nogil:
    """out (m, nv*VL) = a (m, length) b (length, nv*VL), or += it; b[k] = b + k*ldb, or b_rows[k] + ldb"""
    if operand == TURNED:
        turned_tile(m, nv, a, lda, length, b_rows, ldb, out, ldo, True, fetch)
        return
    cdef vec acc[MR][2]
    cdef vec lanes[2]
    cdef vec value
    cdef const real* b_row
    cdef int i, v
    cdef Py_ssize_t k = 0, stop
    for i in range(m):
        for v in range(nv):
            acc[i][v] = vload(out + i * ldo + v * VL) if add else vset(0)
    while k < length:
        stop = min(length, k + LANES) if operand == BY_PANEL else length
        while k < stop:
            b_row = b_rows[k] + ldb if operand == SCATTERED else b
            prefetch(fetch[k])
            if operand == SCATTERED:
                prefetch_close(<const char*> (b_rows[k + AHEAD] + ldb))
                if nv == 2:
                    prefetch_close(<const char*> (b_rows[k + AHEAD] + ldb + VL))
            for v in range(nv):
                lanes[v] = vload(b_row + v * VL)
            for i in range(m):
                value = vset(a[i * lda if operand == BY_ROW else i * LANES if operand == BY_PANEL else i])
                for v in range(nv):
                    acc[i][v] = vfma(value, lanes[v], acc[i][v])
            a += lda if operand >= BY_COLUMN else 1
            b += ldb if operand != SCATTERED else 0
            k += 1
        if operand == BY_PANEL and k % LANES == 0:
            a += lda - LANES
    for i in range(m):
        for v in range(nv):
            vstore(out + i * ldo + v * VL, acc[i][v])


cdef inline INLINED tile_of_height(int height, int operand, int nv, const real* a, Py_ssize_t lda, Py_ssize_t length,
                                   const real* b, Py_ssize_t ldb, const real** b_rows, bint add,
                                   real* out, Py_ssize_t ldo, const char** fetch) noexcept nogil:
    # one compiled tile a height, so that its accumulators are registers; no height passes MR
    if height == 14:
        tile(operand, min(14, MR), nv, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    elif height == 13:
        tile(operand, min(13, MR), nv, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    elif height == 12:
        tile(operand, min(12, MR), nv, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    elif height == 11:
        tile(operand, min(11, MR), nv, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    elif height == 10:
        tile(operand, min(10, MR), nv, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    elif height == 9:
        tile(operand, min(9, MR), nv, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    elif height == 8:
        tile(operand, min(8, MR), nv, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    elif height == 7:
        tile(operand, min(7, MR), nv, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    elif height == 6:
        tile(operand, min(6, MR), nv, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    elif height == 5:
        tile(operand, min(5, MR), nv, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    elif height == 4:
        tile(operand, 4, nv, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    elif height == 3:
        tile(operand, 3, nv, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    elif height == 2:
        tile(operand, 2, nv, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    else:
        tile(operand, 1, nv, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)


cdef inline Py_ssize_t tiles_of(Py_ssize_t m) noexcept nogil:
    """As few tiles as hold m rows; their heights differ by one at most: tile t begins at row m * t // tiles."""
    return (m + MR - 1) // MR


cdef inline INLINED tiles(int operand, int nv, Py_ssize_t m, const real* a, Py_ssize_t lda, Py_ssize_t length,
                          const real* b, Py_ssize_t ldb, const real** b_rows, bint add,
                          real* out, Py_ssize_t ldo, const char** fetch) noexcept nogil:
    cdef Py_ssize_t t, i = 0, next_i
    for t in range(tiles_of(m)):
        next_i = m * (t + 1) // tiles_of(m)
        tile_of_height(<int> (next_i - i), operand, nv,
                       a + i * (lda if operand == BY_ROW else 1 if operand == BY_COLUMN or operand == SCATTERED
                                else LANES), lda, length, b, ldb, b_rows, add, out + i * ldo, ldo, fetch)
        i = next_i


cdef NOT_INLINED product(int operand, int nv, Py_ssize_t m, const real* a, Py_ssize_t lda, Py_ssize_t length,
                         const real* b, Py_ssize_t ldb, const real** b_rows, bint add,
                         real* out, Py_ssize_t ldo, const char** fetch) noexcept nogil:
    """The tile's product for any m and for nv = 1 or 2 vectors of lanes; every tile asks for the same `fetch`."""
    if operand == TURNED:
        tiles(TURNED, 1, m, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    elif operand == SCATTERED:
        if nv == 2:
            tiles(SCATTERED, 2, m, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
        else:
            tiles(SCATTERED, 1, m, a, lda, length, b, ldb, b_rows, add, out, ldo, fetch)
    elif operand == BY_PANEL:
        if nv == 2:
            tiles(BY_PANEL, 2, m, a, lda, length, b, ldb, NULL, add, out, ldo, fetch)
        else:
            tiles(BY_PANEL, 1, m, a, lda, length, b, ldb, NULL, add, out, ldo, fetch)
    elif operand == BY_ROW:
        if nv == 2:
            tiles(BY_ROW, 2, m, a, lda, length, b, ldb, NULL, add, out, ldo, fetch)
        else:
            tiles(BY_ROW, 1, m, a, lda, length, b, ldb, NULL, add, out, ldo, fetch)
    elif nv == 2:
        tiles(BY_COLUMN, 2, m, a, lda, length, b, ldb, NULL, add, out, ldo, fetch)
    else:
        tiles(BY_COLUMN, 1, m, a, lda, length, b, ldb, NULL, add, out, ldo, fetch)


cdef void transpose(const real* source, Py_ssize_t lds, Py_ssize_t rows, Py_ssize_t columns,
                    real* to, Py_ssize_t ldt) noexcept nogil:
    """to[j, i] = source[i, j], in blocks of VL by VL held in registers"""
    cdef const real* block_rows[MAX_VL]
    cdef vec block[MAX_VL]
    cdef Py_ssize_t i, j, height, width
    cdef int k
    for i from 0 <= i < rows by VL:
        height = min(rows - i, <Py_ssize_t> VL)
        for k in range(VL):
            block_rows[k] = source + (i + min(<Py_ssize_t> k, height - 1)) * lds
        for j from 0 <= j < columns by VL:
            width = min(columns - j, <Py_ssize_t> VL)
            load_turned(block_rows, j, width, block)
            if height == VL and width == VL:
                for k in range(VL):
                    vstore(to + (j + k) * ldt + i, block[k])
            else:
                for k in range(VL):
                    if k < width:
                        vstore_part(to + (j + k) * ldt + i, block[k], height)


cdef inline int vectors(Py_ssize_t width) noexcept nogil:
    return 2 if width > VL else 1


cdef void panel_product(bint by_column, Py_ssize_t m, Py_ssize_t length, const real* a, Py_ssize_t lda,
                        bint b_transposed, const real* b, Py_ssize_t ldb, Py_ssize_t width,
                        const real* bias, bint add, real* out, Py_ssize_t ldo) noexcept nogil:
    """out[:m, :width] = bias + a b, or += a b; width at most two vectors, b packed block by block.

    a is (m, length), by_column (length, m); b is (length, width), b_transposed (width, length).
    """
    cdef vec panel_of[BLOCK * 2]
    cdef vec partial_of[BLOCK * 2]
    cdef real* panel = <real*> panel_of
    cdef real* partial = <real*> partial_of
    cdef int nv = vectors(width)
    cdef int operand = BY_COLUMN if by_column else BY_ROW
    cdef Py_ssize_t lanes = nv * VL
    cdef Py_ssize_t k0, k, i, r, steps, height
    cdef const real* a_block
    cdef Fetch fetch
    fetch_nothing(&fetch)
    memset(panel, 0, sizeof(panel_of) if width < lanes else 0)
    memset(partial, 0, sizeof(partial_of) if width < lanes else 0)
    if not add:
        for r in range(m):
            if bias != NULL:
                memcpy(out + r * ldo, bias, width * sizeof(real))
            else:
                memset(out + r * ldo, 0, width * sizeof(real))
    for k0 from 0 <= k0 < length by BLOCK:
        steps = min(<Py_ssize_t> BLOCK, length - k0)
        if b_transposed:
            transpose(b + k0, ldb, width, steps, panel, lanes)
        else:
            for k in range(steps):
                memcpy(panel + k * lanes, b + (k0 + k) * ldb, width * sizeof(real))
        for i from 0 <= i < m by BLOCK:
            height = min(<Py_ssize_t> BLOCK, m - i)
            a_block = a + k0 * lda + i if by_column else a + i * lda + k0
            if width == lanes:
                product(operand, nv, height, a_block, lda, steps, panel, lanes, NULL, True, out + i * ldo, ldo,
                        fetch.addresses)
            else:
                # a row ends inside the vector: the tiles are computed aside
                for r in range(height):
                    memcpy(partial + r * lanes, out + (i + r) * ldo, width * sizeof(real))
                product(operand, nv, height, a_block, lda, steps, panel, lanes, NULL, True, partial, lanes,
                        fetch.addresses)
                for r in range(height):
                    memcpy(out + (i + r) * ldo, partial + r * lanes, width * sizeof(real))


cdef void add_rows(const real* rows, Py_ssize_t ld, Py_ssize_t n, Py_ssize_t width, real* total) noexcept nogil:
    """total[j] += the sum over the n rows of rows[r][j], row after row"""
    cdef Py_ssize_t j = 0, r
    cdef vec a
    while j + VL <= width:
        a = vload(total + j)
        for r in range(n):
            a = a + vload(rows + r * ld + j)
        vstore(total + j, a)
        j += VL
    if j < width:
        a = vload_part(total + j, width - j, 0)
        for r in range(n):
            a = a + vload_part(rows + r * ld + j, width - j, 0)
        vstore_part(total + j, a, width - j)


cdef void add_squares(const real* rows, Py_ssize_t n, double* squares) noexcept nogil:
    """squares[j] = the sum over n rows of rows[r][j]**2, LANES values a row, in double precision"""
    cdef double sums[2 * MAX_VL]
    cdef double value
    cdef Py_ssize_t r, j
    memset(sums, 0, sizeof(sums))
    for r in range(n):
        for j in range(LANES):
            value = <double> rows[r * LANES + j]
            sums[j] += value * value
    memcpy(squares, sums, LANES * sizeof(double))


cdef inline INLINED one_row(int nv, const real* x, Py_ssize_t length, const real* weight, Py_ssize_t width,
                            const real* bias, real* out) noexcept nogil:
    """out (width) = bias + weight (width, length) x, for at most nv vectors"""
    cdef const real* rows[2 * MAX_VL]
    cdef vec lanes[2]
    cdef int i
    for i in range(nv * VL):
        rows[i] = weight + min(<Py_ssize_t> i, width - 1) * length
    for i in range(nv):
        lanes[i] = vset(0) if bias == NULL else vload_part(bias + i * VL, min(width - i * VL, <Py_ssize_t> VL), 0)
    turned_tile(1, nv, x, LANES, length, rows, 0, <real*> lanes, LANES, False, NULL)
    for i in range(nv):
        vstore_part(out + i * VL, lanes[i], min(width - i * VL, <Py_ssize_t> VL))


cdef void forward_panel(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t n, Py_ssize_t n_in,
                        Py_ssize_t n_out, int activation, Py_ssize_t o) noexcept nogil:
    """dense_forward's outputs o .. o + LANES - 1 for n rows"""
    cdef Py_ssize_t r, width = min(<Py_ssize_t> LANES, n_out - o)
    if bias != NULL:
        bias += o
    if n != 1:
        panel_product(False, n, n_in, x, n_in, True, weight + o * n_in, n_in, width, bias, False, out + o, n_out)
    elif width > VL:
        one_row(2, x, n_in, weight + o * n_in, width, bias, out + o)
    else:
        one_row(1, x, n_in, weight + o * n_in, width, bias, out + o)
    if activation != IDENTITY:
        for r in range(n):
            activation_forward(activation, out + r * n_out + o, width)


cdef api void dense_forward(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t n,
                            Py_ssize_t n_in, Py_ssize_t n_out, int activation, int n_threads) noexcept nogil:
    """out (n, n_out) = activation(x (n, n_in) @ weight.T + bias); bias may be NULL"""
    cdef Py_ssize_t panels = (n_out + LANES - 1) // LANES, shares, unit, r
    n_threads = openmp_threads(n_threads)
    # units of one panel, or of one panel and a share of the rows where panels are too few for the threads
    shares = min(n, (n_threads + panels - 1) // panels)
    if n_threads == 1:
        for unit in range(panels):
            forward_panel(x, weight, bias, out, n, n_in, n_out, activation, unit * LANES)
        return
    for unit in prange(panels * shares, num_threads=n_threads, schedule="static"):
        r = n * (unit % shares) // shares
        forward_panel(x + r * n_in, weight, bias, out + r * n_out, n * (unit % shares + 1) // shares - r, n_in, n_out,
                      activation, unit // shares * LANES)


cdef api void dense_backward(const real* dscores, const real* x, const real* weight, real* dx, real* dweight,
                             real* dbias, Py_ssize_t n, Py_ssize_t n_in, Py_ssize_t n_out, bint add,
                             int n_threads) noexcept nogil:
    """dx = dscores @ weight, dweight (+)= dscores.T @ x, dbias (+)= the sum of dscores' rows; dx may be NULL

    dscores (n, n_out) is the gradient before the activation; with `add` the sums go on where they were.
    """
    cdef Py_ssize_t lanes = LANES
    cdef Py_ssize_t panels = (n_in + lanes - 1) // lanes
    cdef Py_ssize_t unit, k, width
    n_threads = openmp_threads(n_threads)
    for unit in prange(panels, num_threads=n_threads, schedule="static", use_threads_if=n_threads > 1):
        k = unit * lanes
        width = min(lanes, n_in - k)
        if dx != NULL:
            panel_product(False, n, n_out, dscores, n_out, False, weight + k, n_in, width,
                          NULL, False, dx + k, n_in)
        panel_product(True, n_out, n, dscores, n_out, False, x + k, n_in, width, NULL, add, dweight + k, n_in)
    if not add:
        memset(dbias, 0, n_out * sizeof(real))
    add_rows(dscores, n_out, n, n_out, dbias)


def call_dense_forward(const real[:, ::1] x, const real[:, ::1] weight, const real[::1] bias, real[:, ::1] out,
                       int activation, int n_threads):
    cdef const real* bias_start = &bias[0] if bias is not None else NULL
    with nogil:
        dense_forward(&x[0, 0], &weight[0, 0], bias_start, &out[0, 0], x.shape[0], x.shape[1], weight.shape[0],
                      activation, n_threads)


def call_dense_backward(const real[:, ::1] dscores, const real[:, ::1] x, const real[:, ::1] weight,
                        real[:, ::1] dx, real[:, ::1] dweight, real[::1] dbias, bint add, int n_threads):
    cdef real* dx_start = &dx[0, 0] if dx is not None else NULL
    with nogil:
        dense_backward(&dscores[0, 0], &x[0, 0], &weight[0, 0], dx_start, &dweight[0, 0], &dbias[0],
                       x.shape[0], x.shape[1], weight.shape[0], add, n_threads)


def call_fma_loop(Py_ssize_t repeats):
    """Runs MR * 2 * `repeats` independent vector multiply-adds, from registers: the machine's peak, as the benchmarks
    measure it. Returns their floating-point operations."""
    cdef vec sums[MR][2]
    cdef vec a = vset(0.999), b = vset(0.001)
    cdef Py_ssize_t _
    cdef int i
    cdef real total = 0
    with nogil:
        for i in range(MR):
            sums[i][0] = vset(i)
            sums[i][1] = vset(-i)
        for _ in range(repeats):
            for i in range(MR):
                sums[i][0] = vfma(sums[i][0], a, b)
                sums[i][1] = vfma(sums[i][1], a, b)
        for i in range(MR):
            total += vlane(sums[i][0] + sums[i][1], 0)
    if total != total:
        raise ArithmeticError("the sums became NaN")
    return 2 * 2 * MR * VL * repeats

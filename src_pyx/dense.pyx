# Dense layers. Every element of a product is one chain of fused multiply-adds over the contraction index, in
# ascending order; vector lanes run along the output. Vector width, tile shape, block and thread change no bit.

cdef enum:
    BLOCK = 256  # contraction steps packed at a time: a panel of them stays in the first-level cache
    MAX_VL = 16  # VL is known to the C compiler only; array sizes must suit every path


cdef inline INLINED tile(bint by_column, int m, int nv, const real** rows, Py_ssize_t offset, Py_ssize_t length,
                         const real* b, Py_ssize_t ldb, const real* start, Py_ssize_t lds,
                         real* out, Py_ssize_t ldo) noexcept nogil:
    """out[i] = start[i] + sum over k of a[i, k] * b[k, :nv*VL], a[i, k] = rows[i][offset+k] or rows[k][offset+i]"""
    cdef vec acc[MR][2]
    cdef vec lanes[2]
    cdef vec a
    cdef const real* column = NULL
    cdef int i, v
    cdef Py_ssize_t k
    if start == NULL:
        for i in range(m):
            for v in range(nv):
                acc[i][v] = vset(0)
    else:
        for i in range(m):
            for v in range(nv):
                acc[i][v] = vload(start + i * lds + v * VL)
    for k in range(length):
        for v in range(nv):
            lanes[v] = vload(b + v * VL)
        b += ldb
        if by_column:
            column = rows[k] + offset
        for i in range(m):
            a = vset(column[i] if by_column else rows[i][offset + k])
            for v in range(nv):
                acc[i][v] = vfma(a, lanes[v], acc[i][v])
    for i in range(m):
        for v in range(nv):
            vstore(out + i * ldo + v * VL, acc[i][v])


cdef inline INLINED tile_of_height(int height, bint by_column, int nv, const real** rows, Py_ssize_t offset,
                                   Py_ssize_t length, const real* b, Py_ssize_t ldb, const real* start,
                                   Py_ssize_t lds, real* out, Py_ssize_t ldo) noexcept nogil:
    # one compiled tile a height, so that its accumulators are registers; no height passes MR
    if height == 14:
        tile(by_column, min(14, MR), nv, rows, offset, length, b, ldb, start, lds, out, ldo)
    elif height == 13:
        tile(by_column, min(13, MR), nv, rows, offset, length, b, ldb, start, lds, out, ldo)
    elif height == 12:
        tile(by_column, min(12, MR), nv, rows, offset, length, b, ldb, start, lds, out, ldo)
    elif height == 11:
        tile(by_column, min(11, MR), nv, rows, offset, length, b, ldb, start, lds, out, ldo)
    elif height == 10:
        tile(by_column, min(10, MR), nv, rows, offset, length, b, ldb, start, lds, out, ldo)
    elif height == 9:
        tile(by_column, min(9, MR), nv, rows, offset, length, b, ldb, start, lds, out, ldo)
    elif height == 8:
        tile(by_column, min(8, MR), nv, rows, offset, length, b, ldb, start, lds, out, ldo)
    elif height == 7:
        tile(by_column, min(7, MR), nv, rows, offset, length, b, ldb, start, lds, out, ldo)
    elif height == 6:
        tile(by_column, min(6, MR), nv, rows, offset, length, b, ldb, start, lds, out, ldo)
    elif height == 5:
        tile(by_column, min(5, MR), nv, rows, offset, length, b, ldb, start, lds, out, ldo)
    elif height == 4:
        tile(by_column, 4, nv, rows, offset, length, b, ldb, start, lds, out, ldo)
    elif height == 3:
        tile(by_column, 3, nv, rows, offset, length, b, ldb, start, lds, out, ldo)
    elif height == 2:
        tile(by_column, 2, nv, rows, offset, length, b, ldb, start, lds, out, ldo)
    else:
        tile(by_column, 1, nv, rows, offset, length, b, ldb, start, lds, out, ldo)


cdef inline INLINED tiles(bint by_column, int nv, Py_ssize_t m, const real** rows, Py_ssize_t offset,
                          Py_ssize_t length, const real* b, Py_ssize_t ldb, const real* start, Py_ssize_t lds,
                          real* out, Py_ssize_t ldo) noexcept nogil:
    # as few tiles as hold m rows, of heights that differ by one at most
    cdef Py_ssize_t n_tiles = (m + MR - 1) // MR
    cdef Py_ssize_t i
    cdef int height
    for i in range(n_tiles):
        height = <int> ((m * (i + 1)) // n_tiles - m * i // n_tiles)
        tile_of_height(height, by_column, nv, rows, offset, length, b, ldb, start, lds, out, ldo)
        if by_column:
            offset += height
        else:
            rows += height
        if start != NULL:
            start += height * lds
        out += height * ldo


cdef void product(bint by_column, int nv, Py_ssize_t m, const real** rows, Py_ssize_t offset, Py_ssize_t length,
                  const real* b, Py_ssize_t ldb, const real* start, Py_ssize_t lds,
                  real* out, Py_ssize_t ldo) noexcept nogil:
    """The tile's product for any m and for nv = 1 or 2 vectors of lanes."""
    if by_column:
        if nv == 2:
            tiles(True, 2, m, rows, offset, length, b, ldb, start, lds, out, ldo)
        else:
            tiles(True, 1, m, rows, offset, length, b, ldb, start, lds, out, ldo)
    elif nv == 2:
        tiles(False, 2, m, rows, offset, length, b, ldb, start, lds, out, ldo)
    else:
        tiles(False, 1, m, rows, offset, length, b, ldb, start, lds, out, ldo)


cdef void transpose(const real* source, Py_ssize_t lds, Py_ssize_t rows, Py_ssize_t columns,
                    real* to, Py_ssize_t ldt) noexcept nogil:
    """to[j, i] = source[i, j], in blocks of VL by VL held in registers"""
    cdef vec block[MAX_VL]
    cdef Py_ssize_t i, j, k, height, width
    for i from 0 <= i < rows by VL:
        height = min(rows - i, <Py_ssize_t> VL)
        for j from 0 <= j < columns by VL:
            width = min(columns - j, <Py_ssize_t> VL)
            if height == VL and width == VL:
                for k in range(VL):
                    block[k] = vload(source + (i + k) * lds + j)
                vtranspose(block)
                for k in range(VL):
                    vstore(to + (j + k) * ldt + i, block[k])
            else:
                for k in range(VL):
                    block[k] = vload_part(source + (i + k) * lds + j, width, 0) if k < height else vset(0)
                vtranspose(block)
                for k in range(width):
                    vstore_part(to + (j + k) * ldt + i, block[k], height)


cdef inline int vectors(Py_ssize_t width) noexcept nogil:
    return 2 if width > VL else 1


cdef void panel_product(bint by_column, Py_ssize_t m, Py_ssize_t length, const real* a, Py_ssize_t lda,
                        bint b_transposed, const real* b, Py_ssize_t ldb, Py_ssize_t width,
                        const real* bias, bint add, real* out, Py_ssize_t ldo) noexcept nogil:
    """out[:m, :width] = bias + a b, or += a b; width at most two vectors, b packed block by block.

    a is (m, length), by_column (length, m); b is (length, width), b_transposed (width, length).
    """
    cdef real panel[BLOCK * 2 * MAX_VL]
    cdef real partial[MR * 2 * MAX_VL]
    cdef real first[2 * MAX_VL]
    cdef const real* rows[BLOCK]
    cdef int nv = vectors(width)
    cdef Py_ssize_t lanes = nv * VL
    cdef Py_ssize_t k0, k, i, j, r, steps, height, part
    cdef const real* start
    cdef Py_ssize_t lds
    cdef bint continued
    memset(first, 0, sizeof(first))
    if bias != NULL:
        memcpy(first, bias, width * sizeof(real))
    memset(panel, 0, sizeof(panel) if width < lanes else 0)
    for k0 from 0 <= k0 < length by BLOCK:
        steps = min(<Py_ssize_t> BLOCK, length - k0)
        continued = add or k0 > 0
        start = first
        lds = 0
        if b_transposed:
            transpose(b + k0, ldb, width, steps, panel, lanes)
        else:
            for k in range(steps):
                memcpy(panel + k * lanes, b + (k0 + k) * ldb, width * sizeof(real))
        if by_column:
            for k in range(steps):
                rows[k] = a + (k0 + k) * lda
        for i from 0 <= i < m by BLOCK:
            height = min(<Py_ssize_t> BLOCK, m - i)
            if not by_column:
                for r in range(height):
                    rows[r] = a + (i + r) * lda
            if width == lanes:
                if continued:
                    start = out + i * ldo
                    lds = ldo
                product(by_column, nv, height, rows, i if by_column else k0, steps, panel, lanes, start, lds,
                        out + i * ldo, ldo)
            else:
                # a row ends inside the vector: the tile is computed aside
                for r from 0 <= r < height by MR:
                    part = min(height - r, <Py_ssize_t> MR)
                    if continued:
                        start = partial
                        lds = lanes
                        for j in range(part):
                            memcpy(partial + j * lanes, out + (i + r + j) * ldo, width * sizeof(real))
                    product(by_column, nv, part, &rows[0 if by_column else r], i + r if by_column else k0, steps,
                            panel, lanes, start, lds, partial, lanes)
                    for j in range(part):
                        memcpy(out + (i + r + j) * ldo, partial + j * lanes, width * sizeof(real))


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


cdef api void dense_forward(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t n,
                            Py_ssize_t n_in, Py_ssize_t n_out, int activation, int n_threads) noexcept nogil:
    """out (n, n_out) = activation(x (n, n_in) @ weight.T + bias); bias may be NULL"""
    cdef Py_ssize_t lanes = 2 * VL
    cdef Py_ssize_t panels = (n_out + lanes - 1) // lanes
    # units of one panel, or of one panel and a share of the rows where panels are too few for the threads
    cdef Py_ssize_t shares = min(n, (n_threads + panels - 1) // panels)
    cdef Py_ssize_t unit, o, r0, r1, r, width
    for unit in prange(panels * shares, num_threads=n_threads, schedule="static", use_threads_if=n_threads > 1):
        o = unit // shares * lanes
        width = min(lanes, n_out - o)
        r0 = n * (unit % shares) // shares
        r1 = n * (unit % shares + 1) // shares
        panel_product(False, r1 - r0, n_in, x + r0 * n_in, n_in, True, weight + o * n_in, n_in, width,
                      bias + o if bias != NULL else NULL, False, out + r0 * n_out + o, n_out)
        if activation != IDENTITY:
            for r in range(r0, r1):
                activation_forward(activation, out + r * n_out + o, width)


cdef api void dense_backward(const real* dscores, const real* x, const real* weight, real* dx, real* dweight,
                             real* dbias, Py_ssize_t n, Py_ssize_t n_in, Py_ssize_t n_out, bint add,
                             int n_threads) noexcept nogil:
    """dx = dscores @ weight, dweight (+)= dscores.T @ x, dbias (+)= the sum of dscores' rows; dx may be NULL

    dscores (n, n_out) is the gradient before the activation; with `add` the sums go on where they were.
    """
    cdef Py_ssize_t lanes = 2 * VL
    cdef Py_ssize_t panels = (n_in + lanes - 1) // lanes
    cdef Py_ssize_t unit, k, width
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

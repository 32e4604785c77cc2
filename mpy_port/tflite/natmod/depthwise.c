// Depthwise convolution: four channels at a time, over all pixels.
//
// Inside, the zero point is folded into the bias, as in convolution.c. Where the window
// leaves the input, only the taps inside are taken, and the zero point with them.
#include "kernels.h"

// The part of a window that lies inside, and how to walk it.
typedef struct {
    int rows, columns;
    int x_column, x_row; // from one tap to the next, from the last of a row to the next row
    int w_column, w_row;
} walk_t;

// Four neighbouring channels with inputs x[0], x[SIDE], ...; start[j] += the sums of
// (x - ZERO) * w.
#define TAPS(name, SIDE, ZERO) \
    static APART void name( \
        const int8_t *x, const int8_t *w, const walk_t *walk, int zero, int32_t *sums) { \
        const int x_column = walk->x_column, w_column = walk->w_column; \
        int32_t a0 = sums[0], a1 = sums[1], a2 = sums[2], a3 = sums[3]; \
        (void)zero; \
        for (int ky = walk->rows; ky; ky--) { \
            for (int kx = walk->columns; kx; kx--) { \
                a0 += (x[0] - ZERO) * w[0]; \
                a1 += (x[SIDE] - ZERO) * w[1]; \
                a2 += (x[2 * SIDE] - ZERO) * w[2]; \
                a3 += (x[3 * SIDE] - ZERO) * w[3]; \
                x += x_column; \
                w += w_column; \
            } \
            x += walk->x_row; \
            w += walk->w_row; \
        } \
        sums[0] = a0; \
        sums[1] = a1; \
        sums[2] = a2; \
        sums[3] = a3; \
    }
TAPS(four_inputs_inside, 1, 0)
TAPS(four_inputs, 1, zero)
TAPS(one_input, 0, zero)

static APART int32_t one_channel(
    const int8_t *x, const int8_t *w, const walk_t *walk, int zero, int32_t sum) {
    for (int ky = walk->rows; ky; ky--) {
        for (int kx = walk->columns; kx; kx--) {
            sum += (*x - zero) * *w;
            x += walk->x_column;
            w += walk->w_column;
        }
        x += walk->x_row;
        w += walk->w_row;
    }
    return sum;
}

// First tap inside and number of taps inside, along one axis.
INLINE int taps_inside(int start, int step, int kernel, int size, int *count) {
    int first = 0, last = kernel;
    while (start < 0 && first < last) {
        start += step;
        first++;
    }
    start += (last - first - 1) * step;
    while (last > first && start >= size) {
        start -= step;
        last--;
    }
    *count = last - first;
    return first;
}

mp_obj_t depthwise_conv_2d(size_t count, const mp_obj_t *args) {
    int8_t *const out = writable(args[0]);
    const int8_t *const x = readable(args[1]), *const w = readable(args[2]);
    const int32_t *bias = readable(args[3]), *mul = readable(args[4]), *p = readable(args[6]);
    const int8_t *shift = readable(args[5]);
    const int ih = p[IH], iw = p[IW], ic = p[IC], oh = p[OH], ow = p[OW], oc = p[OC];
    const int kh = p[KH], kw = p[KW], sw = p[SW], dh = p[DH], dw = p[DW];
    const int per = p[PER], fc = p[FC], zi = p[ZI];
    const range_t range = {p[ZO], p[LO], p[HI]};
    const int last_y = ih - (kh - 1) * dh, last_x = iw - (kw - 1) * dw;
    const walk_t whole = {kh, kw, dw * ic, (dh * iw - kw * dw) * ic, oc, 0};
    int input = 0, turn = 0; // channel, and how many outputs it has had
    (void)count;
    for (int c = 0; c < oc;) {
        channel_t channels[4];
        int32_t sums[4];
        // Four channels with an input each, or four with the same input, or one.
        int many = oc - c >= 4 && (fc == 1 || turn + 4 <= fc) && kh * kw <= TAME_TAPS ? 4 : 1;
        for (int j = 0; j < many; j++) {
            const int8_t *tap = w + c + j, *end = tap + kh * kw * oc;
            int32_t sum = 0;
            for (; tap != end; tap += oc) {
                sum += *tap;
            }
            const int at = (c + j) * per;
            if (!tame(channels + j, bias[c + j] - zi * sum, mul[at], shift[at])) {
                many = 1;
            }
            // Sums that are not folded start at the bias, which must be tame as well.
            channel_t plain;
            if (!tame(&plain, bias[c + j], mul[at], shift[at])) {
                many = 1;
            }
        }
        const int8_t *image = x + input;
        int8_t *o = out + c;
        for (int n = p[N]; n; n--, image += ih * iw * ic) {
            for (int y = oh, y0 = -p[PH]; y; y--, y0 += p[SH]) {
                int rows_inside = y0 >= 0 && y0 < last_y;
                const int8_t *from = image + (y0 * iw - p[PW]) * ic;
                int x0 = -p[PW];
                for (int column = ow; column; column--, x0 += sw, from += sw * ic, o += oc) {
                    if (many == 4 && fc == 1 && rows_inside && x0 >= 0 && x0 < last_x) {
                        for (int j = 0; j < 4; j++) {
                            sums[j] = channels[j].start;
                        }
                        four_inputs_inside(from, w + c, &whole, 0, sums);
                    } else {
                        walk_t walk;
                        int ky = taps_inside(y0, dh, kh, ih, &walk.rows);
                        int kx = taps_inside(x0, dw, kw, iw, &walk.columns);
                        const int8_t *start = from + (ky * dh * iw + kx * dw) * ic;
                        const int8_t *weights = w + (ky * kw + kx) * oc + c;
                        walk.x_column = dw * ic;
                        walk.x_row = (dh * iw - walk.columns * dw) * ic;
                        walk.w_column = oc;
                        walk.w_row = (kw - walk.columns) * oc;
                        if (many == 1) {
                            int32_t sum = one_channel(start, weights, &walk, zi, bias[c]);
                            sum = scaled(sum, mul[c * per], shift[c * per]);
                            *o = output(sum, range.zero, range.lo, range.hi);
                            continue;
                        }
                        for (int j = 0; j < 4; j++) {
                            sums[j] = bias[c + j];
                        }
                        (fc == 1 ? four_inputs : one_input)(start, weights, &walk, zi, sums);
                    }
                    o[0] = tame_output(sums[0], channels, &range);
                    o[1] = tame_output(sums[1], channels + 1, &range);
                    o[2] = tame_output(sums[2], channels + 2, &range);
                    o[3] = tame_output(sums[3], channels + 3, &range);
                }
            }
        }
        c += many;
        for (turn += many; turn >= fc; turn -= fc) {
            input++;
        }
    }
    return mp_const_none;
}

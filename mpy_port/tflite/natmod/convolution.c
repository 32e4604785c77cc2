// Convolutions and fully connected layers.
//
// A convolution is a matrix product: each output pixel's window is a row of K = KH * KW * FC
// inputs, each filter a row of K weights. Windows are copied side by side into scratch
// memory, with the zero point where they leave the input (1 x 1 windows lie there already).
// Then padding adds nothing, and the zero point can be folded into the bias once:
//     sum of (x - z) * w  =  sum of x * w  -  z * sum of w.
// What is left is a sum of plain products. It is formed for blocks of two pixels and a few
// filters at a time, so that each byte loaded takes part in several products; BLOCK filters
// is what the registers hold.
#include "kernels.h"

#if defined(__thumb__)
#define BLOCK 2
#else
#define BLOCK 4
#endif

// Windows of pixel p and its neighbour: x and x + d. Filters: w, w + k, ...
// sums: BLOCK of the first pixel, then BLOCK of the second.
#if BLOCK == 2
static APART void block(const int8_t *x, int d, const int8_t *w, int k, int32_t *sums) {
    int32_t a0 = sums[0], a1 = sums[1], b0 = sums[2], b1 = sums[3];
    const int8_t *end = x + (k & ~3);
    #define STEP { int32_t v = x[d], t = w[k], u = *x++, s = *w++; \
        a0 += u * s; b0 += v * s; a1 += u * t; b1 += v * t; }
    while (x != end) {
        STEP STEP STEP STEP
    }
    end = x + (k & 3);
    while (x != end) {
        STEP
    }
    #undef STEP
    sums[0] = a0;
    sums[1] = a1;
    sums[2] = b0;
    sums[3] = b1;
}
#else
static APART void block(const int8_t *x, int d, const int8_t *w, int k, int32_t *sums) {
    const int8_t *y = x + d, *w1 = w + k, *w2 = w1 + k, *w3 = w2 + k;
    int32_t a0 = sums[0], a1 = sums[1], a2 = sums[2], a3 = sums[3];
    int32_t b0 = sums[4], b1 = sums[5], b2 = sums[6], b3 = sums[7];
    const int8_t *end = x + (k & ~3);
    #define STEP(i) { int32_t u = x[i], v = y[i], t = w[i]; a0 += u * t; b0 += v * t; \
        t = w1[i]; a1 += u * t; b1 += v * t; t = w2[i]; a2 += u * t; b2 += v * t; \
        t = w3[i]; a3 += u * t; b3 += v * t; }
    while (x != end) {
        STEP(0) STEP(1) STEP(2) STEP(3)
        x += 4, y += 4, w += 4, w1 += 4, w2 += 4, w3 += 4;
    }
    end = x + (k & 3);
    while (x != end) {
        STEP(0)
        x++, y++, w++, w1++, w2++, w3++;
    }
    #undef STEP
    sums[0] = a0;
    sums[1] = a1;
    sums[2] = a2;
    sums[3] = a3;
    sums[4] = b0;
    sums[5] = b1;
    sums[6] = b2;
    sums[7] = b3;
}
#endif

// One window, four filters: sum of (x - zero) * w. Where no window shares the filters,
// folding the zero point would cost more than it saves.
static APART void four(const int8_t *x, int zero, const int8_t *w, int k, int32_t *sums) {
    const int8_t *w1 = w + k, *w2 = w1 + k, *w3 = w2 + k, *end = x + (k & ~3);
    int32_t a0 = sums[0], a1 = sums[1], a2 = sums[2], a3 = sums[3];
    #define STEP(i) { int32_t v = x[i] - zero; a0 += v * w[i]; a1 += v * w1[i]; \
        a2 += v * w2[i]; a3 += v * w3[i]; }
    #if defined(__thumb__)
    #define NEXT(n) STEP(0) x++, w++, w1++, w2++, w3++;
    while (x != end) {
        NEXT() NEXT() NEXT() NEXT()
    }
    #else
    while (x != end) {
        STEP(0) STEP(1) STEP(2) STEP(3)
        x += 4, w += 4, w1 += 4, w2 += 4, w3 += 4;
    }
    #endif
    end = x + (k & 3);
    while (x != end) {
        STEP(0)
        x++, w++, w1++, w2++, w3++;
    }
    #undef STEP
    sums[0] = a0;
    sums[1] = a1;
    sums[2] = a2;
    sums[3] = a3;
}

static APART int32_t one(const int8_t *x, int zero, const int8_t *w, int k, int32_t sum) {
    for (const int8_t *end = x + k; x != end;) {
        sum += (*x++ - zero) * *w++;
    }
    return sum;
}

// Copies one window of FC channels; zero points where it leaves the input.
static APART void window(int8_t *to, const int8_t *x, int y0, int x0, const int32_t *p) {
    const int ih = p[IH], iw = p[IW], ic = p[IC], kw = p[KW], dw = p[DW], fc = p[FC];
    const int together = dw == 1 && fc == ic;
    for (int ky = 0; ky < p[KH]; ky++, y0 += p[DH]) {
        if ((unsigned)y0 >= (unsigned)ih) {
            fill(to, kw * fc, p[ZI]);
            to += kw * fc;
            continue;
        }
        const int8_t *row = x + y0 * iw * ic;
        if (together) {
            int first = x0 < 0 ? -x0 : 0, last = iw - x0;
            last = last > kw ? kw : last;
            fill(to, first * fc, p[ZI]);
            copy(to + first * fc, row + (x0 + first) * ic, (last - first) * fc);
            fill(to + last * fc, (kw - last) * fc, p[ZI]);
            to += kw * fc;
            continue;
        }
        for (int kx = 0, column = x0; kx < kw; kx++, column += dw, to += fc) {
            if ((unsigned)column < (unsigned)iw) {
                copy(to, row + column * ic, fc);
            } else {
                fill(to, fc, p[ZI]);
            }
        }
    }
}

// Filters `first` to `end` of two windows. out: of the first window; out + next: of the second.
static APART void filters(
    int8_t *out, int next, const int8_t *x, int d, const int8_t *w, const int32_t *folded,
    const int32_t *mul, const int8_t *shift, const int32_t *p, int first, int end) {
    const int k = p[KH] * p[KW] * p[FC], per = p[PER];
    const int32_t zo = p[ZO], lo = p[LO], hi = p[HI];
    int32_t sums[2 * BLOCK];
    int c = first;
    w += first * k;
    mul += first * per;
    shift += first * per;
    out += first;
    for (; c + BLOCK <= end; c += BLOCK, w += BLOCK * k) {
        for (int j = 0; j < BLOCK; j++) {
            sums[j] = sums[BLOCK + j] = folded[c + j];
        }
        block(x, d, w, k, sums);
        for (int j = 0; j < BLOCK; j++, out++, mul += per, shift += per) {
            int32_t m = *mul;
            int s = *shift;
            out[next] = clamp(scaled(sums[BLOCK + j], m, s) + zo, lo, hi);
            *out = clamp(scaled(sums[j], m, s) + zo, lo, hi);
        }
    }
    for (; c < end; c++, w += k, out++, mul += per, shift += per) {
        out[next] = clamp(scaled(one(x + d, 0, w, k, folded[c]), *mul, *shift) + zo, lo, hi);
        *out = clamp(scaled(one(x, 0, w, k, folded[c]), *mul, *shift) + zo, lo, hi);
    }
}

// One window only: nothing is folded, nothing is copied.
static void single(
    int8_t *out, const int8_t *x, const int8_t *w, const int32_t *bias,
    const int32_t *mul, const int8_t *shift, const int32_t *p) {
    const int k = p[KH] * p[KW] * p[FC], oc = p[OC], per = p[PER], zi = p[ZI];
    const int32_t zo = p[ZO], lo = p[LO], hi = p[HI];
    int c = 0;
    for (; c + 4 <= oc; c += 4, w += 4 * k) {
        int32_t sums[4] = {bias[c], bias[c + 1], bias[c + 2], bias[c + 3]};
        four(x, zi, w, k, sums);
        for (int j = 0; j < 4; j++, mul += per, shift += per) {
            *out++ = clamp(scaled(sums[j], *mul, *shift) + zo, lo, hi);
        }
    }
    for (; c < oc; c++, w += k, mul += per, shift += per) {
        *out++ = clamp(scaled(one(x, zi, w, k, bias[c]), *mul, *shift) + zo, lo, hi);
    }
}

mp_obj_t conv_2d(size_t count, const mp_obj_t *args) {
    int8_t *out = writable(args[0]);
    const int8_t *x = readable(args[1]), *w = readable(args[2]);
    const int32_t *bias = readable(args[3]), *mul = readable(args[4]), *p = readable(args[6]);
    const int8_t *shift = readable(args[5]);
    const int ic = p[IC], oc = p[OC], fc = p[FC], k = p[KH] * p[KW] * fc;
    const int pixels = p[N] * p[OH] * p[OW], groups = divide(ic, fc), share = divide(oc, groups);
    // 1 x 1 windows without stride lie side by side in the input.
    const int plain = k == ic && p[KH] * p[KW] * p[SH] * p[SW] == 1;
    (void)count;
    if (plain && pixels == 1) {
        single(out, x, w, bias, mul, shift, p);
        return mp_const_none;
    }
    int32_t *folded = m_malloc(4 * oc + (plain ? 0 : 2 * k));
    int8_t *pair = (int8_t *)(folded + oc);
    const int8_t *row = w;
    for (int c = 0; c < oc; c++) {
        int32_t sum = 0;
        for (const int8_t *end = row + k; row != end;) {
            sum += *row++;
        }
        folded[c] = bias[c] - p[ZI] * sum;
    }
    int y = 0, column = 0; // of the output, for the next window to copy
    for (int done = 0; done < pixels; done += 2) {
        int two = done + 1 < pixels, next = two ? oc : 0;
        if (plain) {
            filters(out, next, x, two ? k : 0, w, folded, mul, shift, p, 0, oc);
            x += 2 * k;
        } else {
            int y1 = y, column1 = column + 1;
            const int8_t *x1 = x;
            if (column1 == p[OW]) {
                column1 = 0;
                if (++y1 == p[OH]) {
                    y1 = 0;
                    x1 += p[IH] * p[IW] * ic;
                }
            }
            for (int g = 0; g < groups; g++) {
                window(pair, x + g * fc, y * p[SH] - p[PH], column * p[SW] - p[PW], p);
                if (two) {
                    window(pair + k, x1 + g * fc, y1 * p[SH] - p[PH], column1 * p[SW] - p[PW], p);
                }
                filters(out, next, pair, two ? k : 0, w, folded, mul, shift, p,
                    g * share, g * share + share);
            }
            x = x1;
            y = y1;
            column = column1 + 1;
            if (column == p[OW]) {
                column = 0;
                if (++y == p[OH]) {
                    y = 0;
                    x += p[IH] * p[IW] * ic;
                }
            }
        }
        out += 2 * oc;
    }
    m_free(folded);
    return mp_const_none;
}

// Sizes are those of a 1 x 1 convolution over p[OW] pixels.
mp_obj_t fully_connected(size_t count, const mp_obj_t *args) {
    return conv_2d(count, args);
}

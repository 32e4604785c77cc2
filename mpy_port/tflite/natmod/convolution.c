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

#define ALL8(step) step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7)

#if defined(__thumb__)
#define BLOCK 2
#else
#define BLOCK 4
#endif

// Windows of a pixel and its neighbour: x and x + d. Filters: w, w + k, ... Outputs: of the
// pixel at out, of its neighbour at out + next.
#if BLOCK == 2
static APART void block(
    const int8_t *x, int d, const int8_t *w, int k,
    int8_t *out, int next, const channel_t *channel, const range_t *range) {
    int32_t a0 = channel[0].start, a1 = channel[1].start, b0 = a0, b1 = a1;
    const int8_t *end = x + (k & ~7);
    #define STEP(i) { int32_t v = x[d], t = w[k], u = *x++, s = *w++; \
        a0 += u * s; b0 += v * s; a1 += u * t; b1 += v * t; }
    while (x != end) {
        ALL8(STEP)
    }
    end = x + (k & 7);
    while (x != end) {
        STEP(0)
    }
    #undef STEP
    out[next] = tame_output(b0, channel, range);
    out[0] = tame_output(a0, channel, range);
    out[next + 1] = tame_output(b1, channel + 1, range);
    out[1] = tame_output(a1, channel + 1, range);
}
#else
static APART void block(
    const int8_t *x, int d, const int8_t *w, int k,
    int8_t *out, int next, const channel_t *channel, const range_t *range) {
    const int8_t *y = x + d, *w1 = w + k, *w2 = w1 + k, *w3 = w2 + k;
    int32_t a0 = channel[0].start, a1 = channel[1].start;
    int32_t a2 = channel[2].start, a3 = channel[3].start;
    int32_t b0 = a0, b1 = a1, b2 = a2, b3 = a3;
    const int8_t *end = x + (k & ~7);
    #define STEP(i) { int32_t u = x[i], v = y[i], t = w[i]; a0 += u * t; b0 += v * t; \
        t = w1[i]; a1 += u * t; b1 += v * t; t = w2[i]; a2 += u * t; b2 += v * t; \
        t = w3[i]; a3 += u * t; b3 += v * t; }
    while (x != end) {
        ALL8(STEP)
        x += 8, y += 8, w += 8, w1 += 8, w2 += 8, w3 += 8;
    }
    end = x + (k & 7);
    while (x != end) {
        STEP(0)
        x++, y++, w++, w1++, w2++, w3++;
    }
    #undef STEP
    #define PUT(i, a, b) \
        out[next + i] = tame_output(b, channel + i, range); \
        out[i] = tame_output(a, channel + i, range);
    PUT(0, a0, b0) PUT(1, a1, b1) PUT(2, a2, b2) PUT(3, a3, b3)
    #undef PUT
}
#endif

// One window, four filters: adds the sums of (x - zero) * w. Where no window shares the
// filters, folding the zero point would cost more than it saves.
static APART void four(const int8_t *x, int zero, const int8_t *w, int k, int32_t *sums) {
    const int8_t *w1 = w + k, *w2 = w1 + k, *w3 = w2 + k, *end = x + (k & ~7);
    int32_t a0 = sums[0], a1 = sums[1], a2 = sums[2], a3 = sums[3];
    #define STEP(i) { int32_t v = x[i] - zero; a0 += v * w[i]; a1 += v * w1[i]; \
        a2 += v * w2[i]; a3 += v * w3[i]; }
    while (x != end) {
        ALL8(STEP)
        x += 8, w += 8, w1 += 8, w2 += 8, w3 += 8;
    }
    end = x + (k & 7);
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
    for (int ky = 0; ky < p[KH]; ky++, y0 += p[DH], to += kw * fc) {
        if ((unsigned)y0 >= (unsigned)ih) {
            fill(to, kw * fc, p[ZI]);
            continue;
        }
        const int8_t *row = x + y0 * iw * ic;
        if (together) {
            int first = x0 < 0 ? -x0 : 0, last = iw - x0;
            last = last > kw ? kw : last;
            fill(to, first * fc, p[ZI]);
            copy(to + first * fc, row + (x0 + first) * ic, (last - first) * fc);
            fill(to + last * fc, (kw - last) * fc, p[ZI]);
            continue;
        }
        for (int kx = 0, column = x0; kx < kw; kx++, column += dw) {
            if ((unsigned)column < (unsigned)iw) {
                copy(to + kx * fc, row + column * ic, fc);
            } else {
                fill(to + kx * fc, fc, p[ZI]);
            }
        }
    }
}

// Filters `c` to `end` of one window, the general way: nothing is folded.
static APART void single(
    int8_t *out, const int8_t *x, const int8_t *w, const int32_t *bias, const int32_t *mul,
    const int8_t *shift, const int32_t *p, int c, int end) {
    const int k = p[KH] * p[KW] * p[FC], per = p[PER], zi = p[ZI];
    const int32_t zo = p[ZO], lo = p[LO], hi = p[HI];
    w += c * k;
    mul += c * per;
    shift += c * per;
    out += c;
    while (c < end) {
        int32_t sums[4];
        int many = end - c >= 4 ? 4 : 1;
        for (int j = 0; j < many; j++) {
            sums[j] = bias[c + j];
        }
        if (many == 4) {
            four(x, zi, w, k, sums);
        } else {
            sums[0] = one(x, zi, w, k, sums[0]);
        }
        for (int j = 0; j < many; j++, mul += per, shift += per) {
            *out++ = output(scaled(sums[j], *mul, *shift), zo, lo, hi);
        }
        c += many;
        w += many * k;
    }
}

// Filters `c` to `end` of two windows, the tame way.
static APART void filters(
    int8_t *out, int next, const int8_t *x, int d, const int8_t *w, int k,
    const channel_t *channel, const range_t *range, int c, int end) {
    w += c * k;
    out += c;
    channel += c;
    for (; c + BLOCK <= end; c += BLOCK, w += BLOCK * k, out += BLOCK, channel += BLOCK) {
        block(x, d, w, k, out, next, channel, range);
    }
    for (; c < end; c++, w += k, out++, channel++) {
        out[next] = tame_output(one(x + d, 0, w, k, channel->start), channel, range);
        *out = tame_output(one(x, 0, w, k, channel->start), channel, range);
    }
}

// Folds the zero point into the biases. Whether all channels are tame.
static APART int fold(
    channel_t *channel, const int8_t *w, const int32_t *bias, const int32_t *mul,
    const int8_t *shift, const int32_t *p) {
    const int oc = p[OC], k = p[KH] * p[KW] * p[FC], per = p[PER], zi = p[ZI];
    int all = k <= TAME_TAPS;
    for (int c = 0; c < oc; c++, mul += per, shift += per) {
        int32_t sum = 0;
        for (const int8_t *end = w + k; w != end;) {
            sum += *w++;
        }
        all &= tame(channel + c, bias[c] - zi * sum, *mul, *shift);
    }
    return all;
}

mp_obj_t conv_2d(size_t count, const mp_obj_t *args) {
    int8_t *out = writable(args[0]);
    const int8_t *x = readable(args[1]), *w = readable(args[2]);
    const int32_t *bias = readable(args[3]), *mul = readable(args[4]), *p = readable(args[6]);
    const int8_t *shift = readable(args[5]);
    const int ih = p[IH], iw = p[IW], ic = p[IC], oh = p[OH], ow = p[OW], oc = p[OC];
    const int fc = p[FC], k = p[KH] * p[KW] * fc, image = oh * ow;
    const int groups = divide(ic, fc), share = divide(oc, groups);
    // 1 x 1 windows without stride lie side by side in the input.
    const int plain = k == ic && p[KH] * p[KW] * p[SH] * p[SW] == 1;
    (void)count;
    if (plain && p[N] * image == 1) {
        single(out, x, w, bias, mul, shift, p, 0, oc);
        return mp_const_none;
    }
    const range_t range = {p[ZO], p[LO], p[HI]};
    channel_t *channels = m_malloc(oc * sizeof(channel_t) + (plain ? 0 : 2 * k));
    int8_t *const pair = (int8_t *)(channels + oc);
    const int is_tame = fold(channels, w, bias, mul, shift, p);
    for (int n = p[N]; n; n--) {
        int y0 = -p[PH], x0 = -p[PW];
        const int x_end = x0 + ow * p[SW];
        for (int left = image; left;) {
            // The next window, and its neighbour, which may lie in the next row.
            const int two = left > 1 && is_tame, next = two ? oc : 0, d = two ? k : 0;
            int y1 = y0, x1 = x0 + p[SW];
            if (x1 == x_end) {
                x1 = -p[PW];
                y1 += p[SH];
            }
            for (int g = 0, c = 0; g < groups; g++, c += share) {
                const int8_t *from = x;
                if (!plain) {
                    from = pair;
                    window(pair, x + g * fc, y0, x0, p);
                    if (two) {
                        window(pair + k, x + g * fc, y1, x1, p);
                    }
                }
                if (is_tame) {
                    filters(out, next, from, d, w, k, channels, &range, c, c + share);
                } else {
                    single(out, from, w, bias, mul, shift, p, c, c + share);
                }
            }
            out += oc + next;
            left -= 1 + two;
            if (plain) {
                x += k + d;
            }
            y0 = y1;
            x0 = x1;
            if (two) {
                x0 += p[SW];
                if (x0 == x_end) {
                    x0 = -p[PW];
                    y0 += p[SH];
                }
            }
        }
        if (!plain) {
            x += ih * iw * ic;
        }
    }
    m_free(channels);
    return mp_const_none;
}

// Sizes are those of a 1 x 1 convolution over p[OW] pixels.
mp_obj_t fully_connected(size_t count, const mp_obj_t *args) {
    return conv_2d(count, args);
}

// Kernels that work value by value, or move values.
#include "kernels.h"

static void pool(mp_obj_t out_in, mp_obj_t x_in, mp_obj_t p_in, int average) {
    int8_t *out = writable(out_in);
    const int8_t *image = readable(x_in);
    const int32_t *p = readable(p_in);
    const int ih = p[IH], iw = p[IW], ic = p[IC], lo = p[LO], hi = p[HI];
    for (int n = 0; n < p[N]; n++, image += ih * iw * ic) {
        for (int y = 0; y < p[OH]; y++) {
            int y0 = y * p[SH] - p[PH], y1 = y0 + p[KH];
            y0 = y0 < 0 ? 0 : y0;
            y1 = y1 > ih ? ih : y1;
            for (int column = 0; column < p[OW]; column++) {
                int x0 = column * p[SW] - p[PW], x1 = x0 + p[KW];
                x0 = x0 < 0 ? 0 : x0;
                x1 = x1 > iw ? iw : x1;
                const int8_t *corner = image + (y0 * iw + x0) * ic;
                const int rows = y1 - y0, columns = x1 - x0, back = (iw - columns) * ic;
                const int size = rows * columns, half = size >> 1;
                for (int c = 0; c < ic; c++) {
                    const int8_t *from = corner + c;
                    int v = average ? 0 : -128;
                    for (int r = rows; r; r--, from += back) {
                        for (int k = columns; k; k--, from += ic) {
                            if (average) {
                                v += *from;
                            } else if (*from > v) {
                                v = *from;
                            }
                        }
                    }
                    if (average) {
                        v = v > 0 ? (int)divide(v + half, size) : -(int)divide(half - v, size);
                    }
                    *out++ = clamp(v, lo, hi);
                }
            }
        }
    }
}

mp_obj_t average_pool_2d(mp_obj_t out, mp_obj_t x, mp_obj_t p) {
    pool(out, x, p, 1);
    return mp_const_none;
}

mp_obj_t max_pool_2d(mp_obj_t out, mp_obj_t x, mp_obj_t p) {
    pool(out, x, p, 0);
    return mp_const_none;
}

static void pairwise(const mp_obj_t *args, int sum) {
    int8_t *out = writable(args[0]);
    const int8_t *a = readable(args[1]), *b = readable(args[2]);
    const int32_t *p = readable(args[3]);
    const int d3 = p[3], a3 = p[7], b3 = p[11];
    const int za = p[12], zb = p[13], zo = p[14], lo = p[15], hi = p[16];
    const int32_t m = p[17];
    const int s = p[18];
    for (int i = 0; i < p[0]; i++) {
        for (int j = 0; j < p[1]; j++) {
            for (int k = 0; k < p[2]; k++) {
                const int8_t *from = a + i * p[4] + j * p[5] + k * p[6];
                const int8_t *other = b + i * p[8] + j * p[9] + k * p[10];
                for (int l = d3; l; l--, from += a3, other += b3) {
                    int32_t u = *from - za, v = *other - zb;
                    if (sum) {
                        v = scaled(u << 20, p[19], p[20]) + scaled(v << 20, p[21], p[22]);
                    } else {
                        v *= u;
                    }
                    *out++ = output(scaled(v, m, s), zo, lo, hi);
                }
            }
        }
    }
}

mp_obj_t add(size_t count, const mp_obj_t *args) {
    (void)count;
    pairwise(args, 1);
    return mp_const_none;
}

mp_obj_t mul(size_t count, const mp_obj_t *args) {
    (void)count;
    pairwise(args, 0);
    return mp_const_none;
}

mp_obj_t mean(mp_obj_t out_in, mp_obj_t x_in, mp_obj_t p_in) {
    int8_t *out = writable(out_in);
    const int8_t *x = readable(x_in);
    const int32_t *p = readable(p_in);
    const int r0 = p[1], k1 = p[2], r1 = p[3], k2 = p[4];
    const int32_t bias = p[5] * r0 * r1;
    for (int a = 0; a < p[0]; a++) {
        for (int b = 0; b < k1; b++) {
            for (int c = 0; c < k2; c++) {
                int32_t total = 0;
                for (int i = 0; i < r0; i++) {
                    const int8_t *from = x + (((a * r0 + i) * k1 + b) * r1) * k2 + c;
                    for (int j = r1; j; j--, from += k2) {
                        total += *from;
                    }
                }
                *out++ = output(scaled(total - bias, p[7], p[8]), p[6], -128, 127);
            }
        }
    }
    return mp_const_none;
}

static const int32_t EXP_FACTORS[] = {
    1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242
};

// exp(a) with 31 fraction bits, for a <= 0 with 5 integer bits. See quantize.py.
static int32_t exp_of_negative(int32_t a) {
    if (a == 0) {
        return 0x7fffffff;
    }
    const int32_t quarter = 1 << 24;
    int32_t near = (a & (quarter - 1)) - quarter;
    int32_t x = (int32_t)((uint32_t)near << 5) + (1 << 28);
    int32_t x2 = high_mul(x, x), x3 = high_mul(x2, x), x4 = shift_right(high_mul(x2, x2), 2);
    int32_t series = shift_right(high_mul(x4 + x3, 715827883) + x2, 1);
    int32_t result = 1895147668 + high_mul(1895147668, x + series), rest = near - a;
    for (int k = 0; k < 7; k++) {
        if (rest & (quarter << k)) {
            result = high_mul(result, EXP_FACTORS[k]);
        }
    }
    return result;
}

static int32_t doubled(int32_t x, int times) {
    while (times--) {
        x = x > 0x3fffffff ? 0x7fffffff : x < -0x40000000 ? INT32_MIN : x * 2;
    }
    return x;
}

// 1 / (1 + a) with 31 fraction bits, for a in [0, 1).
static int32_t inverse_of_one_plus(int32_t a) {
    int32_t half = (int32_t)(((uint32_t)a + 0x80000000u) >> 1);
    int32_t x = 1515870810 + high_mul(half, -1010580540);
    for (int k = 0; k < 3; k++) {
        x += doubled(high_mul(x, (1 << 29) - high_mul(half, x)), 2);
    }
    return doubled(x, 1);
}

mp_obj_t softmax(mp_obj_t out_in, mp_obj_t x_in, mp_obj_t p_in) {
    int8_t *out = writable(out_in);
    const int8_t *x = readable(x_in);
    const int32_t *p = readable(p_in);
    const int depth = p[1], s = p[3], radius = p[4];
    const int32_t m = p[2];
    for (int row = 0; row < p[0]; row++, x += depth, out += depth) {
        int top = -128, headroom = 0;
        uint32_t total = 0;
        for (int i = 0; i < depth; i++) {
            top = x[i] > top ? x[i] : top;
        }
        for (int i = 0; i < depth; i++) {
            int d = x[i] - top;
            if (d >= -radius) {
                total += ((uint32_t)exp_of_negative(scaled(d, m, s)) + (1 << 11)) >> 12;
            }
        }
        while (!(total << headroom & 0x80000000u)) {
            headroom++;
        }
        int32_t inverse = inverse_of_one_plus((int32_t)((total << headroom) - 0x80000000u));
        int right = 35 - headroom;
        for (int i = 0; i < depth; i++) {
            int d = x[i] - top;
            uint32_t v = 0;
            if (d >= -radius && right < 32) {
                v = high_mul(inverse, exp_of_negative(scaled(d, m, s)));
                v = (v + (1u << (right - 1))) >> right;
            }
            out[i] = v > 255 ? 127 : (int)v - 128;
        }
    }
    return mp_const_none;
}

mp_obj_t lookup(mp_obj_t out_in, mp_obj_t x_in, mp_obj_t table_in) {
    int8_t *out = writable(out_in);
    const uint8_t *x = readable(x_in);
    const int8_t *table = readable(table_in);
    for (size_t i = length(x_in); i; i--) {
        *out++ = table[*x++];
    }
    return mp_const_none;
}

mp_obj_t pad(mp_obj_t out_in, mp_obj_t x_in, mp_obj_t p_in) {
    int8_t *out = writable(out_in);
    const int8_t *x = readable(x_in);
    const int32_t *p = readable(p_in);
    const int o1 = p[1] + p[5] + p[9], o2 = p[2] + p[6] + p[10], o3 = p[3] + p[7] + p[11];
    fill(out, length(out_in), p[12]);
    for (int a = 0; a < p[0]; a++) {
        for (int b = 0; b < p[1]; b++) {
            for (int c = 0; c < p[2]; c++, x += p[3]) {
                copy(out + (((a + p[4]) * o1 + b + p[5]) * o2 + c + p[6]) * o3 + p[7], x, p[3]);
            }
        }
    }
    return mp_const_none;
}

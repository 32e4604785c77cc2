// Multipliers of a layer: what `quantize.multiplier` does with big integers, in 32-bit steps.
#include "kernels.h"

// Mantissa and exponent of a positive float32; 0 when it cannot be a scale.
static uint32_t parts(uint32_t bits, int *exponent) {
    uint32_t e = bits >> 23;
    if (e < 127 - 60 || e > 127 + 60) {
        return 0;
    }
    *exponent = (int)e - 150;
    return (bits & 0x7fffff) | 0x800000;
}

// (multiplier, shift) for (n1 * n2) * 2^exponent / d; mantissas of 24 bits each.
static int32_t multiplier(uint32_t n1, uint32_t n2, uint32_t d, int exponent, int *shift) {
    // The product's 48 bits in two words.
    uint32_t low = (n1 & 0xffff) * (n2 & 0xffff), high = (n1 >> 16) * (n2 >> 16);
    uint32_t mid = (n1 >> 16) * (n2 & 0xffff) + (n1 & 0xffff) * (n2 >> 16);
    uint32_t sum = low + (mid << 16);
    high += (mid >> 16) + (sum < low);
    low = sum;
    // Long division of the product times 2^32, a byte at a time: d has 24 bits.
    uint32_t rest = 0, q1 = 0, q0 = 0;
    for (int k = 9; k >= 0; k--) {
        uint32_t byte = k >= 8 ? high >> (8 * (k - 8)) : k >= 4 ? low >> (8 * (k - 4)) : 0;
        rest = rest << 8 | (byte & 255);
        uint32_t q = divide(rest, d);
        rest -= q * d;
        q1 = q1 << 8 | q0 >> 24;
        q0 = q0 << 8 | q;
    }
    // To the 53 bits of a double, ties to even.
    int drop = 2;
    for (uint32_t top = q1 >> 23; top; top >>= 1) {
        drop++;
    }
    uint32_t cut = q0 & ((1u << drop) - 1), half = 1u << (drop - 1);
    q0 = q0 >> drop | q1 << (32 - drop);
    q1 >>= drop;
    if (cut > half || (cut == half && (rest || (q0 & 1)))) {
        q0++;
        q1 += q0 == 0;
    }
    *shift = drop + 21 + exponent;
    // To 31 bits, ties away from zero.
    q0 += 1u << 21;
    q1 += q0 < 1u << 21;
    uint32_t m = q0 >> 22 | q1 << 10;
    if (m >> 31) {
        m >>= 1;
        ++*shift;
    }
    if (*shift < -31) {
        *shift = 0;
        return 0;
    }
    return (int32_t)m;
}

mp_obj_t multipliers(size_t count, const mp_obj_t *args) {
    int32_t *mul = writable(args[0]);
    int8_t *shift = writable(args[1]);
    const uint8_t *scales = readable(args[2]); // at any alignment
    const uint32_t *p = readable(args[3]);
    const int channels = length(args[0]) / 4;
    int xe = 0, oe = 0, we = 0, s;
    uint32_t xm = parts(p[0], &xe), om = parts(p[1], &oe);
    (void)count;
    for (int c = 0; c < channels; c++, scales += 4) {
        uint32_t bits = scales[0] | scales[1] << 8 | scales[2] << 16 | (uint32_t)scales[3] << 24;
        uint32_t wm = parts(bits, &we);
        if (!wm) {
            return MP_OBJ_NEW_SMALL_INT(c);
        }
        mul[c] = multiplier(xm, wm, om, xe + we - oe, &s);
        if (s > 30) {
            return MP_OBJ_NEW_SMALL_INT(c);
        }
        shift[c] = s;
    }
    return MP_OBJ_NEW_SMALL_INT(-1);
}

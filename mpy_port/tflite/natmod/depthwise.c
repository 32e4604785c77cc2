// Depthwise convolution: four channels at a time, their parameters in registers, over all
// pixels. Where the window leaves the input, the four channels' inputs are copied with the
// zero point around them; so the zero point can be folded into the bias here, too.
#include "kernels.h"

// Inputs of one channel group as the loops below walk them.
typedef struct {
    int column, row;  // steps in the input
    int oc, kh, kw;
} steps_t;

// sums of four neighbouring channels; SIDE: step from one channel's input to the next.
#define TAPS(name, SIDE) \
    static APART void name( \
        const int8_t *x, const int8_t *w, const steps_t *steps, int32_t *sums) { \
        const int column = steps->column, oc = steps->oc; \
        int32_t a0 = sums[0], a1 = sums[1], a2 = sums[2], a3 = sums[3]; \
        const int back = steps->row - steps->kw * column; \
        for (int ky = steps->kh; ky; ky--) { \
            for (int kx = steps->kw; kx; kx--) { \
                a0 += x[0] * w[0]; \
                a1 += x[SIDE] * w[1]; \
                a2 += x[2 * SIDE] * w[2]; \
                a3 += x[3 * SIDE] * w[3]; \
                x += column; \
                w += oc; \
            } \
            x += back; \
        } \
        sums[0] = a0; \
        sums[1] = a1; \
        sums[2] = a2; \
        sums[3] = a3; \
    }
TAPS(four_inputs, 1)
TAPS(one_input, 0)

static APART int32_t one_channel(
    const int8_t *x, const int8_t *w, const steps_t *steps, int32_t sum) {
    const int column = steps->column, oc = steps->oc;
    for (int ky = steps->kh; ky; ky--) {
        const int8_t *from = x;
        for (int kx = steps->kw; kx; kx--, from += column, w += oc) {
            sum += *from * *w;
        }
        x += steps->row;
    }
    return sum;
}

// The window of `wide` channels, with zero points where it leaves the input.
static APART void window(
    int8_t *to, const int8_t *x, int y0, int x0, int wide, const int32_t *p) {
    const int ih = p[IH], iw = p[IW], ic = p[IC], kw = p[KW], dw = p[DW], zi = p[ZI];
    for (int ky = 0; ky < p[KH]; ky++, y0 += p[DH]) {
        const int8_t *row = x + y0 * iw * ic;
        for (int kx = 0, column = x0; kx < kw; kx++, column += dw) {
            int inside = (unsigned)y0 < (unsigned)ih && (unsigned)column < (unsigned)iw;
            const int8_t *from = row + column * ic;
            for (int j = 0; j < wide; j++) {
                *to++ = inside ? from[j] : zi;
            }
        }
    }
}

mp_obj_t depthwise_conv_2d(size_t count, const mp_obj_t *args) {
    int8_t *const out = writable(args[0]);
    const int8_t *const x = readable(args[1]), *const w = readable(args[2]);
    const int32_t *bias = readable(args[3]), *mul = readable(args[4]), *p = readable(args[6]);
    const int8_t *shift = readable(args[5]);
    const int ih = p[IH], iw = p[IW], ic = p[IC], oh = p[OH], ow = p[OW], oc = p[OC];
    const int sh = p[SH], sw = p[SW], per = p[PER], fc = p[FC], taps = p[KH] * p[KW];
    const int zi = p[ZI], zo = p[ZO], lo = p[LO], hi = p[HI];
    const int last_y = ih - (p[KH] - 1) * p[DH], last_x = iw - (p[KW] - 1) * p[DW];
    const steps_t inside = {p[DW] * ic, p[DH] * iw * ic, oc, p[KH], p[KW]};
    int8_t *const scratch = m_malloc(4 * taps);
    int in_pixel = 0, turn = 0; // input channel, and how many outputs it has had
    (void)count;
    for (int c = 0; c < oc;) {
        // Four channels with one input each, or four with the same input, or one.
        int four = oc - c >= 4 && (fc == 1 || (fc & 3) == 0), wide = four && fc == 1 ? 4 : 1;
        int channels = four ? 4 : 1;
        int32_t folded[4], m[4], sums[4];
        int s[4];
        for (int j = 0; j < channels; j++) {
            const int8_t *tap = w + c + j;
            int32_t sum = 0;
            for (int k = 0; k < taps; k++, tap += oc) {
                sum += *tap;
            }
            folded[j] = bias[c + j] - zi * sum;
            m[j] = mul[(c + j) * per];
            s[j] = shift[(c + j) * per];
        }
        const steps_t copied = {wide, p[KW] * wide, oc, p[KH], p[KW]};
        const int8_t *image = x + in_pixel;
        int8_t *o = out + c;
        for (int n = 0; n < p[N]; n++, image += ih * iw * ic) {
            for (int y = 0, y0 = -p[PH]; y < oh; y++, y0 += sh) {
                int rows_inside = y0 >= 0 && y0 < last_y;
                const int8_t *from = image + (y0 * iw - p[PW]) * ic;
                for (int x0 = -p[PW], end = x0 + ow * sw; x0 != end; x0 += sw, from += sw * ic) {
                    const int8_t *start = from;
                    const steps_t *steps = &inside;
                    if (!rows_inside || x0 < 0 || x0 >= last_x) {
                        window(scratch, image, y0, x0, wide, p);
                        start = scratch;
                        steps = &copied;
                    }
                    if (!four) {
                        int32_t sum = one_channel(start, w + c, steps, folded[0]);
                        *o = clamp(scaled(sum, m[0], s[0]) + zo, lo, hi);
                    } else {
                        for (int j = 0; j < 4; j++) {
                            sums[j] = folded[j];
                        }
                        (fc == 1 ? four_inputs : one_input)(start, w + c, steps, sums);
                        for (int j = 0; j < 4; j++) {
                            o[j] = clamp(scaled(sums[j], m[j], s[j]) + zo, lo, hi);
                        }
                    }
                    o += oc;
                }
            }
        }
        c += channels;
        for (turn += channels; turn >= fc; turn -= fc) {
            in_pixel++;
        }
    }
    m_free(scratch);
    return mp_const_none;
}

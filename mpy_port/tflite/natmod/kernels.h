// What the native kernels share. See kernels/__init__.py for their contract and Makefile
// for how they are built.
//
// Rules of this folder: no libgcc (so no 64-bit division and, on cores without a wide
// multiplication, none of that either), no .data, no static .bss, no int32 pointer into
// the model: weights are read byte by byte, biases and multipliers lie in RAM, aligned.
// Arithmetic wraps (-fwrapv), as in the other tiers.
#include "py/dynruntime.h"
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
// A loop that needs every register of a small core gets a frame of its own.
#define APART __attribute__((noinline))

// Indexes of the parameters of windows, as in kernels/__init__.py.
enum {
    N, IH, IW, IC, OH, OW, OC, KH, KW, SH, SW, DH, DW, PH, PW, ZI, ZO, LO, HI, PER, FC
};

// A 32 x 32 -> 64 bit multiplication is one or two instructions. Where the compiler would
// call a library, 16-bit halves take its place.
#if defined(__ARM_ARCH_6M__) || (defined(__XTENSA__) && !defined(__XTENSA_WINDOWED_ABI__))
#define WIDE 0
#else
#define WIDE 1
#endif

// Cores without a division instruction.
#if defined(__ARM_ARCH_6M__) || defined(__XTENSA__)
#define DIVIDES 0
#else
#define DIVIDES 1
#endif

// floor((a * b + 2^30) / 2^31): doubling high multiplication, to nearest, ties up.
INLINE int32_t high_mul(int32_t a, int32_t b) {
    #if WIDE
    return (int32_t)(((int64_t)a * b + 0x40000000) >> 31);
    #else
    int32_t ah = a >> 16, bh = b >> 16, t1, t2, hi;
    uint32_t al = a & 0xffff, bl = b & 0xffff, low = al * bl, t;
    t1 = ah * (int32_t)bl;
    t2 = (int32_t)al * bh;
    t = (low >> 16) + (t1 & 0xffff) + (t2 & 0xffff);
    hi = ah * bh + (t1 >> 16) + (t2 >> 16) + (int32_t)(t >> 16);
    return (int32_t)(((uint32_t)hi << 1) + ((((t >> 14) & 3) + 1) >> 1));
    #endif
}

// x / 2^n to nearest, ties away from zero; 0 <= n <= 31. Without a sum that could wrap.
INLINE int32_t shift_right(int32_t x, int n) {
    uint32_t mask = (1u << n) - 1, rest = (uint32_t)x & mask;
    return (x >> n) + (rest > (mask >> 1) + (x < 0));
}

// x * m / 2^31 * 2^shift with the two roundings of the reference kernels.
INLINE int32_t scaled(int32_t x, int32_t m, int shift) {
    if (shift > 0) {
        return high_mul((int32_t)((uint32_t)x << shift), m);
    }
    return shift_right(high_mul(x, m), -shift);
}

INLINE int32_t clamp(int32_t v, int32_t lo, int32_t hi) {
    v = v < lo ? lo : v;
    return v > hi ? hi : v;
}

// v + zero, clamped; any v.
INLINE int32_t output(int32_t v, int32_t zero, int32_t lo, int32_t hi) {
    return clamp(v, lo - zero, hi - zero) + zero;
}

// What turns a channel's sum into its output. `start`: bias, with the zero point folded in.
typedef struct {
    int32_t start, m, right;
} channel_t;

// The same for all channels.
typedef struct {
    int32_t zero, lo, hi;
} range_t;

// Sums that stay below 2^30 and shifts to the right need half the instructions. Whether
// that holds is known beforehand: at most TAME_TAPS products of at most 2^14 are added to
// `start`. All but strange models are tame; the others take the general way, `scaled`.
#define TAME_TAPS (1 << 14)

INLINE int tame(channel_t *channel, int32_t start, int32_t m, int shift) {
    channel->start = start;
    channel->m = m;
    channel->right = -shift;
    return shift < 0 && start < 1 << 29 && start > -(1 << 29);
}

INLINE int32_t tame_output(int32_t sum, const channel_t *channel, const range_t *range) {
    const int right = channel->right;
    #if WIDE
    int64_t product = (int64_t)(sum * 2) * channel->m;
    int32_t h = (int32_t)(product >> 32) + (int32_t)((uint32_t)product >> 31);
    #else
    int32_t h = high_mul(sum, channel->m);
    #endif
    h -= (int32_t)((uint32_t)h >> 31);
    h = (h + (int32_t)((1u << right) >> 1)) >> right;
    return clamp(h + range->zero, range->lo, range->hi);
}

INLINE uint32_t divide(uint32_t a, uint32_t b) {
    #if DIVIDES
    return a / b;
    #else
    uint32_t q = 0, r = 0;
    for (int k = 31; k >= 0; k--) {
        r = r << 1 | ((a >> k) & 1);
        q <<= 1;
        if (r >= b) {
            r -= b;
            q |= 1;
        }
    }
    return q;
    #endif
}

// Own loops, because memset and memcpy would come from a library.
INLINE void fill(int8_t *to, int count, int value) {
    while (count-- > 0) {
        *to++ = value;
    }
}

INLINE void copy(int8_t *to, const int8_t *from, int count) {
    if ((((uintptr_t)to | (uintptr_t)from) & 3) == 0) {
        for (; count >= 4; count -= 4, to += 4, from += 4) {
            *(uint32_t *)to = *(const uint32_t *)from;
        }
    }
    while (count-- > 0) {
        *to++ = *from++;
    }
}

INLINE void *readable(mp_obj_t object) {
    mp_buffer_info_t buffer;
    mp_get_buffer_raise(object, &buffer, MP_BUFFER_READ);
    return buffer.buf;
}

INLINE void *writable(mp_obj_t object) {
    mp_buffer_info_t buffer;
    mp_get_buffer_raise(object, &buffer, MP_BUFFER_RW);
    return buffer.buf;
}

INLINE size_t length(mp_obj_t object) {
    mp_buffer_info_t buffer;
    mp_get_buffer_raise(object, &buffer, MP_BUFFER_READ);
    return buffer.len;
}

// The kernels; `args` as the contract lists them.
mp_obj_t conv_2d(size_t count, const mp_obj_t *args);
mp_obj_t depthwise_conv_2d(size_t count, const mp_obj_t *args);
mp_obj_t fully_connected(size_t count, const mp_obj_t *args);
mp_obj_t average_pool_2d(mp_obj_t out, mp_obj_t x, mp_obj_t p);
mp_obj_t max_pool_2d(mp_obj_t out, mp_obj_t x, mp_obj_t p);
mp_obj_t add(size_t count, const mp_obj_t *args);
mp_obj_t mul(size_t count, const mp_obj_t *args);
mp_obj_t mean(mp_obj_t out, mp_obj_t x, mp_obj_t p);
mp_obj_t softmax(mp_obj_t out, mp_obj_t x, mp_obj_t p);
mp_obj_t lookup(mp_obj_t out, mp_obj_t x, mp_obj_t table);
mp_obj_t pad(mp_obj_t out, mp_obj_t x, mp_obj_t p);
mp_obj_t multipliers(size_t count, const mp_obj_t *args);

// Steps of flatbuffer.Reader.
mp_obj_t follow(mp_obj_t data, mp_obj_t at);
mp_obj_t field(mp_obj_t data, mp_obj_t table, mp_obj_t number);
mp_obj_t table(mp_obj_t data, mp_obj_t at, mp_obj_t number);
mp_obj_t vector(size_t count, const mp_obj_t *args);
mp_obj_t byte_field(size_t count, const mp_obj_t *args);
mp_obj_t integer(size_t count, const mp_obj_t *args);
mp_obj_t u32(mp_obj_t data, mp_obj_t at);
mp_obj_t i32(mp_obj_t data, mp_obj_t at);
mp_obj_t integers(mp_obj_t data, mp_obj_t at, mp_obj_t count);
mp_obj_t tensor(size_t count, const mp_obj_t *args);

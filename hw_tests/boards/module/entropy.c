// Random bytes: the host's, or, with seed=TEXT on the command line, the same ones in every
// run with that text. Then two runs of one board want two seeds, as do two boards.
#include "board.h"

// SplitMix64: good enough for a run that is to be repeated, and for nothing else.
static uint64_t next(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static void from_seed(const char *seed, uint8_t *data, size_t length) {
    static uint64_t state;
    if (state == 0) {
        for (state = 0xcbf29ce484222325; *seed; ++seed) { // FNV-1a of the text
            state = (state ^ (uint8_t)*seed) * 0x100000001b3;
        }
    }
    for (size_t i = 0; i < length; ++i) {
        data[i] = next(&state) >> 56;
    }
}

void entropy_fill(uint8_t *data, size_t length) {
    static int file = -1;
    const char *seed = option("seed");
    if (seed != NULL) {
        from_seed(seed, data, length);
        return;
    }
    if (file < 0) {
        file = host_open("/dev/urandom", HOST_READ);
    }
    if (file < 0 || !host_read(file, 0, data, length)) {
        host_exit(EXIT_FAILED); // bytes that anybody can guess are worse than no machine
    }
}

// The seed of the module `random`.
unsigned long entropy_word(void) {
    uint32_t word;
    entropy_fill((uint8_t *)&word, sizeof(word));
    return word;
}

// The flash chip of QEMU's "virt": 32 MiB that are read as memory, and the commands of
// Intel's (CFI 01). QEMU writes through to its file, which thus survives QEMU itself.
//
// Two things it does not do as a chip does, so that flash.c must: it programs ones over
// zeros, and its blocks are 256 KiB. Hence programming is all that is used of it.
#include <string.h>
#include "board.h"
#if BOARD_RV32

// The second of the machine's two chips. QEMU would start from the first one.
#define CHIP 0x22000000u
// Two chips of 16 bits side by side: each half of the bus takes the command.
#define BOTH(command) ((command) | (uint32_t)(command) << 16)
enum { READ_ARRAY = 0xff, BUFFERED_PROGRAM = 0xe8, CONFIRM = 0xd0, READY = 0x80 };
// What one buffered program may cover.
enum { BUFFER = 4096 };

bool chip_open(void) {
    *(volatile uint32_t *)(uintptr_t)CHIP = BOTH(READ_ARRAY);
    // Without -drive if=pflash,unit=1 there is a chip that forgets everything: all zeros.
    for (uint32_t i = 0; i < FLASH_PAGE; ++i) {
        if (chip_map()[i] != 0 || chip_map()[FLASH_KEPT + i] != 0) {
            return true;
        }
    }
    return false;
}

const uint8_t *chip_map(void) {
    return (const uint8_t *)(uintptr_t)CHIP;
}

void chip_write(uint32_t at, const uint8_t *data, uint32_t length) {
    while (length > 0) {
        uint32_t part = BUFFER - at % BUFFER;
        part = part < length ? part : length;
        uint32_t words = part / 4;
        volatile uint32_t *target = (volatile uint32_t *)(uintptr_t)(CHIP + at);
        *target = BOTH(BUFFERED_PROGRAM);
        *target = BOTH(words - 1);
        for (uint32_t i = 0; i < words; ++i) {
            uint32_t word;
            memcpy(&word, data + 4 * i, 4);
            target[i] = word;
        }
        *target = BOTH(CONFIRM);
        while ((*target & BOTH(READY)) != BOTH(READY)) {
        }
        *target = BOTH(READ_ARRAY);
        at += part;
        data += part;
        length -= part;
    }
}

#endif

// The flash chip of the "mps2-an385", which has none: a file of the host's. It is read into
// PSRAM at power-on, so that flash can be read as memory (ROMFS needs that), and written
// through. What was written survives QEMU's death, as the host has it; a power cut of the
// host itself is not modelled.
#include <string.h>
#include "board.h"
#if BOARD_M3

#define PSRAM 0x21000000u // 16 MB, otherwise unused

static int file = -1;

bool chip_open(void) {
    const char *path = option("flash");
    if (path == NULL) {
        return false;
    }
    file = host_open(path, HOST_UPDATE);
    return file >= 0 && host_read(file, 0, (void *)(uintptr_t)PSRAM, FLASH_SIZE);
}

const uint8_t *chip_map(void) {
    return (const uint8_t *)(uintptr_t)PSRAM;
}

void chip_write(uint32_t at, const uint8_t *data, uint32_t length) {
    memcpy((void *)(uintptr_t)(PSRAM + at), data, length);
    if (!host_write(file, at, data, length)) {
        host_exit(EXIT_FAILED); // a full disk of the host must not look like a flash
    }
}

#endif

// What lives through a reset and through deep sleep: RTC memory, the clock, the reason why;
// and the chip's unique id. On a real board these are RAM that stays powered, and fuses.
// Here they are the last part of the flash image, written at the end of a run without the
// flash's rules and counters, and taken back at power-on: so only a machine that said
// goodbye (reset, deep sleep, watchdog) finds anything. After a power cut there is nothing.
#include <string.h>
#include "board.h"

enum { KEPT_RTC = FLASH_KEPT, KEPT_ID = FLASH_KEPT + FLASH_BLOCK };
enum { MAGIC = 0x52544331 };

rtc_t rtc = { .cause = CAUSE_POWER_ON };
static bool present;
static uint8_t id[UNIQUE_ID_SIZE];

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// From id=HEX; else what an earlier power-on burnt into the fuses; else burn it now.
static void id_init(void) {
    const char *text = option("id");
    if (text != NULL) {
        for (size_t i = 0; i < 2 * UNIQUE_ID_SIZE && hex_digit(text[i]) >= 0; ++i) {
            id[i / 2] = id[i / 2] << 4 | hex_digit(text[i]);
        }
        return;
    }
    static const uint8_t unburnt[UNIQUE_ID_SIZE] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    };
    if (present && memcmp(chip_map() + KEPT_ID, unburnt, UNIQUE_ID_SIZE) != 0) {
        memcpy(id, chip_map() + KEPT_ID, UNIQUE_ID_SIZE);
        return;
    }
    entropy_fill(id, UNIQUE_ID_SIZE);
    if (present) {
        chip_write(KEPT_ID, id, UNIQUE_ID_SIZE);
    }
}

void rtc_init(void) {
    present = chip_open();
    id_init();
    rtc_t kept;
    if (!present) {
        return;
    }
    memcpy(&kept, chip_map() + KEPT_RTC, sizeof(kept));
    if (kept.magic != MAGIC || kept.length > RTC_MEMORY_MAX) {
        return;
    }
    const uint32_t taken = 0;
    chip_write(KEPT_RTC, (const uint8_t *)&taken, sizeof(taken));
    if (option_number("cold", 0) == 0) { // cold=1: the power was away in the meantime
        rtc = kept;
        uint32_t slept = rtc.cause == CAUSE_DEEPSLEEP ? rtc.sleep_ms : 0;
        const char *text = option("slept");
        rtc.clock_us += 1000ull * (text != NULL ? (uint32_t)option_number("slept", 0) : slept);
    }
}

void rtc_stop(int status, uint32_t cause, uint32_t sleep_ms) {
    if (present) {
        rtc.magic = MAGIC;
        rtc.cause = cause;
        rtc.sleep_ms = sleep_ms;
        rtc.clock_us = clock_us();
        chip_write(KEPT_RTC, (const uint8_t *)&rtc, sizeof(rtc));
    }
    host_exit(status);
}

const uint8_t *unique_id(void) {
    return id;
}

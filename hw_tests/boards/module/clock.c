// Time: ticks since power-on, and the calendar clock, which starts wrong as on a board that
// nobody has told the time: at 2000 (esp32) or 2021 (rp2), the epochs of time.time() differ.
// utc=SECONDS or utc=host sets it, and it goes on through deep sleep.
#include <string.h>
#include "py/mphal.h"
#include "py/runtime.h"
#include "board.h"

#if MICROPY_EPOCH_IS_1970
enum { EPOCH_AFTER_1970 = 0, START = 1609459200 };
#else
enum { EPOCH_AFTER_1970 = 946684800, START = 0 };
#endif

static uint64_t at_power_on_us; // the calendar's time, since the epoch

uint64_t clock_us(void) {
    return at_power_on_us + cpu_ticks_us();
}

void clock_set_us(uint64_t us) {
    at_power_on_us = us - cpu_ticks_us();
}

void clock_init(void) {
    const char *utc = option("utc");
    if (utc != NULL) {
        uint32_t seconds = strcmp(utc, "host") == 0 ? host_time() : option_number("utc", 0);
        clock_set_us(1000000ull * (seconds - EPOCH_AFTER_1970));
    } else {
        clock_set_us(rtc.cause == CAUSE_POWER_ON ? 1000000ull * START : rtc.clock_us);
    }
}

// --- what MicroPython asks of a port ----------------------------------------------------

uint64_t mp_hal_time_ns(void) {
    return clock_us() * 1000;
}

mp_uint_t mp_hal_ticks_ms(void) {
    return cpu_ticks_us() / 1000;
}

mp_uint_t mp_hal_ticks_us(void) {
    return cpu_ticks_us();
}

mp_uint_t mp_hal_ticks_cpu(void) {
    return cpu_ticks_us();
}

void mp_hal_delay_us(mp_uint_t us) {
    uint64_t end = cpu_ticks_us() + us;
    while (cpu_ticks_us() < end) {
    }
}

void mp_hal_delay_ms(mp_uint_t ms) {
    uint64_t end = cpu_ticks_us() + 1000ull * ms;
    mp_event_handle_nowait();
    while (cpu_ticks_us() < end) {
        mp_event_wait_ms(1);
    }
}

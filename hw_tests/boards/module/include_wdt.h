// Part of MicroPython's machine_wdt.c: machine.WDT. Once started it cannot be stopped. It
// bites when the background is polled, so a C function that never returns is not caught.
#include "py/mphal.h"
#include "board.h"

struct _machine_wdt_obj_t {
    mp_obj_base_t base;
};
static const machine_wdt_obj_t watchdog = { { &machine_wdt_type } };
static mp_uint_t timeout, fed; // ms; no timeout: not started

static machine_wdt_obj_t *mp_machine_wdt_make_new_instance(mp_int_t id, mp_int_t timeout_ms) {
    if (id != 0 || timeout_ms <= 0) {
        mp_raise_ValueError(NULL);
    }
    timeout = timeout_ms;
    fed = mp_hal_ticks_ms();
    return (machine_wdt_obj_t *)&watchdog;
}

static void mp_machine_wdt_feed(machine_wdt_obj_t *self) {
    fed = mp_hal_ticks_ms();
}

void watchdog_poll(void) {
    if (timeout != 0 && mp_hal_ticks_ms() - fed > timeout) {
        rtc_stop(EXIT_WATCHDOG, CAUSE_WATCHDOG, 0);
    }
}

// Part of MicroPython's modmachine.c: reset, sleep, identity, and machine.RTC as esp32 has it.
#include "py/mphal.h"
#include "shared/timeutils/timeutils.h"
#include "board.h"

static void mp_machine_idle(void) {
    mp_event_wait_ms(1);
}

// --- reset and sleep: QEMU ends, and its exit status tells the harness what to do --------

NORETURN static void mp_machine_reset(void) {
    rtc_stop(EXIT_RESET, CAUSE_HARD, 0);
}

static mp_int_t mp_machine_reset_cause(void) {
    return rtc.cause;
}

static void mp_machine_lightsleep(size_t n_args, const mp_obj_t *args) {
    if (n_args > 0) {
        mp_hal_delay_ms(mp_obj_get_int(args[0]));
    }
}

// deepsleep(): until somebody starts the machine again; the clock then goes on from here.
NORETURN static void mp_machine_deepsleep(size_t n_args, const mp_obj_t *args) {
    rtc_stop(EXIT_DEEPSLEEP, CAUSE_DEEPSLEEP, n_args > 0 ? mp_obj_get_int(args[0]) : 0);
}

enum { WAKE_NONE = 0, WAKE_TIMER = 4 }; // as on esp32

static mp_obj_t machine_wake_reason(void) {
    bool timer = rtc.cause == CAUSE_DEEPSLEEP && rtc.sleep_ms != 0;
    return MP_OBJ_NEW_SMALL_INT(timer ? WAKE_TIMER : WAKE_NONE);
}
static MP_DEFINE_CONST_FUN_OBJ_0(machine_wake_reason_obj, machine_wake_reason);

// --- identity ---------------------------------------------------------------------------

static mp_obj_t mp_machine_unique_id(void) {
    return mp_obj_new_bytes(unique_id(), UNIQUE_ID_SIZE);
}

static mp_obj_t mp_machine_get_freq(void) {
    return MP_OBJ_NEW_SMALL_INT(0); // an emulator has none
}

static void mp_machine_set_freq(size_t n_args, const mp_obj_t *args) {
}

// --- machine.RTC ------------------------------------------------------------------------

static const mp_obj_base_t machine_rtc;

static mp_obj_t rtc_make_new(const mp_obj_type_t *type, size_t n_args, size_t n_kw,
    const mp_obj_t *args) {
    mp_arg_check_num(n_args, n_kw, 0, 1, false);
    return MP_OBJ_FROM_PTR(&machine_rtc);
}

// datetime(): (year, month, day, weekday, hour, minute, second, us); datetime(tuple) sets it.
static mp_obj_t rtc_datetime(size_t n_args, const mp_obj_t *args) {
    timeutils_struct_time_t tm;
    if (n_args == 1) {
        uint64_t us = clock_us();
        timeutils_seconds_since_epoch_to_struct_time(us / 1000000, &tm);
        const uint32_t fields[8] = {
            tm.tm_year, tm.tm_mon, tm.tm_mday, tm.tm_wday, tm.tm_hour, tm.tm_min, tm.tm_sec,
            us % 1000000,
        };
        mp_obj_t tuple[8];
        for (int i = 0; i < 8; ++i) {
            tuple[i] = mp_obj_new_int_from_uint(fields[i]);
        }
        return mp_obj_new_tuple(8, tuple);
    }
    mp_obj_t *items;
    mp_obj_get_array_fixed_n(args[1], 8, &items);
    uint64_t seconds = timeutils_seconds_since_epoch(
        mp_obj_get_int(items[0]), mp_obj_get_int(items[1]), mp_obj_get_int(items[2]),
        mp_obj_get_int(items[4]), mp_obj_get_int(items[5]), mp_obj_get_int(items[6]));
    clock_set_us(seconds * 1000000 + mp_obj_get_int(items[7]));
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(rtc_datetime_obj, 1, 2, rtc_datetime);

// memory(): the bytes; memory(bytes) keeps them over reset and deep sleep, not over a cut.
static mp_obj_t rtc_memory(size_t n_args, const mp_obj_t *args) {
    if (n_args == 1) {
        return mp_obj_new_bytes(rtc.memory, rtc.length);
    }
    mp_buffer_info_t buffer;
    mp_get_buffer_raise(args[1], &buffer, MP_BUFFER_READ);
    if (buffer.len > RTC_MEMORY_MAX) {
        mp_raise_ValueError(MP_ERROR_TEXT("buffer too long"));
    }
    memcpy(rtc.memory, buffer.buf, buffer.len);
    rtc.length = buffer.len;
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(rtc_memory_obj, 1, 2, rtc_memory);

static const mp_rom_map_elem_t rtc_locals_table[] = {
    { MP_ROM_QSTR(MP_QSTR_datetime), MP_ROM_PTR(&rtc_datetime_obj) },
    { MP_ROM_QSTR(MP_QSTR_memory), MP_ROM_PTR(&rtc_memory_obj) },
};
static MP_DEFINE_CONST_DICT(rtc_locals, rtc_locals_table);
MP_DEFINE_CONST_OBJ_TYPE(
    machine_rtc_type, MP_QSTR_RTC, MP_TYPE_FLAG_NONE,
    make_new, rtc_make_new, locals_dict, &rtc_locals);
static const mp_obj_base_t machine_rtc = { &machine_rtc_type };

#define MACHINE_EXTRA_GLOBALS \
    { MP_ROM_QSTR(MP_QSTR_RTC), MP_ROM_PTR(&machine_rtc_type) }, \
    { MP_ROM_QSTR(MP_QSTR_wake_reason), MP_ROM_PTR(&machine_wake_reason_obj) }, \
    { MP_ROM_QSTR(MP_QSTR_PWRON_RESET), MP_ROM_INT(CAUSE_POWER_ON) }, \
    { MP_ROM_QSTR(MP_QSTR_HARD_RESET), MP_ROM_INT(CAUSE_HARD) }, \
    { MP_ROM_QSTR(MP_QSTR_WDT_RESET), MP_ROM_INT(CAUSE_WATCHDOG) }, \
    { MP_ROM_QSTR(MP_QSTR_DEEPSLEEP_RESET), MP_ROM_INT(CAUSE_DEEPSLEEP) }, \
    { MP_ROM_QSTR(MP_QSTR_SOFT_RESET), MP_ROM_INT(CAUSE_SOFT) }, \
    { MP_ROM_QSTR(MP_QSTR_TIMER_WAKE), MP_ROM_INT(WAKE_TIMER) },

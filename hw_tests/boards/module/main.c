// Power-on to REPL, in the order of the esp32 port: ROMFS, _boot.py (the file system),
// boot.py, main.py, REPL. The linker puts this in the place of the port's main().
#include "py/gc.h"
#include "py/mphal.h"
#include "py/runtime.h"
#include "py/stackctrl.h"
#include "shared/readline/readline.h"
#include "shared/runtime/pyexec.h"
#include "board.h"
#include "net.h"

// What MicroPython gets of an ESP32's RAM beside Wi-Fi, and not a byte more. heap=KIB asks
// for another size.
enum { HEAP = 110 * 1024, HEAP_MAX = 1024 * 1024 };
static uint8_t heap[HEAP_MAX] __attribute__((aligned(16)));

// As the esp32 port's task: 16 KiB, of which 1 KiB is left for the C code that has no check.
enum { STACK = 15 * 1024 };

static uint32_t heap_size(void) {
    uint32_t size = option_number("heap", HEAP / 1024) * 1024;
    return size >= 8 * 1024 && size <= HEAP_MAX ? size : HEAP;
}

static void run_scripts(void) {
    pyexec_frozen_module("_boot.py", false);
    int ended = pyexec_file_if_exists("boot.py");
    // mpremote resets into the raw REPL and wants the board for itself; so does main=0.
    if (!(ended & PYEXEC_FORCED_EXIT) && ended != 0
        && pyexec_mode_kind == PYEXEC_MODE_FRIENDLY_REPL && option_number("main", 1)) {
        ended = pyexec_file_if_exists("main.py");
    }
    if (ended & PYEXEC_FORCED_EXIT) {
        return;
    }
    while ((pyexec_mode_kind == PYEXEC_MODE_RAW_REPL ? pyexec_raw_repl()
                                                     : pyexec_friendly_repl()) == 0) {
    }
}

int __wrap_main(int argc, char **argv) {
    mp_stack_ctrl_init();
    mp_stack_set_limit(STACK);
    serial_open(0); // the port has opened the console too, without FIFO and interrupt
    rtc_init();
    clock_init();
    flash_init();
    net_init();
    for (;;) {
        gc_init(heap, heap + heap_size());
        mp_init(); // mounts ROMFS too, if there is one
        mp_obj_list_append(mp_sys_path, mp_obj_new_str_from_cstr("/lib"));
        readline_init0();
        net_restart();
        run_scripts();
        mp_printf(&mp_plat_print, "MPY: soft reboot\n");
        gc_sweep_all();
        mp_deinit();
        rtc.cause = CAUSE_SOFT;
    }
}

// The port's way out after an exception that nothing caught, in C or of the processor.
void __wrap_exit(int status) {
    host_exit(EXIT_FAILED);
}

// MicroPython's options for both boards: the port's own, and then what a stock ESP32 has.
// The compiler is told to read this file in the place of the port's mpconfigport.h.
#pragma once
#include <mpconfigport.h>

#define MICROPY_MODULE_BUILTIN_INIT (1)

// Time. Boards of the esp32 port count from 2000, those of the rp2 port from 1970.
#undef MICROPY_PY_TIME
#define MICROPY_PY_TIME (1)
#define MICROPY_PY_TIME_TIME_TIME_NS (1)
#define MICROPY_PY_TIME_GMTIME_LOCALTIME_MKTIME (1)
#define MICROPY_PY_TIME_INCLUDEFILE "include_time.h"
#if BOARD_M3
#define MICROPY_EPOCH_IS_1970 (1)
#endif

// asyncio, and what it waits with.
#undef MICROPY_PY_SELECT
#define MICROPY_PY_SELECT (1)
#undef MICROPY_PY_ASYNCIO
#define MICROPY_PY_ASYNCIO (1)
#define MICROPY_ENABLE_SCHEDULER (1)

// hashlib, os, random.
#define MICROPY_PY_HASHLIB (1)
#define MICROPY_PY_HASHLIB_SHA256 (1)
#define MICROPY_PY_OS (1)
#define MICROPY_PY_OS_STATVFS (1)
#define MICROPY_PY_OS_SYNC (1)
#define MICROPY_PY_OS_UNAME (1)
#define MICROPY_PY_OS_URANDOM (1)
#define MICROPY_PY_OS_INCLUDEFILE "include_os.h"
#define MICROPY_PY_RANDOM_SEED_INIT_FUNC (entropy_word())
unsigned long entropy_word(void);

// ROMFS: read-only files at an address, written by `mpremote romfs deploy`.
#undef MICROPY_VFS_ROM_IOCTL
#define MICROPY_VFS_ROM_IOCTL (1)

// machine: reset, deep sleep, RTC, UART, watchdog.
#undef MICROPY_PY_MACHINE_INCLUDEFILE
#define MICROPY_PY_MACHINE_INCLUDEFILE "include_machine.h"
#define MICROPY_PY_MACHINE_BARE_METAL_FUNCS (1)
#define MICROPY_PY_MACHINE_EXTRA_GLOBALS MACHINE_EXTRA_GLOBALS
#define MICROPY_PY_MACHINE_UART (1)
#define MICROPY_PY_MACHINE_UART_INCLUDEFILE "include_uart.h"
#define MICROPY_PY_MACHINE_UART_CLASS_CONSTANTS
#define MICROPY_PY_MACHINE_WDT (1)
#define MICROPY_PY_MACHINE_WDT_INCLUDEFILE "include_wdt.h"

// Sockets, where lwIP is built in (RV32).
#if MICROPY_PY_LWIP
#define MICROPY_PY_NETWORK (1)
#define MICROPY_PY_NETWORK_HOSTNAME_DEFAULT "qemu"
extern const struct _mp_obj_type_t network_lan_type;
#define MICROPY_PORT_NETWORK_INTERFACES \
    { MP_ROM_QSTR(MP_QSTR_LAN), MP_ROM_PTR(&network_lan_type) },
#endif

// The console: Ctrl-C, an editor's line, and sys.stdin.buffer for `mpremote mount`.
#define MICROPY_KBD_EXCEPTION (1)
#define MICROPY_HELPER_REPL (1)
#define MICROPY_REPL_STDIN_BUFFER_MAX (1024) // what mpremote may send without waiting
#undef MICROPY_PY_SYS_STDIO_BUFFER
#define MICROPY_PY_SYS_STDIO_BUFFER (1)

// No interrupts are taken here: everything that an interrupt would do is polled while
// MicroPython runs (every so many bytecodes) and while it waits, and waiting is done
// asleep, else QEMU would keep a core of the host busy.
void background(void);
void cpu_idle(unsigned long ms);
#define BACKGROUND_EVERY (200)
#define MICROPY_VM_HOOK_INIT static unsigned vm_hook_left = BACKGROUND_EVERY;
#define MICROPY_VM_HOOK_POLL \
    if (--vm_hook_left == 0) { \
        vm_hook_left = BACKGROUND_EVERY; \
        background(); \
    }
#define MICROPY_VM_HOOK_LOOP MICROPY_VM_HOOK_POLL
#define MICROPY_VM_HOOK_RETURN MICROPY_VM_HOOK_POLL
#define MICROPY_INTERNAL_EVENT_HOOK background()
#define MICROPY_INTERNAL_WFE(timeout_ms) cpu_idle(timeout_ms)

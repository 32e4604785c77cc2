// What the files of the board know of each other. One machine has one of each of these, so
// they are plain functions; cpu_rv32.c and cpu_m3.c each give the first group.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// --- the processor and its serial lines (cpu_*.c) ---------------------------------------

// A call to the debugger that QEMU plays: op and args as ARM's semihosting defines them.
uint32_t semihost_trap(uint32_t op, const void *args);

uint64_t cpu_ticks_us(void);       // microseconds since power-on

// Serial line 0 is the console, the others are machine.UART(1), (2) ...
bool serial_exists(int line);
void serial_open(int line);
int serial_read(int line);         // a byte, or -1
bool serial_can_write(int line);
void serial_write(int line, uint8_t byte);

// --- the host behind QEMU (semihost.c) ---------------------------------------------------

// How this machine ends: QEMU's exit status. Anything else is QEMU's own failure.
enum {
    EXIT_FAILED = 70,    // the firmware gave up: its last words are on the console
    EXIT_RESET = 75,     // machine.reset(): start it again, RTC memory is kept
    EXIT_DEEPSLEEP = 76, // machine.deepsleep(): start it again when it should wake
    EXIT_CUT = 77,       // the fault knob cut the power
    EXIT_WATCHDOG = 78,  // machine.WDT was not fed: start it again
};
void host_exit(int status) __attribute__((noreturn));
enum { HOST_READ, HOST_UPDATE, HOST_APPEND };
int host_open(const char *path, int mode);   // a handle, or -1
bool host_append(int handle, const void *data, uint32_t length);
bool host_read(int handle, uint32_t at, void *data, uint32_t length);
bool host_write(int handle, uint32_t at, const void *data, uint32_t length);
uint32_t host_time(void);                    // seconds since 1970
bool host_command_line(char *text, uint32_t size);

// --- options: NAME=VALUE words of QEMU's command line (options.c) -----------------------

const char *option(const char *name);        // NULL: not given
int32_t option_number(const char *name, int32_t otherwise);

// --- flash (flash.c over flash_cfi.c or flash_file.c) -----------------------------------

// The chip. The last part is not flash on a real board: RTC memory and fuses.
enum {
    FLASH_PAGE = 256,
    FLASH_BLOCK = 4096,
    FLASH_FILES = 0x000000, FLASH_FILES_SIZE = 0x200000, // littlefs
    FLASH_ROMFS = 0x200000, FLASH_ROMFS_SIZE = 0x100000,
    FLASH_KEPT = 0x300000, FLASH_KEPT_SIZE = 0x002000,   // rtc.c
    FLASH_SIZE = 0x400000,
};
bool chip_open(void);              // false: the machine has no flash
const uint8_t *chip_map(void);     // all of it, for reading
void chip_write(uint32_t at, const uint8_t *data, uint32_t length); // both by 4; no rules

void flash_init(void);
void flash_cut_after(int32_t operations, int torn);

// --- what survives a reset and deep sleep (rtc.c) ---------------------------------------

enum { CAUSE_POWER_ON = 1, CAUSE_HARD, CAUSE_WATCHDOG, CAUSE_DEEPSLEEP, CAUSE_SOFT };
enum { RTC_MEMORY_MAX = 2048, UNIQUE_ID_SIZE = 8 };
typedef struct {
    uint32_t magic;
    uint32_t cause;
    uint32_t sleep_ms;
    uint32_t length;
    uint64_t clock_us;             // time since the epoch when the machine stopped
    uint8_t memory[RTC_MEMORY_MAX];
} rtc_t;
extern rtc_t rtc;
void rtc_init(void);
void rtc_stop(int status, uint32_t cause, uint32_t sleep_ms) __attribute__((noreturn));
const uint8_t *unique_id(void);

// --- clock, console, entropy -------------------------------------------------------------

uint64_t clock_us(void);           // since the epoch of time.time()
void clock_set_us(uint64_t us);
void clock_init(void);
void console_poll(void);
void watchdog_poll(void);
void entropy_fill(uint8_t *data, size_t length);

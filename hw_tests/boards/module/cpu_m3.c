// QEMU's "mps2-an385": timer, serial lines, the trap to the host, and sleep.
#include "py/runtime.h"
#include "board.h"
#if BOARD_M3

#define REG32(address) (*(volatile uint32_t *)(uintptr_t)(address))

__attribute__((noinline)) uint32_t semihost_trap(uint32_t op, const void *args) {
    register uint32_t r0 __asm__ ("r0") = op;
    register const void *r1 __asm__ ("r1") = args;
    __asm__ volatile ("bkpt 0xab" : "+r" (r0) : "r" (r1) : "memory");
    return r0;
}

// --- time: a counter of the FPGA's, prescaled from 25 MHz to 1 MHz ----------------------

#define FPGAIO_COUNTER 0x40028018
#define FPGAIO_PRESCALE 0x4002801c

uint64_t cpu_ticks_us(void) {
    static bool running;
    static uint32_t last, wraps;
    if (!running) {
        running = true;
        REG32(FPGAIO_PRESCALE) = 24;
        REG32(FPGAIO_COUNTER) = 0;
    }
    uint32_t now = REG32(FPGAIO_COUNTER);
    if (now < last) {
        ++wraps; // seen, because somebody asks more often than every 71 minutes
    }
    last = now;
    return (uint64_t)wraps << 32 | now;
}

// --- serial lines: five of ARM's, line n is QEMU's n-th -serial -------------------------

enum { LINES = 5 };
static const uint32_t line_address[LINES] = {
    0x40004000, 0x40005000, 0x40006000, 0x40007000, 0x40009000,
};
enum { DATA = 0x00, STATE = 0x04, CTRL = 0x08, INTCLEAR = 0x0c, BAUDDIV = 0x10 };
enum { STATE_TX_FULL = 1, STATE_RX_FULL = 2 };
enum { CTRL_TX = 1, CTRL_RX = 2, CTRL_RX_IRQ = 8, INT_RX = 2 };
static const uint32_t line_irqs = 1u << 0 | 1u << 2 | 1u << 4 | 1u << 18 | 1u << 20;

bool serial_exists(int line) {
    return line >= 0 && line < LINES;
}

void serial_open(int line) {
    REG32(line_address[line] + BAUDDIV) = 16; // below that QEMU's sends nothing
    REG32(line_address[line] + CTRL) = CTRL_TX | CTRL_RX | CTRL_RX_IRQ;
}

int serial_read(int line) {
    uint32_t address = line_address[line];
    return REG32(address + STATE) & STATE_RX_FULL ? (int)(REG32(address + DATA) & 0xff) : -1;
}

bool serial_can_write(int line) {
    return !(REG32(line_address[line] + STATE) & STATE_TX_FULL);
}

void serial_write(int line, uint8_t byte) {
    REG32(line_address[line] + DATA) = byte;
}

// --- faults -----------------------------------------------------------------------------

#define SCB_CFSR 0xe000ed28 // which fault it was

// What the processor has put on the stack: r0-r3, r12, lr, pc, psr.
__attribute__((used)) static void fault(const uint32_t *stacked) {
    mp_printf(&mp_plat_print, "fault: pc=%08x lr=%08x cfsr=%08x\n",
        (unsigned)stacked[6], (unsigned)stacked[5], (unsigned)REG32(SCB_CFSR));
    host_exit(EXIT_FAILED);
}

__attribute__((naked)) void __wrap_HardFault_Handler(void) {
    __asm__ volatile ("mov r0, sp\n b fault");
}

// --- sleep ------------------------------------------------------------------------------

#define SYSTICK_CTRL 0xe000e010
#define SYSTICK_LOAD 0xe000e014
#define SYSTICK_VALUE 0xe000e018
#define NVIC_ENABLE 0xe000e100
#define NVIC_DISABLE 0xe000e180
#define NVIC_UNPEND 0xe000e280
#define SCB_ICSR 0xe000ed04
enum { LONGEST_SLEEP_MS = 10 }; // the watchdog wants to be looked at

// Until the timer or a byte comes. Either ends wfi, and PRIMASK keeps the handlers, which do
// not exist, from running; therefore the requests are taken back before it is lifted.
void cpu_idle(unsigned long ms) {
    ms = ms == 0 ? 1 : ms < LONGEST_SLEEP_MS ? ms : LONGEST_SLEEP_MS;
    __asm__ volatile ("cpsid i");
    REG32(SYSTICK_LOAD) = 25000 * ms; // 25 MHz; 24 bits
    REG32(SYSTICK_VALUE) = 0;
    REG32(SYSTICK_CTRL) = 7;          // on, with interrupt, at the processor's clock
    REG32(NVIC_ENABLE) = line_irqs;
    __asm__ volatile ("wfi" : : : "memory");
    REG32(NVIC_DISABLE) = line_irqs;
    REG32(SYSTICK_CTRL) = 0;
    for (int line = 0; line < LINES; ++line) {
        REG32(line_address[line] + INTCLEAR) = INT_RX;
    }
    REG32(NVIC_UNPEND) = line_irqs;
    REG32(SCB_ICSR) = 1u << 25;       // SysTick is no longer pending
    __asm__ volatile ("cpsie i");
}

#endif

// QEMU's "virt", 32-bit: timer, serial lines, the trap to the host, and sleep.
#include "board.h"
#if BOARD_RV32

#define REG8(address) (*(volatile uint8_t *)(uintptr_t)(address))
#define REG32(address) (*(volatile uint32_t *)(uintptr_t)(address))

// --- the trap: this exact sequence, uncompressed, is what QEMU looks for ----------------

__attribute__((noinline)) uint32_t semihost_trap(uint32_t op, const void *args) {
    register uint32_t a0 __asm__ ("a0") = op;
    register const void *a1 __asm__ ("a1") = args;
    __asm__ volatile (
        ".option push\n"
        ".option norvc\n"
        ".balign 16\n" // else it might lie across two pages
        "slli zero, zero, 0x1f\n"
        "ebreak\n"
        "srai zero, zero, 7\n"
        ".option pop\n"
        : "+r" (a0) : "r" (a1) : "memory");
    return a0;
}

// --- time: the CLINT counts at 10 MHz ---------------------------------------------------

#define CLINT_MTIMECMP 0x02004000
#define CLINT_MTIME 0x0200bff8
#define TICKS_PER_US 10

static uint64_t mtime(void) {
    for (;;) {
        uint32_t high = REG32(CLINT_MTIME + 4);
        uint32_t low = REG32(CLINT_MTIME);
        if (high == REG32(CLINT_MTIME + 4)) {
            return (uint64_t)high << 32 | low;
        }
    }
}

uint64_t cpu_ticks_us(void) {
    return mtime() / TICKS_PER_US;
}

// --- serial lines: a 16550 on board, and one for every `-device pci-serial` -------------

#define UART0 0x10000000
#define PCI_CONFIG 0x30000000 // ECAM: 32 KiB for each device of bus 0
#define PCI_PORTS 0x03000000  // where its I/O ports appear
#define PCI_SERIAL 0x00021b36 // Red Hat's id of it
enum { RBR = 0, IER = 1, FCR = 2, LCR = 3, MCR = 4, LSR = 5 };
enum { LSR_DATA = 0x01, LSR_EMPTY = 0x20 };
enum { LINES = 5 };

static uint32_t line_address[LINES] = { UART0 };

// There is no firmware below us that would have given the devices their addresses.
static void pci_scan(void) {
    uint32_t port = 0x1000;
    int line = 1;
    for (int device = 0; device < 32 && line < LINES; ++device) {
        uint32_t config = PCI_CONFIG + (device << 15);
        if (REG32(config) == PCI_SERIAL) {
            REG32(config + 0x10) = port;   // BAR 0
            REG32(config + 0x04) |= 1;     // command: answer on I/O ports
            line_address[line++] = PCI_PORTS + port;
            port += 0x100;
        }
    }
}

bool serial_exists(int line) {
    static bool scanned;
    if (!scanned) {
        scanned = true;
        pci_scan();
    }
    return line >= 0 && line < LINES && line_address[line] != 0;
}

void serial_open(int line) {
    uint32_t address = line_address[line];
    // An interrupt at 14 bytes, or when fewer have waited for the time of four: QEMU fills
    // the FIFO up to there in one go. The speed means nothing else; this is the fastest.
    REG8(address + LCR) = 0x83;
    REG8(address + RBR) = 1; // divisor, low and high
    REG8(address + IER) = 0;
    REG8(address + LCR) = 0x03;
    REG8(address + FCR) = 0xc7; // FIFOs on, emptied
    REG8(address + MCR) = 0x03; // DTR, RTS
    REG8(address + IER) = 0x01; // bytes that came
}

int serial_read(int line) {
    uint32_t address = line_address[line];
    return REG8(address + LSR) & LSR_DATA ? REG8(address + RBR) : -1;
}

bool serial_can_write(int line) {
    return REG8(line_address[line] + LSR) & LSR_EMPTY;
}

void serial_write(int line, uint8_t byte) {
    REG8(line_address[line] + RBR) = byte;
}

// --- sleep ------------------------------------------------------------------------------

// The interrupt controller; context 0 is the core's machine mode.
#define PLIC_PRIORITY 0x0c000000
#define PLIC_ENABLE 0x0c002000
#define PLIC_CLAIM 0x0c200004
enum { VIRTIO_IRQ = 1, UART0_IRQ = 10, PCI_IRQ = 32 }; // 8, 1 and 4 of them
enum { LONGEST_SLEEP_MS = 10 };                        // the watchdog wants to be looked at

static void irq_init(void) {
    static const uint8_t irqs[][2] = { { VIRTIO_IRQ, 8 }, { UART0_IRQ, 1 }, { PCI_IRQ, 4 } };
    for (uint32_t i = 0; i < sizeof(irqs) / sizeof(irqs[0]); ++i) {
        for (uint32_t irq = irqs[i][0]; irq < irqs[i][0] + irqs[i][1]; ++irq) {
            REG32(PLIC_PRIORITY + 4 * irq) = 1;
            REG32(PLIC_ENABLE + irq / 32 * 4) |= 1u << irq % 32;
        }
    }
    const uint32_t timer_and_external = 1 << 7 | 1 << 11;
    __asm__ volatile ("csrci mstatus, 8\n csrs mie, %0" : : "r" (timer_and_external));
}

// Until the timer or a device wants something. Either ends wfi though no interrupt is ever
// taken; what came is found by polling, so the claim only takes the request back.
void cpu_idle(unsigned long ms) {
    static bool ready;
    if (!ready) {
        ready = true;
        irq_init();
    }
    ms = ms < LONGEST_SLEEP_MS ? ms : LONGEST_SLEEP_MS;
    uint64_t until = mtime() + 1000 * TICKS_PER_US * ms;
    REG32(CLINT_MTIMECMP + 4) = 0xffffffff; // no match half-way through
    REG32(CLINT_MTIMECMP) = (uint32_t)until;
    REG32(CLINT_MTIMECMP + 4) = (uint32_t)(until >> 32);
    __asm__ volatile ("wfi" : : : "memory");
    for (uint32_t irq; (irq = REG32(PLIC_CLAIM)) != 0;) {
        REG32(PLIC_CLAIM) = irq;
    }
}

#endif

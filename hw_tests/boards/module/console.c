// The console's input. The port waits in mp_hal_stdin_rx_chr for the next byte and looks at
// the line nowhere else, so a running program could not be interrupted: here every look
// takes all there is, and Ctrl-C acts at once.
#include "py/mphal.h"
#include "py/runtime.h"
#include "py/stream.h"
#include "shared/runtime/interrupt_char.h"
#include "board.h"
#include "net.h"

enum { CONSOLE = 0, SIZE = 1024 };
static uint8_t ring[SIZE];
static uint32_t head, tail; // both count up; head - tail bytes are waiting

void console_poll(void) {
    while (head - tail < SIZE) {
        int byte = serial_read(CONSOLE);
        if (byte < 0) {
            break;
        }
        if (byte == mp_interrupt_char) {
            mp_sched_keyboard_interrupt();
        } else {
            ring[head++ % SIZE] = byte;
        }
    }
}

void background(void) {
    console_poll();
    net_poll();
    watchdog_poll();
}

int __wrap_mp_hal_stdin_rx_chr(void) {
    while (console_poll(), head == tail) {
        mp_event_wait_indefinite();
    }
    return ring[tail++ % SIZE];
}

uintptr_t __wrap_mp_hal_stdio_poll(uintptr_t flags) {
    console_poll();
    uintptr_t ready = flags & MP_STREAM_POLL_WR;
    return head != tail ? ready | (flags & MP_STREAM_POLL_RD) : ready;
}

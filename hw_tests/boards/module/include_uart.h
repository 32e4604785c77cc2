// Part of MicroPython's machine_uart.c: machine.UART(n) with esp32's arguments, for n >= 1.
// Baud rate, parity and pins are accepted and mean nothing: QEMU's lines have no speed and
// hold the sender back when we do not read, so an overrun is never seen here.
#include "py/mperrno.h"
#include "py/mphal.h"
#include "board.h"

enum { WRITE_TIMEOUT_MS = 5000, RXBUF_MAX = 32768 };

struct _machine_uart_obj_t {
    mp_obj_base_t base;
    uint8_t line;
    uint16_t timeout_ms;      // how long read waits for the first byte
    uint16_t timeout_char_ms; // and for each further one
    uint32_t baudrate;
    uint32_t size;
    uint32_t head, tail;      // both count up; head - tail bytes are waiting
    uint8_t *ring;
};

// What an interrupt would do: from the device into the buffer, as far as there is room.
static mp_int_t mp_machine_uart_any(machine_uart_obj_t *self) {
    while (self->head - self->tail < self->size) {
        int byte = serial_read(self->line);
        if (byte < 0) {
            break;
        }
        self->ring[self->head++ % self->size] = byte;
    }
    return self->head - self->tail;
}

static bool wait_for_byte(machine_uart_obj_t *self, mp_uint_t ms) {
    mp_uint_t start = mp_hal_ticks_ms();
    while (mp_machine_uart_any(self) == 0) {
        mp_uint_t waited = mp_hal_ticks_ms() - start;
        if (waited >= ms) {
            return false;
        }
        mp_event_wait_ms(ms - waited);
    }
    return true;
}

static bool mp_machine_uart_txdone(machine_uart_obj_t *self) {
    return serial_can_write(self->line);
}

static mp_uint_t mp_machine_uart_read(mp_obj_t self_in, void *data, mp_uint_t size, int *errcode) {
    machine_uart_obj_t *self = MP_OBJ_TO_PTR(self_in);
    uint8_t *bytes = data;
    mp_uint_t done = 0;
    while (done < size
           && wait_for_byte(self, done == 0 ? self->timeout_ms : self->timeout_char_ms)) {
        bytes[done++] = self->ring[self->tail++ % self->size];
    }
    if (done == 0 && size > 0) {
        *errcode = MP_EAGAIN;
        return MP_STREAM_ERROR;
    }
    return done;
}

static mp_uint_t mp_machine_uart_write(mp_obj_t self_in, const void *data, mp_uint_t size,
    int *errcode) {
    machine_uart_obj_t *self = MP_OBJ_TO_PTR(self_in);
    const uint8_t *bytes = data;
    mp_uint_t start = mp_hal_ticks_ms();
    for (mp_uint_t done = 0; done < size; ++done) {
        while (!serial_can_write(self->line)) {
            mp_machine_uart_any(self); // a peer that waits for us to read would never read
            mp_event_handle_nowait();
            if (mp_hal_ticks_ms() - start > WRITE_TIMEOUT_MS) {
                *errcode = MP_ETIMEDOUT;
                return done > 0 ? done : MP_STREAM_ERROR;
            }
        }
        serial_write(self->line, bytes[done]);
    }
    mp_machine_uart_any(self);
    return size;
}

static mp_uint_t mp_machine_uart_ioctl(mp_obj_t self_in, mp_uint_t request, uintptr_t arg,
    int *errcode) {
    machine_uart_obj_t *self = MP_OBJ_TO_PTR(self_in);
    switch (request) {
        case MP_STREAM_POLL: {
            mp_uint_t ready = 0;
            if ((arg & MP_STREAM_POLL_RD) && mp_machine_uart_any(self) > 0) {
                ready |= MP_STREAM_POLL_RD;
            }
            if ((arg & MP_STREAM_POLL_WR) && serial_can_write(self->line)) {
                ready |= MP_STREAM_POLL_WR;
            }
            return ready;
        }
        case MP_STREAM_FLUSH:
            return 0; // nothing of ours is held back
        default:
            *errcode = MP_EINVAL;
            return MP_STREAM_ERROR;
    }
}

static void mp_machine_uart_init_helper(machine_uart_obj_t *self, size_t n_args,
    const mp_obj_t *pos_args, mp_map_t *kw_args) {
    enum { BAUDRATE, BITS, PARITY, STOP, TX, RX, TIMEOUT, TIMEOUT_CHAR, RXBUF, TXBUF };
    static const mp_arg_t allowed[] = {
        { MP_QSTR_baudrate, MP_ARG_INT, {.u_int = 115200} },
        { MP_QSTR_bits, MP_ARG_INT, {.u_int = 8} },
        { MP_QSTR_parity, MP_ARG_OBJ, {.u_obj = MP_OBJ_NULL} },
        { MP_QSTR_stop, MP_ARG_INT, {.u_int = 1} },
        { MP_QSTR_tx, MP_ARG_KW_ONLY | MP_ARG_OBJ, {.u_obj = MP_OBJ_NULL} },
        { MP_QSTR_rx, MP_ARG_KW_ONLY | MP_ARG_OBJ, {.u_obj = MP_OBJ_NULL} },
        { MP_QSTR_timeout, MP_ARG_KW_ONLY | MP_ARG_INT, {.u_int = 0} },
        { MP_QSTR_timeout_char, MP_ARG_KW_ONLY | MP_ARG_INT, {.u_int = 2} },
        { MP_QSTR_rxbuf, MP_ARG_KW_ONLY | MP_ARG_INT, {.u_int = 256} },
        { MP_QSTR_txbuf, MP_ARG_KW_ONLY | MP_ARG_INT, {.u_int = 256} },
    };
    mp_arg_val_t args[MP_ARRAY_SIZE(allowed)];
    mp_arg_parse_all(n_args, pos_args, kw_args, MP_ARRAY_SIZE(allowed), allowed, args);
    if (args[RXBUF].u_int < 1 || args[RXBUF].u_int > RXBUF_MAX) {
        mp_raise_ValueError(MP_ERROR_TEXT("rxbuf"));
    }
    self->baudrate = args[BAUDRATE].u_int;
    self->timeout_ms = args[TIMEOUT].u_int;
    self->timeout_char_ms = args[TIMEOUT_CHAR].u_int;
    self->size = args[RXBUF].u_int;
    self->head = self->tail = 0;
    self->ring = m_new(uint8_t, self->size);
    serial_open(self->line);
}

static mp_obj_t mp_machine_uart_make_new(const mp_obj_type_t *type, size_t n_args, size_t n_kw,
    const mp_obj_t *args) {
    mp_arg_check_num(n_args, n_kw, 1, MP_OBJ_FUN_ARGS_MAX, true);
    int line = mp_obj_get_int(args[0]);
    if (line < 1 || !serial_exists(line)) {
        mp_raise_msg_varg(&mp_type_ValueError, MP_ERROR_TEXT("UART(%d) doesn't exist"), line);
    }
    machine_uart_obj_t *self = mp_obj_malloc(machine_uart_obj_t, type);
    self->line = line;
    mp_map_t kw_args;
    mp_map_init_fixed_table(&kw_args, n_kw, args + n_args);
    mp_machine_uart_init_helper(self, n_args - 1, args + 1, &kw_args);
    return MP_OBJ_FROM_PTR(self);
}

static void mp_machine_uart_deinit(machine_uart_obj_t *self) {
}

static void mp_machine_uart_print(const mp_print_t *print, mp_obj_t self_in,
    mp_print_kind_t kind) {
    machine_uart_obj_t *self = MP_OBJ_TO_PTR(self_in);
    mp_printf(print, "UART(%u, baudrate=%u, timeout=%u, timeout_char=%u, rxbuf=%u)", self->line,
        (unsigned)self->baudrate, self->timeout_ms, self->timeout_char_ms, (unsigned)self->size);
}

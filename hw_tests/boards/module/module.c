// The module `qemu`: what _boot.py needs, and what tests turn and read. Nothing of the agent
// may import it but mpy_port/boards/qemu.py.
#include "py/mperrno.h"
#include "py/objstr.h"
#include "py/runtime.h"
#include "board.h"
#include "module.h"

// cut(k, torn=1): no power any more at the k-th flash operation from now (0 is the next one);
// torn 0 before, 1 inside, 2 after it. cut(-1): never.
static mp_obj_t qemu_cut(size_t n_args, const mp_obj_t *args) {
    flash_cut_after(mp_obj_get_int(args[0]), n_args > 1 ? mp_obj_get_int(args[1]) : 1);
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(qemu_cut_obj, 1, 2, qemu_cut);

// stats(): (programs, bytes programmed, erases, programs refused) since power-on.
static mp_obj_t qemu_stats(void) {
    mp_obj_t counts[4] = {
        mp_obj_new_int_from_uint(flash_counts.programs),
        mp_obj_new_int_from_uint(flash_counts.bytes),
        mp_obj_new_int_from_uint(flash_counts.erases),
        mp_obj_new_int_from_uint(flash_counts.refused),
    };
    return mp_obj_new_tuple(4, counts);
}
static MP_DEFINE_CONST_FUN_OBJ_0(qemu_stats_obj, qemu_stats);

// flash(): the block device for littlefs, or None on a machine without flash.
static mp_obj_t qemu_flash(void) {
    return flash_files();
}
static MP_DEFINE_CONST_FUN_OBJ_0(qemu_flash_obj, qemu_flash);

// blank(): whether the two blocks that littlefs starts from are erased.
static mp_obj_t qemu_blank(void) {
    return mp_obj_new_bool(flash_blank());
}
static MP_DEFINE_CONST_FUN_OBJ_0(qemu_blank_obj, qemu_blank);

// poke(at, data): write into the chip at byte `at`, whatever the rules: bit rot.
static mp_obj_t qemu_poke(mp_obj_t at_in, mp_obj_t data) {
    mp_buffer_info_t buffer;
    mp_get_buffer_raise(data, &buffer, MP_BUFFER_READ);
    uint32_t at = mp_obj_get_int(at_in);
    if (flash_files() == mp_const_none || at % 4 || buffer.len % 4
        || at > FLASH_SIZE || buffer.len > FLASH_SIZE - at) {
        mp_raise_ValueError(NULL);
    }
    chip_write(at, buffer.buf, buffer.len);
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_2(qemu_poke_obj, qemu_poke);

// option(name): the text after name= on QEMU's command line, or None.
static mp_obj_t qemu_option(mp_obj_t name) {
    const char *text = option(mp_obj_str_get_str(name));
    return text == NULL ? mp_const_none : mp_obj_new_str_from_cstr(text);
}
static MP_DEFINE_CONST_FUN_OBJ_1(qemu_option_obj, qemu_option);

// note(bytes): appended to the host's file ledger=FILE, at once: what this machine itself has
// seen, readable when it is dead. Without ledger=FILE nothing happens. OSError: disk full.
static mp_obj_t qemu_note(mp_obj_t data) {
    static int file = -1;
    const char *path = option("ledger");
    if (path == NULL) {
        return mp_const_none;
    }
    mp_buffer_info_t buffer;
    mp_get_buffer_raise(data, &buffer, MP_BUFFER_READ);
    if (file < 0) {
        file = host_open(path, HOST_APPEND);
    }
    if (file < 0 || !host_append(file, buffer.buf, buffer.len)) {
        mp_raise_OSError(MP_EIO);
    }
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_1(qemu_note_obj, qemu_note);

// exit(status): the end of this machine, without goodbye.
static mp_obj_t qemu_exit(mp_obj_t status) {
    host_exit(mp_obj_get_int(status));
}
static MP_DEFINE_CONST_FUN_OBJ_1(qemu_exit_obj, qemu_exit);

// As the stock firmware of esp32 and of rp2 mounts littlefs.
#if BOARD_RV32
#define PROGSIZE 32
#else
#define PROGSIZE 256
#endif

static const mp_rom_map_elem_t qemu_globals_table[] = {
    { MP_ROM_QSTR(MP_QSTR___name__), MP_ROM_QSTR(MP_QSTR_qemu) },
    { MP_ROM_QSTR(MP_QSTR_PROGSIZE), MP_ROM_INT(PROGSIZE) },
    { MP_ROM_QSTR(MP_QSTR_blank), MP_ROM_PTR(&qemu_blank_obj) },
    { MP_ROM_QSTR(MP_QSTR_cut), MP_ROM_PTR(&qemu_cut_obj) },
    { MP_ROM_QSTR(MP_QSTR_exit), MP_ROM_PTR(&qemu_exit_obj) },
    { MP_ROM_QSTR(MP_QSTR_flash), MP_ROM_PTR(&qemu_flash_obj) },
    { MP_ROM_QSTR(MP_QSTR_note), MP_ROM_PTR(&qemu_note_obj) },
    { MP_ROM_QSTR(MP_QSTR_option), MP_ROM_PTR(&qemu_option_obj) },
    { MP_ROM_QSTR(MP_QSTR_poke), MP_ROM_PTR(&qemu_poke_obj) },
    { MP_ROM_QSTR(MP_QSTR_stats), MP_ROM_PTR(&qemu_stats_obj) },
};
static MP_DEFINE_CONST_DICT(qemu_globals, qemu_globals_table);
const mp_obj_module_t mp_module_qemu = {
    .base = { &mp_type_module },
    .globals = (mp_obj_dict_t *)&qemu_globals,
};
MP_REGISTER_MODULE(MP_QSTR_qemu, mp_module_qemu);

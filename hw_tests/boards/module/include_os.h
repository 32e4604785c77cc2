// Part of MicroPython's modos.c: os.urandom.
#include "board.h"

static mp_obj_t mp_os_urandom(mp_obj_t length_in) {
    mp_int_t length = mp_obj_get_int(length_in);
    vstr_t bytes;
    vstr_init_len(&bytes, length);
    entropy_fill((uint8_t *)bytes.buf, length);
    return mp_obj_new_bytes_from_vstr(&bytes);
}
static MP_DEFINE_CONST_FUN_OBJ_1(mp_os_urandom_obj, mp_os_urandom);

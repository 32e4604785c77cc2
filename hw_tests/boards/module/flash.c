// Flash with the rules of NOR: programming only clears bits, in pages of 256 bytes; only
// erasing sets them, 4 KiB at a time. littlefs and ROMFS are block devices on it.
//
// Here is the fault knob too: power goes away at the k-th operation from now on, where an
// operation is the program of (part of) one page or the erase of one block.
#include <string.h>
#include "py/mperrno.h"
#include "py/runtime.h"
#include "extmod/vfs.h"
#include "board.h"
#include "module.h"

// --- the fault knob ---------------------------------------------------------------------

enum { TORN_BEFORE, TORN_INSIDE, TORN_AFTER };
static int32_t operations_left = -1; // -1: for ever
static int torn;

void flash_cut_after(int32_t operations, int how) {
    operations_left = operations;
    torn = how;
}

// --- operations -------------------------------------------------------------------------

flash_counts_t flash_counts;
static uint8_t erased[FLASH_BLOCK];

// Half of it is a multiple of 4 bytes too, and never nothing.
static void operate(uint32_t at, const uint8_t *data, uint32_t length) {
    if (operations_left == 0) {
        uint32_t half = (length / 2 + 3) & ~3u;
        uint32_t done = torn == TORN_BEFORE ? 0 : torn == TORN_INSIDE ? half : length;
        chip_write(at, data, done);
        host_exit(EXIT_CUT);
    }
    if (operations_left > 0) {
        --operations_left;
    }
    chip_write(at, data, length);
}

static void erase(uint32_t at) {
    ++flash_counts.erases;
    operate(at, erased, FLASH_BLOCK);
}

// One page or less.
static void program(uint32_t at, const uint8_t *data, uint32_t length) {
    const uint8_t *now = chip_map() + at;
    for (uint32_t i = 0; i < length; ++i) {
        if (data[i] & ~now[i]) {
            ++flash_counts.refused;
            mp_raise_OSError(MP_EIO);
        }
    }
    ++flash_counts.programs;
    flash_counts.bytes += length;
    operate(at, data, length);
}

// --- block devices ----------------------------------------------------------------------

typedef struct {
    mp_obj_base_t base;
    uint32_t start;
    uint32_t size;
} part_t;

static part_t files = { { &flash_part_type }, FLASH_FILES, FLASH_FILES_SIZE };
static part_t romfs = { { &flash_part_type }, FLASH_ROMFS, FLASH_ROMFS_SIZE };
static bool present;

void flash_init(void) {
    memset(erased, 0xff, sizeof(erased));
    present = chip_open();
    uint32_t size = option_number("fs", FLASH_FILES_SIZE / 1024) * 1024;
    if (size >= 2 * FLASH_BLOCK && size <= FLASH_FILES_SIZE) {
        files.size = size / FLASH_BLOCK * FLASH_BLOCK;
    }
    flash_cut_after(option_number("cut", -1), option_number("torn", TORN_INSIDE));
}

mp_obj_t flash_files(void) {
    return present ? MP_OBJ_FROM_PTR(&files) : mp_const_none;
}

bool flash_blank(void) {
    return memcmp(chip_map() + files.start, erased, FLASH_BLOCK) == 0
           && memcmp(chip_map() + files.start + FLASH_BLOCK, erased, FLASH_BLOCK) == 0;
}

// Where (block, offset) lies on the chip. OSError when `length` bytes there leave the part.
static uint32_t place(part_t *part, mp_obj_t block, mp_obj_t offset, size_t length) {
    uint32_t at = mp_obj_get_int(block) * FLASH_BLOCK + mp_obj_get_int(offset);
    if (at > part->size || length > part->size - at) {
        mp_raise_OSError(MP_EINVAL);
    }
    return part->start + at;
}

// readblocks(block, buffer, offset=0)
static mp_obj_t part_readblocks(size_t n_args, const mp_obj_t *args) {
    mp_buffer_info_t buffer;
    mp_get_buffer_raise(args[2], &buffer, MP_BUFFER_WRITE);
    mp_obj_t offset = n_args > 3 ? args[3] : MP_OBJ_NEW_SMALL_INT(0);
    uint32_t at = place(MP_OBJ_TO_PTR(args[0]), args[1], offset, buffer.len);
    memcpy(buffer.buf, chip_map() + at, buffer.len);
    return MP_OBJ_NEW_SMALL_INT(0);
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(part_readblocks_obj, 3, 4, part_readblocks);

// writeblocks(block, buffer): erases first. writeblocks(block, buffer, offset): does not.
static mp_obj_t part_writeblocks(size_t n_args, const mp_obj_t *args) {
    mp_buffer_info_t buffer;
    mp_get_buffer_raise(args[2], &buffer, MP_BUFFER_READ);
    mp_obj_t offset = n_args > 3 ? args[3] : MP_OBJ_NEW_SMALL_INT(0);
    uint32_t at = place(MP_OBJ_TO_PTR(args[0]), args[1], offset, buffer.len);
    if (at % 4 || buffer.len % 4) {
        mp_raise_OSError(MP_EINVAL); // the chip's bus is 32 bits wide
    }
    if (n_args == 3) {
        for (uint32_t i = 0; i < buffer.len; i += FLASH_BLOCK) {
            erase(at + i);
        }
    }
    const uint8_t *data = buffer.buf;
    for (uint32_t left = buffer.len; left > 0;) {
        uint32_t length = FLASH_PAGE - at % FLASH_PAGE;
        length = length < left ? length : left;
        program(at, data, length);
        at += length;
        data += length;
        left -= length;
    }
    return MP_OBJ_NEW_SMALL_INT(0);
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(part_writeblocks_obj, 3, 4, part_writeblocks);

static mp_obj_t part_ioctl(mp_obj_t self_in, mp_obj_t op, mp_obj_t arg) {
    part_t *part = MP_OBJ_TO_PTR(self_in);
    switch (mp_obj_get_int(op)) {
        case MP_BLOCKDEV_IOCTL_BLOCK_COUNT:
            return MP_OBJ_NEW_SMALL_INT(part->size / FLASH_BLOCK);
        case MP_BLOCKDEV_IOCTL_BLOCK_SIZE:
            return MP_OBJ_NEW_SMALL_INT(FLASH_BLOCK);
        case MP_BLOCKDEV_IOCTL_BLOCK_ERASE:
            erase(place(part, arg, MP_OBJ_NEW_SMALL_INT(0), FLASH_BLOCK));
            return MP_OBJ_NEW_SMALL_INT(0);
        default: // nothing to do for init, deinit, sync
            return MP_OBJ_NEW_SMALL_INT(0);
    }
}
static MP_DEFINE_CONST_FUN_OBJ_3(part_ioctl_obj, part_ioctl);

// memoryview(part) is the flash itself: what makes ROMFS run its files where they are.
static mp_int_t part_get_buffer(mp_obj_t self_in, mp_buffer_info_t *buffer, mp_uint_t flags) {
    part_t *part = MP_OBJ_TO_PTR(self_in);
    if (flags & MP_BUFFER_WRITE) {
        return 1;
    }
    buffer->buf = (void *)(chip_map() + part->start);
    buffer->len = part->size;
    buffer->typecode = 'B';
    return 0;
}

static const mp_rom_map_elem_t part_locals_table[] = {
    { MP_ROM_QSTR(MP_QSTR_readblocks), MP_ROM_PTR(&part_readblocks_obj) },
    { MP_ROM_QSTR(MP_QSTR_writeblocks), MP_ROM_PTR(&part_writeblocks_obj) },
    { MP_ROM_QSTR(MP_QSTR_ioctl), MP_ROM_PTR(&part_ioctl_obj) },
};
static MP_DEFINE_CONST_DICT(part_locals, part_locals_table);
MP_DEFINE_CONST_OBJ_TYPE(
    flash_part_type, MP_QSTR_Flash, MP_TYPE_FLAG_NONE,
    buffer, part_get_buffer, locals_dict, &part_locals);

// vfs.rom_ioctl: one segment, written through its block device as on esp32.
mp_obj_t mp_vfs_rom_ioctl(size_t n_args, const mp_obj_t *args) {
    switch (mp_obj_get_int(args[0])) {
        case MP_VFS_ROM_IOCTL_GET_NUMBER_OF_SEGMENTS:
            return MP_OBJ_NEW_SMALL_INT(present);
        case MP_VFS_ROM_IOCTL_GET_SEGMENT:
            if (present && n_args == 2 && args[1] == MP_OBJ_NEW_SMALL_INT(0)) {
                return MP_OBJ_FROM_PTR(&romfs);
            }
            return MP_OBJ_NEW_SMALL_INT(-MP_EINVAL);
        default:
            return MP_OBJ_NEW_SMALL_INT(-MP_EINVAL);
    }
}

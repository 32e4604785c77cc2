// Checked steps through a FlatBuffer, as flatbuffer.Reader takes them. None: outside the file.
#include "kernels.h"

typedef struct {
    const uint8_t *data;
    uint32_t size;
} file_t;

INLINE file_t file_of(mp_obj_t object) {
    mp_buffer_info_t buffer;
    mp_get_buffer_raise(object, &buffer, MP_BUFFER_READ);
    file_t file = {buffer.buf, buffer.len};
    return file;
}

// Files have at most 2^29 bytes, so positions and their sums fit an int32.
INLINE int inside(const file_t *file, int32_t at, uint32_t length) {
    return at >= 0 && length <= file->size && (uint32_t)at <= file->size - length;
}

// Byte by byte: a model in flash lies at any address.
INLINE uint32_t word(const file_t *file, int32_t at) {
    const uint8_t *d = file->data + at;
    return d[0] | d[1] << 8 | d[2] << 16 | (uint32_t)d[3] << 24;
}

// Where the offset at `at` points; -1: outside.
static int32_t follow_offset(const file_t *file, int32_t at) {
    if (!inside(file, at, 4)) {
        return -1;
    }
    uint32_t offset = word(file, at);
    if (offset > file->size || !inside(file, at + (int32_t)offset, 4)) {
        return -1;
    }
    return at + (int32_t)offset;
}

// Position of a table's field; 0: left out; -1: outside.
static int32_t find_field(const file_t *file, int32_t table, int32_t number) {
    if (!inside(file, table, 4)) {
        return -1;
    }
    int64_t far = (int64_t)table - (int32_t)word(file, table);
    if (far < 0 || far > (int64_t)file->size) {
        return -1;
    }
    int32_t vtable = (int32_t)far, entry = 4 + 2 * number;
    if (!inside(file, vtable, 2)) {
        return -1;
    }
    const uint8_t *d = file->data + vtable;
    if (entry + 2 > (d[0] | d[1] << 8)) {
        return 0;
    }
    if (!inside(file, vtable + entry, 2)) {
        return -1;
    }
    int32_t offset = d[entry] | d[entry + 1] << 8;
    return offset ? table + offset : 0;
}

static int32_t find_table(const file_t *file, int32_t table, int32_t number) {
    int32_t at = find_field(file, table, number);
    return at > 0 ? follow_offset(file, at) : at;
}

static mp_obj_t position(int32_t at) {
    return at < 0 ? mp_const_none : MP_OBJ_NEW_SMALL_INT(at);
}

static mp_obj_t small_pair(int32_t a, int32_t b) {
    mp_obj_t items[2] = {MP_OBJ_NEW_SMALL_INT(a), MP_OBJ_NEW_SMALL_INT(b)};
    return mp_obj_new_tuple(2, items);
}

// A position given by the caller; -1 when it is no position at all.
static int32_t given(mp_obj_t object) {
    mp_int_t at = mp_obj_get_int(object);
    return at < 0 || at > 0x3fffffff ? -1 : (int32_t)at;
}

mp_obj_t follow(mp_obj_t data, mp_obj_t at) {
    file_t file = file_of(data);
    return position(follow_offset(&file, given(at)));
}

mp_obj_t field(mp_obj_t data, mp_obj_t table, mp_obj_t number) {
    file_t file = file_of(data);
    return position(find_field(&file, given(table), mp_obj_get_int(number)));
}

mp_obj_t table(mp_obj_t data, mp_obj_t at, mp_obj_t number) {
    file_t file = file_of(data);
    return position(find_table(&file, given(at), mp_obj_get_int(number)));
}

// Position of a vector's elements and their number. Whether it lies inside.
static int find_vector(
    const file_t *file, int32_t table, int32_t number, uint32_t width,
    int32_t *at, int32_t *count) {
    *at = find_table(file, table, number);
    *count = 0;
    if (*at > 0) {
        uint32_t items = word(file, *at);
        *at += 4;
        if (items > file->size || !inside(file, *at, items * width)) {
            return 0;
        }
        *count = (int32_t)items;
    }
    return *at >= 0;
}

// Value of a field of `width` bytes, 1 or 4. Whether it lies inside.
static int find_number(
    const file_t *file, int32_t table, int32_t number, int width, int32_t *value) {
    int32_t at = find_field(file, table, number);
    if (at > 0) {
        if (!inside(file, at, width)) {
            return 0;
        }
        *value = width == 1 ? file->data[at] : (int32_t)word(file, at);
    }
    return at >= 0;
}

// args: data, table, number of the field, bytes of an element. (position, count)
mp_obj_t vector(size_t count, const mp_obj_t *args) {
    file_t file = file_of(args[0]);
    int32_t at, items;
    uint32_t width = mp_obj_get_int(args[3]);
    (void)count;
    if (!find_vector(&file, given(args[1]), mp_obj_get_int(args[2]), width, &at, &items)) {
        return mp_const_none;
    }
    return small_pair(at, items);
}

static mp_obj_t number(const mp_obj_t *args, int width) {
    file_t file = file_of(args[0]);
    int32_t value = mp_obj_get_int(args[3]);
    if (!find_number(&file, given(args[1]), mp_obj_get_int(args[2]), width, &value)) {
        return mp_const_none;
    }
    return mp_obj_new_int(value);
}

// args: data, table, number of the field, value when it is left out.
mp_obj_t byte_field(size_t count, const mp_obj_t *args) {
    (void)count;
    return number(args, 1);
}

mp_obj_t integer(size_t count, const mp_obj_t *args) {
    (void)count;
    return number(args, 4);
}

// int32 elements as a tuple; the caller has checked their number.
mp_obj_t integers(mp_obj_t data, mp_obj_t at_in, mp_obj_t count_in) {
    file_t file = file_of(data);
    int32_t at = given(at_in);
    mp_int_t count = mp_obj_get_int(count_in);
    mp_obj_t items[64];
    if (count < 0 || count > 64 || !inside(&file, at, 4 * count)) {
        return mp_const_none;
    }
    for (int k = 0; k < count; k++, at += 4) {
        items[k] = mp_obj_new_int((int32_t)word(&file, at));
    }
    return mp_obj_new_tuple(count, items);
}

// See flatbuffer.Reader.tensor. args: data, table, position and number of the buffers.
// None also where that function would raise for another reason.
mp_obj_t tensor(size_t count, const mp_obj_t *args) {
    file_t file = file_of(args[0]);
    int32_t t = given(args[1]), shape, rank, scales = 0, scale_count = 0, zeros = 0;
    int32_t zero_count = 0, data = 0, length = 0, kind = 0, variable = 0, external = 0, axis = 0;
    int32_t number = 0, bits = 0, zero = 0;
    (void)count;
    int32_t quantisation = find_table(&file, t, 4), sparse = find_field(&file, t, 6);
    int sound = quantisation >= 0 && sparse >= 0 && find_vector(&file, t, 0, 4, &shape, &rank)
        && rank <= 6 && find_number(&file, t, 1, 1, &kind) && find_number(&file, t, 2, 4, &number)
        && find_number(&file, t, 5, 1, &variable) && find_number(&file, t, 10, 4, &external);
    if (sound && quantisation) {
        sound = find_vector(&file, quantisation, 2, 4, &scales, &scale_count)
            && find_vector(&file, quantisation, 3, 8, &zeros, &zero_count)
            && find_number(&file, quantisation, 6, 4, &axis);
    }
    if (sound && number) {
        sound = number > 0 && number < mp_obj_get_int(args[3]);
        int32_t buffer = sound ? follow_offset(&file, given(args[2]) + 4 * number) : -1;
        sound = sound && find_field(&file, buffer, 1) == 0
            && find_vector(&file, buffer, 0, 1, &data, &length);
    }
    if (sound && scale_count) {
        bits = (int32_t)word(&file, scales);
        sound = bits >= 0; // else it is no scale
    }
    if (sound && zero_count) {
        zero = (int32_t)word(&file, zeros);
        sound = (int32_t)word(&file, zeros + 4) == zero >> 31;
    }
    if (!sound) {
        return mp_const_none;
    }
    mp_obj_t items[12];
    for (int k = 0; k < rank; k++) {
        items[k] = mp_obj_new_int((int32_t)word(&file, shape + 4 * k));
    }
    items[0] = mp_obj_new_tuple(rank, items);
    items[1] = MP_OBJ_NEW_SMALL_INT(kind);
    items[2] = MP_OBJ_NEW_SMALL_INT(variable);
    items[3] = MP_OBJ_NEW_SMALL_INT(sparse);
    items[4] = mp_obj_new_int(external);
    items[5] = small_pair(scales, scale_count);
    items[6] = small_pair(zeros, zero_count);
    items[7] = mp_obj_new_int(axis);
    items[8] = mp_obj_new_int(bits);
    items[9] = mp_obj_new_int(zero);
    items[10] = MP_OBJ_NEW_SMALL_INT(data);
    items[11] = MP_OBJ_NEW_SMALL_INT(length);
    return mp_obj_new_tuple(12, items);
}

mp_obj_t u32(mp_obj_t data, mp_obj_t at_in) {
    file_t file = file_of(data);
    int32_t at = given(at_in);
    return inside(&file, at, 4) ? mp_obj_new_int_from_uint(word(&file, at)) : mp_const_none;
}

mp_obj_t i32(mp_obj_t data, mp_obj_t at_in) {
    file_t file = file_of(data);
    int32_t at = given(at_in);
    return inside(&file, at, 4) ? mp_obj_new_int((int32_t)word(&file, at)) : mp_const_none;
}

// The module's table of names.
#include "kernels.h"

static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(conv_2d_obj, 7, 7, conv_2d);
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(depthwise_conv_2d_obj, 7, 7, depthwise_conv_2d);
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(fully_connected_obj, 7, 7, fully_connected);
static MP_DEFINE_CONST_FUN_OBJ_3(average_pool_2d_obj, average_pool_2d);
static MP_DEFINE_CONST_FUN_OBJ_3(max_pool_2d_obj, max_pool_2d);
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(add_obj, 4, 4, add);
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(mul_obj, 4, 4, mul);
static MP_DEFINE_CONST_FUN_OBJ_3(mean_obj, mean);
static MP_DEFINE_CONST_FUN_OBJ_3(softmax_obj, softmax);
static MP_DEFINE_CONST_FUN_OBJ_3(lookup_obj, lookup);
static MP_DEFINE_CONST_FUN_OBJ_3(pad_obj, pad);
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(multipliers_obj, 4, 4, multipliers);
static MP_DEFINE_CONST_FUN_OBJ_2(follow_obj, follow);
static MP_DEFINE_CONST_FUN_OBJ_3(field_obj, field);
static MP_DEFINE_CONST_FUN_OBJ_3(table_obj, table);
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(vector_obj, 4, 4, vector);
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(byte_obj, 4, 4, byte_field);
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(integer_obj, 4, 4, integer);
static MP_DEFINE_CONST_FUN_OBJ_2(u32_obj, u32);
static MP_DEFINE_CONST_FUN_OBJ_2(i32_obj, i32);
static MP_DEFINE_CONST_FUN_OBJ_3(integers_obj, integers);
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(tensor_obj, 4, 4, tensor);

mp_obj_t mpy_init(mp_obj_fun_bc_t *self, size_t n_args, size_t n_kw, mp_obj_t *args) {
    MP_DYNRUNTIME_INIT_ENTRY
    mp_store_global(MP_QSTR_conv_2d, MP_OBJ_FROM_PTR(&conv_2d_obj));
    mp_store_global(MP_QSTR_depthwise_conv_2d, MP_OBJ_FROM_PTR(&depthwise_conv_2d_obj));
    mp_store_global(MP_QSTR_fully_connected, MP_OBJ_FROM_PTR(&fully_connected_obj));
    mp_store_global(MP_QSTR_average_pool_2d, MP_OBJ_FROM_PTR(&average_pool_2d_obj));
    mp_store_global(MP_QSTR_max_pool_2d, MP_OBJ_FROM_PTR(&max_pool_2d_obj));
    mp_store_global(MP_QSTR_add, MP_OBJ_FROM_PTR(&add_obj));
    mp_store_global(MP_QSTR_mul, MP_OBJ_FROM_PTR(&mul_obj));
    mp_store_global(MP_QSTR_mean, MP_OBJ_FROM_PTR(&mean_obj));
    mp_store_global(MP_QSTR_softmax, MP_OBJ_FROM_PTR(&softmax_obj));
    mp_store_global(MP_QSTR_lookup, MP_OBJ_FROM_PTR(&lookup_obj));
    mp_store_global(MP_QSTR_pad, MP_OBJ_FROM_PTR(&pad_obj));
    mp_store_global(MP_QSTR_multipliers, MP_OBJ_FROM_PTR(&multipliers_obj));
    mp_store_global(MP_QSTR_follow, MP_OBJ_FROM_PTR(&follow_obj));
    mp_store_global(MP_QSTR_field, MP_OBJ_FROM_PTR(&field_obj));
    mp_store_global(MP_QSTR_table, MP_OBJ_FROM_PTR(&table_obj));
    mp_store_global(MP_QSTR_vector, MP_OBJ_FROM_PTR(&vector_obj));
    mp_store_global(MP_QSTR_byte, MP_OBJ_FROM_PTR(&byte_obj));
    mp_store_global(MP_QSTR_integer, MP_OBJ_FROM_PTR(&integer_obj));
    mp_store_global(MP_QSTR_u32, MP_OBJ_FROM_PTR(&u32_obj));
    mp_store_global(MP_QSTR_i32, MP_OBJ_FROM_PTR(&i32_obj));
    mp_store_global(MP_QSTR_integers, MP_OBJ_FROM_PTR(&integers_obj));
    mp_store_global(MP_QSTR_tensor, MP_OBJ_FROM_PTR(&tensor_obj));
    MP_DYNRUNTIME_INIT_EXIT
}

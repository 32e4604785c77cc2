// What flash.c and entropy.c show to Python through module.c.
#pragma once
#include "py/obj.h"

typedef struct {
    uint32_t programs; // operations, each of one page or less
    uint32_t bytes;    // programmed
    uint32_t erases;   // operations, each of one block
    uint32_t refused;  // programs that would have set a bit
} flash_counts_t;
extern flash_counts_t flash_counts;
extern const mp_obj_type_t flash_part_type;
mp_obj_t flash_files(void); // the part for littlefs, or None
bool flash_blank(void);

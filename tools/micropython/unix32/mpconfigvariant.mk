MICROPY_FORCE_32BIT = 1
MICROPY_PY_FFI = 0
MICROPY_PY_BTREE = 0
MICROPY_PY_THREAD = 0
# Off for make, on for the compiler below: make would link a library of the system.
MICROPY_PY_SSL = 0

# Boards have asyncio frozen, so it costs no heap there; nor here.
FROZEN_MANIFEST = $(TOP)/extmod/asyncio/manifest.py
# That takes nothing from micropython-lib; make wants a README.md there all the same.
MPY_LIB_DIR = $(TOP)

ifneq ($(wildcard $(TOP)/lib/mbedtls/library/aes.c),)
CFLAGS += -DMICROPY_PY_SSL=1 -DMICROPY_SSL_MBEDTLS=1 -I$(TOP)/lib/mbedtls/include
CFLAGS += -DMBEDTLS_CONFIG_FILE='"mbedtls/mbedtls_config_port.h"'
SRC_THIRDPARTY_C += lib/mbedtls_errors/mp_mbedtls_errors.c
# error.c has a shorter twin in mbedtls_errors.
SRC_THIRDPARTY_C += $(patsubst $(TOP)/%,%,\
	$(filter-out %/error.c,$(wildcard $(TOP)/lib/mbedtls/library/*.c)))
endif

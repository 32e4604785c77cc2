# What both boards share. Nothing of MicroPython's tree is changed: its own board file is
# included first, then its port is configured (module/config_micropython.h), given our C files
# (module/micropython.mk), and a few of its functions are replaced by the linker.
HERE := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))

USER_C_MODULES = $(patsubst %/,%,$(HERE))
FROZEN_MANIFEST = $(HERE)module/boot/manifest.py
# The manifest takes nothing from micropython-lib; make wants a README.md there all the same.
MPY_LIB_DIR = $(TOP)
MICROPY_VFS_LFS2 = 1

CFLAGS += -I$(HERE)module -DMP_CONFIGFILE='"config_micropython.h"'
QSTR_GLOBAL_DEPENDENCIES += $(HERE)module/config_micropython.h

# The port's main runs nothing but a REPL, its exit status is QEMU's own, its console waits
# without ever looking at anything else: see module/main.c and module/console.c.
LDFLAGS += -Wl,--wrap=main -Wl,--wrap=exit
LDFLAGS += -Wl,--wrap=mp_hal_stdin_rx_chr -Wl,--wrap=mp_hal_stdio_poll

SRC_C += shared/timeutils/timeutils.c

# SHA-256 and AES as boards have them; without the source they are missing (see the README).
ifneq ($(wildcard $(TOP)/lib/mbedtls/library/aes.c),)
CFLAGS += -DMICROPY_SSL_MBEDTLS=1 -DMICROPY_PY_CRYPTOLIB=1 -DMICROPY_PY_CRYPTOLIB_CTR=1
CFLAGS += -DMBEDTLS_CONFIG_FILE='"config_mbedtls.h"' -I$(TOP)/lib/mbedtls/include
SRC_THIRDPARTY_C += $(addprefix lib/mbedtls/library/,aes.c sha256.c constant_time.c platform_util.c)
endif

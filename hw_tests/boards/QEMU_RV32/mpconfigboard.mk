# QEMU's "virt" with one 32-bit RISC-V core: the instruction class of an ESP32-C3.
include boards/VIRT_RV32/mpconfigboard.mk
include $(BOARD_DIR)/../common.mk

CFLAGS += -DBOARD_RV32=1

# Sockets: lwIP's source is in $(LWIP_TOP)/lwip, beside MicroPython's tree and not in it.
ifneq ($(LWIP_TOP),)
MICROPY_PY_LWIP = 1
override LWIP_DIR := lwip/src
vpath %.c $(LWIP_TOP)
CFLAGS += -I$(LWIP_TOP)/lwip/src/include
endif

# QEMU's "virt" with one 32-bit RISC-V core: the instruction class of an ESP32-C3.
include boards/VIRT_RV32/mpconfigboard.mk
include $(BOARD_DIR)/../common.mk

CFLAGS += -DBOARD_RV32=1

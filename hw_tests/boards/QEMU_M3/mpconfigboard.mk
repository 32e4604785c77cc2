# QEMU's "mps2-an385": a Cortex-M3.
include boards/MPS2_AN385/mpconfigboard.mk
include $(BOARD_DIR)/../common.mk

CFLAGS += -DBOARD_M3=1
# After a fault the port hangs.
LDFLAGS += -Wl,--wrap=HardFault_Handler
LDSCRIPT = $(BOARD_DIR)/memory.ld

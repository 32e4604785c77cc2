BOARDS_MODULE := $(USERMOD_DIR)

# Those that define names of Python.
SRC_USERMOD_C += $(addprefix $(BOARDS_MODULE)/,\
	flash.c \
	main.c \
	module.c \
	net_lan.c \
	)
SRC_USERMOD_LIB_C += $(addprefix $(BOARDS_MODULE)/,\
	clock.c \
	console.c \
	cpu_m3.c \
	cpu_rv32.c \
	entropy.c \
	flash_cfi.c \
	flash_file.c \
	net_virtio.c \
	options.c \
	rtc.c \
	semihost.c \
	)
CFLAGS_USERMOD += -I$(BOARDS_MODULE)

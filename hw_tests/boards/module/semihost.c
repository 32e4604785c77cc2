// Semihosting: the few things this machine asks of the host, through the debugger's trap
// that QEMU answers. A real board has none of it; nothing but tests may depend on it.
#include <string.h>
#include "board.h"

enum {
    SYS_OPEN = 0x01, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_SEEK = 0x0a, SYS_TIME = 0x11,
    SYS_GET_CMDLINE = 0x15, SYS_EXIT_EXTENDED = 0x20,
};
static const uint32_t modes[] = { [HOST_READ] = 1, [HOST_UPDATE] = 3, [HOST_APPEND] = 9 };
enum { STOPPED_APPLICATION_EXIT = 0x20026 };

void host_exit(int status) {
    const uint32_t args[2] = { STOPPED_APPLICATION_EXIT, status };
    semihost_trap(SYS_EXIT_EXTENDED, args);
    for (;;) {
    }
}

int host_open(const char *path, int mode) {
    const uint32_t args[3] = { (uintptr_t)path, modes[mode], strlen(path) };
    return (int)semihost_trap(SYS_OPEN, args);
}

static bool seek(int handle, uint32_t at) {
    const uint32_t args[2] = { handle, at };
    return semihost_trap(SYS_SEEK, args) == 0;
}

// Both answer with the number of bytes they did not move.
bool host_read(int handle, uint32_t at, void *data, uint32_t length) {
    const uint32_t args[3] = { handle, (uintptr_t)data, length };
    return seek(handle, at) && semihost_trap(SYS_READ, args) == 0;
}

bool host_append(int handle, const void *data, uint32_t length) {
    const uint32_t args[3] = { handle, (uintptr_t)data, length };
    return semihost_trap(SYS_WRITE, args) == 0;
}

bool host_write(int handle, uint32_t at, const void *data, uint32_t length) {
    return seek(handle, at) && host_append(handle, data, length);
}

uint32_t host_time(void) {
    return semihost_trap(SYS_TIME, NULL);
}

bool host_command_line(char *text, uint32_t size) {
    const uint32_t args[2] = { (uintptr_t)text, size };
    return semihost_trap(SYS_GET_CMDLINE, args) == 0;
}

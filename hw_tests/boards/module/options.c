// The knobs: QEMU is started with -semihosting-config ...,arg=board,arg=cut=12,arg=torn=1
// and this machine reads "board cut=12 torn=1". The README lists them all.
#include <string.h>
#include "board.h"

const char *option(const char *name) {
    static char line[1024]; // words end in 0 once it was read
    static uint32_t length;
    if (length == 0) {
        if (!host_command_line(line, sizeof(line) - 1)) {
            line[0] = 0;
        }
        length = strlen(line) + 1;
        for (uint32_t i = 0; i < length; ++i) {
            if (line[i] == ' ') {
                line[i] = 0;
            }
        }
    }
    size_t name_length = strlen(name);
    for (const char *word = line; word < line + length; word += strlen(word) + 1) {
        if (strncmp(word, name, name_length) == 0 && word[name_length] == '=') {
            return word + name_length + 1;
        }
    }
    return NULL;
}

int32_t option_number(const char *name, int32_t otherwise) {
    const char *text = option(name);
    if (text == NULL) {
        return otherwise;
    }
    bool negative = *text == '-';
    int32_t value = 0;
    for (text += negative; *text >= '0' && *text <= '9'; ++text) {
        value = value * 10 + (*text - '0');
    }
    return negative ? -value : value;
}

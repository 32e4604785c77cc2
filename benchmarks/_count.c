/* Counts the instructions that a machine of QEMU executes; a plugin (API 1), for flash.py.
 *
 *     cc -shared -fPIC -o count.so _count.c
 *     qemu-system-... -plugin ./count.so,out=FILE
 *
 * QEMU calls us with each block of code that it translates; we have it add the block's
 * length to a counter whenever the block runs. The sum is in FILE when QEMU ends.
 * Debian's QEMU has plugins but not their header, so what is used of it is declared here.
 */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_info;
typedef uint64_t plugin_id;

extern void qemu_plugin_register_vcpu_tb_trans_cb(
    plugin_id id, void (*callback)(plugin_id, struct qemu_plugin_tb *));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern void qemu_plugin_register_vcpu_tb_exec_inline(
    struct qemu_plugin_tb *block, int operation, void *counter, uint64_t by);
extern void qemu_plugin_register_atexit_cb(
    plugin_id id, void (*callback)(plugin_id, void *), void *data);

enum { ADD_U64 = 0 };

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static uint64_t executed;
static char path[512];

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(
        block, ADD_U64, &executed, qemu_plugin_tb_n_insns(block));
}

static void ended(plugin_id id, void *data) {
    (void)id;
    (void)data;
    FILE *out = fopen(path, "w");
    if (out != NULL) {
        fprintf(out, "%" PRIu64 "\n", executed);
        fclose(out);
    }
}

__attribute__((visibility("default"))) int qemu_plugin_install(
    plugin_id id, const struct qemu_info *info, int count, char **words) {
    (void)info;
    for (int i = 0; i < count; i++) {
        if (strncmp(words[i], "out=", 4) == 0) {
            snprintf(path, sizeof path, "%s", words[i] + 4);
        }
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}

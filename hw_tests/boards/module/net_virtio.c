// The network card of QEMU's "virt": virtio-net behind virtio-mmio, in its older (legacy)
// form, which has every queue in one piece of memory. Section numbers are those of the
// OASIS specification "Virtual I/O Device (VIRTIO) Version 1.1".
#include "board.h"
#include "net.h"
#if BOARD_RV32 && MICROPY_PY_LWIP
#include <string.h>
#include "lwip/pbuf.h"

// --- registers (4.2.4) ------------------------------------------------------------------

enum {
    MAGIC = 0x00, VERSION = 0x04, DEVICE = 0x08, DRIVER_FEATURES = 0x20, PAGE_SIZE = 0x28,
    QUEUE_SELECT = 0x30, QUEUE_SIZE = 0x38, QUEUE_ALIGN = 0x3c, QUEUE_PAGE = 0x40,
    QUEUE_NOTIFY = 0x50, INTERRUPT = 0x60, INTERRUPT_ACK = 0x64, STATUS = 0x70,
    CONFIG_MAC = 0x100, CONFIG_LINK = 0x106,
};
enum { SLOTS = 0x10001000, SLOT = 0x1000, SLOT_COUNT = 8 };
enum { DEVICE_NET = 1, FEATURE_MAC = 1 << 5, FEATURE_LINK = 1 << 16 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4 };
#define MAGIC_VIRT 0x74726976

static uint32_t card; // address of its registers
#define REG(offset) (*(volatile uint32_t *)(uintptr_t)(card + (offset)))
#define REG8(offset) (*(volatile uint8_t *)(uintptr_t)(card + (offset)))

// --- queues (2.6): what we offer, and what the device has used ----------------------------

enum { ENTRIES = 16, PAGE = 4096, FRAME = 1536, HEADER = 10 };
enum { RECEIVE = 0, SEND = 1 };
enum { DEVICE_WRITES = 2, NO_INTERRUPT = 1 };

typedef struct {
    struct { uint64_t address; uint32_t length; uint16_t flags, next; } buffers[ENTRIES];
    struct { uint16_t flags, count, ring[ENTRIES]; } offered;
    struct { uint16_t flags, count; struct { uint32_t buffer, length; } ring[ENTRIES]; } used
    __attribute__((aligned(PAGE)));
} __attribute__((aligned(PAGE))) queue_t;

static volatile queue_t queues[2];
static uint8_t frames[2][ENTRIES][FRAME]; // each behind a header that says nothing to us
static uint16_t received;                 // of queues[RECEIVE].used.count

// The device sees what was written before this, and we what it wrote.
static void barrier(void) {
    __sync_synchronize();
}

static void offer(int queue, uint16_t buffer, uint32_t length) {
    volatile queue_t *q = &queues[queue];
    q->buffers[buffer].length = length;
    q->offered.ring[q->offered.count % ENTRIES] = buffer;
    barrier();
    ++q->offered.count;
    barrier();
    REG(QUEUE_NOTIFY) = queue;
}

// --- the card ---------------------------------------------------------------------------

static bool find(void) {
    for (int slot = 0; slot < SLOT_COUNT; ++slot) {
        card = SLOTS + slot * SLOT;
        if (REG(MAGIC) == MAGIC_VIRT && REG(VERSION) == 1 && REG(DEVICE) == DEVICE_NET) {
            return true;
        }
    }
    return false;
}

bool card_open(uint8_t mac[6]) {
    if (!find()) {
        return false;
    }
    REG(STATUS) = 0; // reset
    REG(STATUS) = ACKNOWLEDGE;
    REG(STATUS) = ACKNOWLEDGE | DRIVER;
    REG(DRIVER_FEATURES) = FEATURE_MAC | FEATURE_LINK;
    REG(PAGE_SIZE) = PAGE;
    for (int queue = 0; queue < 2; ++queue) {
        REG(QUEUE_SELECT) = queue;
        REG(QUEUE_SIZE) = ENTRIES;
        REG(QUEUE_ALIGN) = PAGE;
        REG(QUEUE_PAGE) = (uintptr_t)&queues[queue] / PAGE;
        for (int i = 0; i < ENTRIES; ++i) {
            queues[queue].buffers[i].address = (uintptr_t)frames[queue][i];
            queues[queue].buffers[i].flags = queue == RECEIVE ? DEVICE_WRITES : 0;
        }
    }
    queues[SEND].offered.flags = NO_INTERRUPT;
    REG(STATUS) = ACKNOWLEDGE | DRIVER | DRIVER_OK;
    for (int i = 0; i < ENTRIES; ++i) {
        offer(RECEIVE, i, FRAME);
    }
    for (int i = 0; i < 6; ++i) {
        mac[i] = REG8(CONFIG_MAC + i);
    }
    return true;
}

bool card_link(void) {
    return REG8(CONFIG_LINK) & 1;
}

int card_asks(void) {
    int asks = REG(INTERRUPT); // bit 0: a queue, bit 1: the configuration
    if (asks) {
        REG(INTERRUPT_ACK) = asks;
    }
    return asks;
}

struct pbuf *card_receive(void) {
    volatile queue_t *q = &queues[RECEIVE];
    struct pbuf *frame = NULL;
    while (frame == NULL && received != q->used.count) {
        barrier();
        uint32_t buffer = q->used.ring[received % ENTRIES].buffer;
        uint32_t length = q->used.ring[received % ENTRIES].length;
        ++received;
        if (length > HEADER && length <= FRAME) {
            // No memory: the frame is lost, as on any network.
            frame = pbuf_alloc(PBUF_RAW, length - HEADER, PBUF_POOL);
            if (frame != NULL) {
                pbuf_take(frame, frames[RECEIVE][buffer] + HEADER, length - HEADER);
            }
        }
        offer(RECEIVE, buffer, FRAME);
    }
    return frame;
}

bool card_send(struct pbuf *frame) {
    volatile queue_t *q = &queues[SEND];
    if ((uint16_t)(q->offered.count - q->used.count) >= ENTRIES
        || frame->tot_len > FRAME - HEADER) {
        return false;
    }
    // The device uses what it is offered in order, so entries free themselves in order.
    uint16_t buffer = q->offered.count % ENTRIES;
    memset(frames[SEND][buffer], 0, HEADER);
    pbuf_copy_partial(frame, frames[SEND][buffer] + HEADER, frame->tot_len, 0);
    offer(SEND, buffer, HEADER + frame->tot_len);
    return true;
}

#endif

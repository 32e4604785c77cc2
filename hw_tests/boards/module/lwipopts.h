// lwIP's options: MicroPython's own, with the buffers that ESP-IDF gives it.
#pragma once
#include <stdint.h>

#define LWIP_NETIF_EXT_STATUS_CALLBACK 1
#define LWIP_NETIF_STATUS_CALLBACK 1
#define LWIP_IPV6 0

unsigned long entropy_word(void);
#define LWIP_RAND() ((uint32_t)entropy_word())

#define MEM_SIZE 16384
#define TCP_MSS 1440
#define TCP_WND (4 * TCP_MSS)
#define TCP_SND_BUF (4 * TCP_MSS)
#define MEMP_NUM_TCP_SEG 32

#include "extmod/lwip-include/lwipopts_common.h"

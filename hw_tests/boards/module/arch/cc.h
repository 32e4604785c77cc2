// What lwIP wants to know of the compiler; the rest it finds out by itself.
#pragma once
#define LWIP_NO_CTYPE_H 1
#define LWIP_PLATFORM_DIAG(message)
#define LWIP_PLATFORM_ASSERT(message)

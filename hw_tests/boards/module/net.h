// The network card (net_virtio.c) below lwIP (net_lan.c).
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct pbuf;
enum { CARD_NOTHING = 0, CARD_FRAMES = 1, CARD_LINK = 2 };

bool card_open(uint8_t mac[6]);             // false: the machine has no network card
bool card_link(void);                       // whether the cable is plugged in
bool card_send(struct pbuf *frame);         // false: the queue is full
int card_asks(void);                        // CARD_* bits since the last call
struct pbuf *card_receive(void);            // the next frame; NULL: no more, or no memory

void net_init(void);                        // power-on
void net_poll(void);
void net_restart(void);                     // soft reset

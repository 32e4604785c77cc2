// lwIP on the network card, and the class network.LAN in front of it, as on boards with
// Ethernet: LAN().active(True) starts DHCP, isconnected() says that there is an address.
#include "board.h"
#include "net.h"
#include "py/mperrno.h"
#include "py/mphal.h"
#include "py/runtime.h"
#if MICROPY_PY_LWIP
#include "extmod/modnetwork.h"
#include "lwip/dhcp.h"
#include "lwip/etharp.h"
#include "lwip/init.h"
#include "lwip/netif.h"
#include "lwip/timeouts.h"
#include "netif/ethernet.h"

static struct netif lan;
static bool present, polling;

u32_t sys_now(void) {
    return mp_hal_ticks_ms();
}

// --- between card and lwIP --------------------------------------------------------------

static err_t lan_output(struct netif *netif, struct pbuf *frame) {
    return card_send(frame) ? ERR_OK : ERR_BUF;
}

static err_t lan_setup(struct netif *netif) {
    netif->name[0] = 'e';
    netif->name[1] = 'n';
    netif->hwaddr_len = 6;
    netif->mtu = 1500;
    netif->flags = NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_ETHERNET;
    netif->output = etharp_output;
    netif->linkoutput = lan_output;
    netif->hostname = mod_network_hostname_data;
    return ERR_OK;
}

static void lan_link(void) {
    if (card_link()) {
        netif_set_link_up(&lan);
    } else {
        netif_set_link_down(&lan);
    }
}

// Whoever waits inside lwIP's callbacks comes back here: then it is polling already.
void net_poll(void) {
    if (!present || polling) {
        return;
    }
    polling = true;
    int asks = card_asks();
    if (asks & CARD_LINK) {
        lan_link();
    }
    if (asks & CARD_FRAMES) {
        for (struct pbuf *frame; (frame = card_receive()) != NULL;) {
            if (lan.input(frame, &lan) != ERR_OK) {
                pbuf_free(frame);
            }
        }
    }
    sys_check_timeouts();
    polling = false;
}

void net_init(void) {
    lwip_init();
    uint8_t mac[6];
    present = card_open(mac);
    if (present) {
        netif_add_noaddr(&lan, NULL, lan_setup, ethernet_input);
        memcpy(lan.hwaddr, mac, sizeof(mac));
        netif_set_default(&lan);
        lan_link();
    }
}

void net_restart(void) {
    mod_network_init();
}

// --- network.LAN ------------------------------------------------------------------------

static const mp_obj_base_t lan_object = { &network_lan_type };

static mp_obj_t lan_make_new(const mp_obj_type_t *type, size_t n_args, size_t n_kw,
    const mp_obj_t *args) {
    mp_arg_check_num(n_args, n_kw, 0, 0, false);
    if (!present) {
        mp_raise_OSError(MP_ENODEV);
    }
    mod_network_register_nic(MP_OBJ_FROM_PTR(&lan_object));
    return MP_OBJ_FROM_PTR(&lan_object);
}

// active(): whether it is up; active(True) asks for an address, active(False) gives it back.
static mp_obj_t lan_active(size_t n_args, const mp_obj_t *args) {
    if (n_args == 1) {
        return mp_obj_new_bool(netif_is_up(&lan));
    }
    if (mp_obj_is_true(args[1]) && !netif_is_up(&lan)) {
        netif_set_up(&lan);
        dhcp_start(&lan);
    } else if (!mp_obj_is_true(args[1]) && netif_is_up(&lan)) {
        dhcp_release_and_stop(&lan);
        netif_set_down(&lan);
    }
    return mp_const_none;
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(lan_active_obj, 1, 2, lan_active);

static mp_obj_t lan_isconnected(mp_obj_t self) {
    bool address = !ip4_addr_isany_val(*netif_ip4_addr(&lan));
    return mp_obj_new_bool(netif_is_up(&lan) && netif_is_link_up(&lan) && address);
}
static MP_DEFINE_CONST_FUN_OBJ_1(lan_isconnected_obj, lan_isconnected);

// ifconfig(): (address, mask, gateway, DNS); ifconfig(tuple), ifconfig("dhcp").
static mp_obj_t lan_ifconfig(size_t n_args, const mp_obj_t *args) {
    return mod_network_nic_ifconfig(&lan, n_args - 1, args + 1);
}
static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(lan_ifconfig_obj, 1, 2, lan_ifconfig);

static mp_obj_t lan_ipconfig(size_t n_args, const mp_obj_t *args, mp_map_t *kwargs) {
    return mod_network_nic_ipconfig(&lan, n_args - 1, args + 1, kwargs);
}
static MP_DEFINE_CONST_FUN_OBJ_KW(lan_ipconfig_obj, 1, lan_ipconfig);

static mp_obj_t lan_config(mp_obj_t self, mp_obj_t name) {
    if (mp_obj_str_get_qstr(name) != MP_QSTR_mac) {
        mp_raise_ValueError(MP_ERROR_TEXT("unknown config param"));
    }
    return mp_obj_new_bytes(lan.hwaddr, sizeof(lan.hwaddr));
}
static MP_DEFINE_CONST_FUN_OBJ_2(lan_config_obj, lan_config);

static const mp_rom_map_elem_t lan_locals_table[] = {
    { MP_ROM_QSTR(MP_QSTR_active), MP_ROM_PTR(&lan_active_obj) },
    { MP_ROM_QSTR(MP_QSTR_isconnected), MP_ROM_PTR(&lan_isconnected_obj) },
    { MP_ROM_QSTR(MP_QSTR_ifconfig), MP_ROM_PTR(&lan_ifconfig_obj) },
    { MP_ROM_QSTR(MP_QSTR_ipconfig), MP_ROM_PTR(&lan_ipconfig_obj) },
    { MP_ROM_QSTR(MP_QSTR_config), MP_ROM_PTR(&lan_config_obj) },
};
static MP_DEFINE_CONST_DICT(lan_locals, lan_locals_table);
MP_DEFINE_CONST_OBJ_TYPE(
    network_lan_type, MP_QSTR_LAN, MP_TYPE_FLAG_NONE,
    make_new, lan_make_new, locals_dict, &lan_locals);

#else // a machine without network

void net_init(void) {
}

void net_restart(void) {
}

void net_poll(void) {
}

#endif

"""A `machine` and a `network` that remember what was done to them."""


class Slept(Exception):
    """The machine is asleep: nothing of the program goes on."""


class Rtc:
    def __init__(self, machine):
        self._machine = machine

    def memory(self, data=None):
        if data is None:
            return self._machine.rtc_memory
        self._machine.rtc_memory = bytes(data)
        return None

    def datetime(self, fields):
        self._machine.set_to = fields


class Wdt:
    def __init__(self, timeout):
        self.timeout = timeout
        self.fed = 0

    def feed(self):
        self.fed += 1


class Machine:
    PWRON_RESET, DEEPSLEEP_RESET = 1, 4

    def __init__(self):
        self.rtc_memory = b""
        self.cause = self.PWRON_RESET
        self.deep = []
        self.light = []
        self.dogs = []
        self.set_to = None

    def RTC(self):
        return Rtc(self)

    def WDT(self, timeout):
        self.dogs.append(Wdt(timeout))
        return self.dogs[-1]

    def reset_cause(self):
        return self.cause

    def deepsleep(self, ms):
        self.deep.append(ms)
        self.cause = self.DEEPSLEEP_RESET
        raise Slept()

    def lightsleep(self, ms):
        self.light.append(ms)


class Wlan:
    """As ESP32 has it; its codes are those of the port."""

    PM_NONE, PM_POWERSAVE = 0, 1

    def __init__(self):
        self.calls = []
        self.on = False
        self.code = 1000
        self.broken = False

    def active(self, on=None):
        if on is None:
            return self.on
        self.calls.append("on" if on else "off")
        self.on = on
        return on

    def config(self, **fields):
        if "pm" in fields and self.broken:
            raise ValueError("unknown config param")
        for name in fields:
            self.calls.append("%s=%d" % (name, fields[name]))

    def connect(self, ssid, password=None):
        if self.broken:
            raise OSError("Wifi Internal Error")
        self.calls.append("connect")
        self.asked = (ssid, password)

    def disconnect(self):
        self.calls.append("disconnect")

    def isconnected(self):
        return self.code == 1010

    def status(self):
        return self.code


class Network:
    """With the names that a port has: "esp32" or "rp2"."""

    STA_IF = 0

    def __init__(self, port="esp32"):
        self.wlan = Wlan()
        if port == "esp32":
            self.STAT_IDLE, self.STAT_CONNECTING, self.STAT_GOT_IP = 1000, 1001, 1010
            self.STAT_NO_AP_FOUND, self.STAT_WRONG_PASSWORD = 201, 202
            self.STAT_ASSOC_FAIL, self.STAT_BEACON_TIMEOUT = 203, 200
            self.STAT_HANDSHAKE_TIMEOUT = 204
        else:
            self.STAT_IDLE, self.STAT_CONNECTING, self.STAT_GOT_IP = 0, 1, 3
            self.STAT_NO_AP_FOUND, self.STAT_WRONG_PASSWORD = -2, -3
            self.STAT_CONNECT_FAIL = -1
        wlan = self.wlan

        def make(interface):
            return wlan

        self.WLAN = Both(make)


class Both:
    """Called like a class, with its constants."""

    PM_NONE, PM_POWERSAVE = 0, 1

    def __init__(self, make):
        self._make = make

    def __call__(self, interface):
        return self._make(interface)

"""An MQTT 3.1.1 client: packets and session without I/O, and a Link over asyncio streams.

    from mpy_port.mqtt.client import MqttLink

Runs on MicroPython and CPython. QoS 0 and 1; QoS 2 is not there, because no one of ours
needs it: records carry an identity of their own.
"""

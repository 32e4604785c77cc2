"""Joins standard input and output, which are one socket, to a port of this machine.

QEMU starts it for each connection that a guest makes to the one address it may reach.
"""

import os
import socket
import sys
import threading


def pump(read, write, done) -> None:
    try:
        while data := read(65536):
            write(data)
    except OSError:
        pass
    done()


def main() -> None:
    sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def put(data: bytes) -> None:
        while data:
            data = data[os.write(1, data) :]

    up = threading.Thread(
        target=pump, args=(lambda n: os.read(0, n), sock.sendall, lambda: os._exit(0)), daemon=True
    )
    up.start()
    pump(sock.recv, put, lambda: os._exit(0))


main()

"""The device's half of memory.py, and all of it that is not in ROMFS.

    micropython -m memory import FILE              a JSON list of modules
    micropython -m memory run CONFIG COUNT EVERY NATIVE

run: the whole device, from `unix_board`, makes COUNT outcomes and marks the heap after
every EVERY. NATIVE bytes are taken for native kernels, which this interpreter keeps outside
its heap and boards do not. With ROM=FILE in the environment the modules come from that
image, mounted as ROMFS.
"""

import gc
import os
import sys


def main():
    # Collect early: else what lives long is laid down all over the heap, between garbage.
    gc.threshold(4096)
    gc.collect()
    print('["mark", "start", %d]' % gc.mem_alloc())
    path = os.getenv("ROM")
    if path:
        import vfs

        # The bytes of the image stand for flash: the host takes them off every figure.
        before = gc.mem_alloc()
        with open(path, "rb") as file:
            image = bytearray(file.seek(0, 2))
            file.seek(0)
            file.readinto(image)
        vfs.mount(vfs.VfsRom(image), "/rom")
        sys.path[:0] = ["/rom", "/rom/lib"]
        gc.collect()
        print('["rom", %d]' % (gc.mem_alloc() - before))
    import memory_run

    if sys.argv[1] == "import":
        with open(sys.argv[2]) as file:
            memory_run.imports(file.read())
    else:
        memory_run.run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))


main()

# First thing after power-on and after every soft reset, as on esp32: the file system.
import qemu
import vfs

flash = qemu.flash()
if flash:
    try:
        vfs.mount(vfs.VfsLfs2(flash, progsize=qemu.PROGSIZE), "/")
    except OSError:
        # Only a blank flash is formatted: whoever has a broken file system may want it back.
        if qemu.blank():
            vfs.VfsLfs2.mkfs(flash, progsize=qemu.PROGSIZE)
            vfs.mount(vfs.VfsLfs2(flash, progsize=qemu.PROGSIZE), "/")
        else:
            print("The file system in flash is corrupt; it was not mounted.")

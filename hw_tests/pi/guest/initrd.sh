#!/bin/busybox sh
# From the initrd: drivers, then the disk with Debian on it.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for driver in /drivers/*.ko; do
    $b insmod "$driver" || echo "initrd: $driver does not load"
done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do
    $b sleep 0.1
    tries=$((tries + 1))
done
$b mount -t ext4 -o ro /dev/vda /root || exec $b sh
exec $b switch_root /root /init.sh

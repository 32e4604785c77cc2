#!/bin/busybox sh
# From the initrd: Debian read-only below, the state disk on top, then systemd.
# Disks: vda Debian, vdb /opt/edge, vdc a tar file with the job, vdd everything that changes.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for driver in /drivers/*.ko; do
    $b insmod "$driver" || echo "initrd: $driver does not load"
done
tries=0
while [ ! -b /dev/vdd ] && [ $tries -lt 100 ]; do
    $b sleep 0.1
    tries=$((tries + 1))
done
$b mount -t ext4 -o ro /dev/vda /lower || exec $b sh
$b mount -t ext4 /dev/vdd /state || exec $b sh
$b mkdir -p /state/upper /state/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/state/upper,workdir=/state/work root /root
$b mount -t ext4 -o ro /dev/vdb /root/opt/edge
$b mount -t tmpfs job /root/job
$b tar -xf /dev/vdc -C /root/job
exec $b switch_root /root /sbin/init

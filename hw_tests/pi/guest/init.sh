#!/bin/sh
# The first process. Disks: vda Debian (read-only), vdb /opt/edge (read-only), vdc a tar file
# with the job, vdd /state, which survives power cuts, vde takes a tar file of results.
export PATH=/opt/edge/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH=/opt/edge
export PYTHONDONTWRITEBYTECODE=1 HOME=/tmp LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
mount -t tmpfs job /job
mount -t ext4 -o ro /dev/vdb /opt/edge
mount -t ext4 /dev/vdd /state
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = ledger ] && ln -s "${port##*/}" /dev/ledger
done
echo "STAGE up $(cut -d' ' -f1 /proc/uptime)"
cd /job && tar -xf /dev/vdc && sh ./run.sh
echo "STAGE done $? $(cut -d' ' -f1 /proc/uptime)"
cd /
sync
umount /state
busybox poweroff -f

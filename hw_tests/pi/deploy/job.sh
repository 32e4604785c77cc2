#!/bin/sh
# What /job/run.sh says, with its output on the console; then off.
export PATH=/opt/edge/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH=/opt/edge
export PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = ledger ] && ln -sf "${port##*/}" /dev/ledger
done
echo "STAGE up $(cut -d' ' -f1 /proc/uptime)"
cd /job && sh ./run.sh
echo "STAGE done $? $(cut -d' ' -f1 /proc/uptime)"
sync
systemctl poweroff --no-block

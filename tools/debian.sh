#!/bin/sh
# Install Debian packages, or name them (exit 3).
#   sh tools/debian.sh [PACKAGE ...]      by default what the tests use beside Python
set -eu
missing=""
for package in ${*:-mosquitto postgresql systemd}; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=no
if [ "$(id -u)" = 0 ]; then as_root=""; elif sudo -n true 2>/dev/null; then as_root="sudo"; fi
if [ "$as_root" = no ]; then
    echo "Missing Debian packages. As root: apt-get install --no-install-recommends$missing" >&2
    exit 3
fi
echo "Installing Debian packages:$missing"
# Tests start their own brokers: RUNLEVEL=1 keeps the package from starting one.
$as_root apt-get update -qq
$as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
    apt-get install -y -qq --no-install-recommends $missing >/dev/null

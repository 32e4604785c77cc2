#!/bin/sh
# Make the virtual environment, and install what Debian has to give.
#   sh tools/setup.sh VENV
# Needs git, make and python3-venv. Run again at any time: it only adds what is missing.
set -eu
venv=$1
packages="mosquitto"

missing=""
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
        missing="$missing $package"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then sudo=""; elif sudo -n true 2>/dev/null; then sudo="sudo"; else sudo="no"; fi
    if [ "$sudo" = no ]; then
        echo "Missing Debian packages. As root: apt-get install --no-install-recommends$missing" >&2
        exit 3
    fi
    echo "Installing$missing"
    # The broker is started by tests and demo themselves, never as a service.
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

python=""
for candidate in python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "No Python >= 3.11 with venv found. As root: apt-get install python3-venv" >&2
    exit 3
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "Installing Python packages into $venv"
"$venv/bin/pip" install -q --disable-pip-version-check -c constraints.txt -e '.[gateway,broker,test]'
touch "$venv/.ready"

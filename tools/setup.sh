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
    as_root=no
    if [ "$(id -u)" = 0 ]; then as_root=""; elif sudo -n true 2>/dev/null; then as_root="sudo"; fi
    if [ "$as_root" = no ]; then
        echo "Missing Debian packages. As root: apt-get install --no-install-recommends$missing" >&2
        exit 3
    fi
    echo "Installing Debian packages:$missing"
    # Tests and demo start their own brokers: RUNLEVEL=1 keeps the package from starting one.
    $as_root apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

python=""
for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
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
"$venv/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r constraints.txt
"$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
touch "$venv/.ready"

#!/bin/sh
# Make the virtual environment with the exact packages of constraints.txt.
#   sh tools/setup.sh VENV
# Run again at any time: it only adds what is missing.
set -eu
venv=$1
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

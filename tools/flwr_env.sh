#!/bin/sh
# Make an environment with flwr, against which benchmarks/federated.py checks its averaging.
# 470 MB, and it pins web libraries to versions that are not ours: an environment of its own.
#   sh tools/flwr_env.sh [DIRECTORY]      default .cache/flwr-venv
set -eu
here=$(dirname "$0")
venv=${1:-.cache/flwr-venv}
[ -e "$venv/.ready" ] && exit 0
python=""
for candidate in python3.11 python3; do
    if command -v "$candidate" >/dev/null &&
        "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "The versions pinned for flwr are for Python 3.11 with venv; none was found." >&2
    exit 3
fi
mkdir -p "$(dirname "$venv")"
# Made beside its place and moved there, so that two at once do not meet.
rm -rf "$venv.$$"
"$python" -m venv "$venv.$$"
"$venv.$$/bin/python" -m pip install -q --disable-pip-version-check --require-hashes \
    --only-binary=:all: -r "$here/flwr.txt"
touch "$venv.$$/.ready"
mv -T "$venv.$$" "$venv" 2>/dev/null || rm -rf "$venv.$$"
[ -e "$venv/.ready" ]

#!/bin/sh
# Make an environment of its own for packages that cannot share the project's, from a list with
# hashes. The lists are for Python 3.11, and some packages of them have wheels for nothing newer.
#   sh tools/pinned_env.sh LIST DIRECTORY
#   tools/tflite_runtime.txt   tflite-runtime, which needs numpy < 2
#   tools/flwr.txt             flwr, against which benchmarks/federated.py checks its averaging:
#                              470 MB, and web libraries of versions that are not ours
set -eu
list=$1
venv=$2
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
    echo "$list is for Python 3.11 with venv; none was found." >&2
    exit 3
fi
mkdir -p "$(dirname "$venv")"
# Made beside its place and moved there, so that two at once do not meet.
rm -rf "$venv.$$"
"$python" -m venv "$venv.$$"
"$venv.$$/bin/python" -m pip install -q --disable-pip-version-check --require-hashes \
    --only-binary=:all: -r "$list"
touch "$venv.$$/.ready"
mv -T "$venv.$$" "$venv" 2>/dev/null || rm -rf "$venv.$$"
[ -e "$venv/.ready" ]

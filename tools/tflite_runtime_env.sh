#!/bin/sh
# Make an environment with tflite-runtime, which needs Python <= 3.11 and numpy < 2 and so
# cannot share the project's own.
#   sh tools/tflite_runtime_env.sh [DIRECTORY]      default .cache/tflite-runtime-venv
set -eu
venv=${1:-.cache/tflite-runtime-venv}
[ -e "$venv/.ready" ] && exit 0
python=""
for candidate in python3.11 python3.10 python3.9 python3; do
    if command -v "$candidate" >/dev/null &&
        "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info >= (3, 12))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "tflite-runtime needs Python 3.9, 3.10 or 3.11 with venv; none was found." >&2
    exit 3
fi
mkdir -p "$(dirname "$venv")"
# Made beside its place and moved there, so that two at once do not meet.
rm -rf "$venv.$$"
"$python" -m venv "$venv.$$"
"$venv.$$/bin/pip" install -q --disable-pip-version-check \
    "tflite-runtime==2.14.0" "numpy==1.26.4" "tqdm==4.70.1"
touch "$venv.$$/.ready"
mv -T "$venv.$$" "$venv" 2>/dev/null || rm -rf "$venv.$$"

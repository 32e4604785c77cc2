#!/bin/sh
# Renew constraints.txt: every package `make venv` installs, with version and hashes.
# Needs uv (a Python package); run it after changing a dependency in pyproject.toml.
set -eu
cd "$(dirname "$0")/.."
# backports-strenum: uv overlooks that newer ones refuse Python 3.11.
printf 'hatchling>=1.25\neditables>=0.5\nbackports-strenum<1.3\n' |
    uv pip compile -q --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url \
        --extra gateway --extra broker --extra dht --extra sql --extra train --extra boards --extra test pyproject.toml - -o constraints.txt

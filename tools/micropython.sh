#!/bin/sh
# Build what the tests need of MicroPython, and keep it in .cache/micropython:
#   mpy-cross        the compiler to .mpy files
#   micropython32    MicroPython for this machine with 32-bit words and 32-bit floats,
#                    asyncio frozen, hashlib, cryptolib and tls, as boards have them
#   stock-m3.elf     MicroPython's own firmware for QEMU's Cortex-M3 (mps2-an385)
#   stock-rv32.elf   the same for QEMU's 32-bit RISC-V (virt); both for counting instructions
#   qemu-rv32.elf    a board with flash, deep sleep and a modem's line on that machine, and
#   qemu-m3.elf      on the other: hw_tests/boards/README.md
#   source           MicroPython's source tree
#
#   sh tools/micropython.sh [PRODUCT ...]        all of them by default
#
# The source is Debian's source package, whose .dsc is pinned below: from the suite that
# has it, on the mirror this machine already uses, through an apt state of our own, so the
# machine's lists and sources stay as they are. MICROPYTHON_DIR=tree takes a source tree
# instead; nothing is written into it. Every product is kept under the hash of its source,
# recipe and compiler: a second run takes a second.
#   MICROPYTHON_CACHE  another place for the cache     JOBS  parallel compilations
# Exit 3 when something of the environment is missing; it is named.
set -eu
cd "$(dirname "$0")/.."
top=$PWD
cache=${MICROPYTHON_CACHE:-$top/.cache/micropython}
jobs=${JOBS:-$(nproc)}

suite=trixie
# Package, version, sha256 of its .dsc, which in turn pins the tarballs.
micropython_pin="micropython 1.25.0+ds-1 8c7c406be88a6f3bc19e694eb0bbc5841112243fdf2b5a296e000d8fdc5f3c34"
# AES and TLS. A security update replaces this version on the mirrors; then the archive's
# signature alone vouches for the new one, and this script says so.
mbedtls_pin="mbedtls 3.6.6-0.1~deb13u1 eb9ed1adbbddcb0d00276fac6fcee0056c64ce01481c2522a16dca75792eb5eb"
# Sockets for qemu-rv32.elf; likewise.
lwip_pin="lwip 2.2.1+dfsg1-1+deb13u1 07ecb7122b2882a5265c6d1413947dd9a054d5ae25150b7042885d3f3d0b5aad"

fail() { echo "micropython: $*" >&2; exit 3; }
hash_of() { sha256sum | cut -c1-16; }

# --- the source ------------------------------------------------------------------------

apt() {
    tool=$1
    shift
    user=$(id -un)
    "$tool" -q -o Dir::State="$cache/apt" -o Dir::State::status=/var/lib/dpkg/status \
        -o Dir::Cache="$cache/apt/cache" -o Dir::Etc::sourcelist="$cache/apt/sources.list" \
        -o Dir::Etc::sourceparts=/dev/null -o APT::Sandbox::User="$user" "$@"
}

# The mirrors in this machine's own sources that carry its own Debian release.
mirrors() {
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # shellcheck disable=SC2016  # apt replaces $(SITE), not the shell
    apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v release="$release" '
            ($2 == release || $2 ~ /^(old)*stable$/ || $2 ~ /^(testing|sid|unstable)$/) \
                && $3 == "main" && !seen[$1]++ { print $1 }'
}

# Lists of the source packages of $suite, from the first mirror that has them.
apt_ready() {
    [ ! -e "$cache/apt/ready" ] || return 0
    command -v apt-get >/dev/null ||
        fail "no apt-get here; set MICROPYTHON_DIR to a MicroPython source tree"
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/cache/archives/partial"
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    option=""
    [ ! -e "$keys" ] || option="[signed-by=$keys] "
    for site in $(mirrors); do
        echo "deb-src ${option}$site $suite main" >"$cache/apt/sources.list"
        if apt apt-get update >"$cache/apt/log" 2>&1 &&
            apt apt-cache showsrc micropython 2>/dev/null | grep -q '^Package: micropython$'; then
            touch "$cache/apt/ready"
            return 0
        fi
    done
    [ ! -e "$cache/apt/log" ] || tail -3 "$cache/apt/log" >&2
    fail "no mirror of this machine has the source packages of Debian $suite." \
        "Set MICROPYTHON_DIR to a MicroPython source tree (1.25 or newer)"
}

# fetch NAME VERSION SHA256 strict|vouched: downloads the package's files to $cache/dsc/NAME
# and prints the sha256 of its .dsc.
fetch() {
    at=$cache/dsc/$1
    mkdir -p "$at"
    dsc=$at/$1_$2.dsc
    if [ "$4" = vouched ] && [ -e "$at/instead-of-$2" ]; then
        dsc=$(echo "$at/$1"_*.dsc)
    elif ! echo "$3  $dsc" | sha256sum -c --status 2>/dev/null; then
        apt_ready
        rm -f "$at"/*
        if (cd "$at" && apt apt-get source --download-only "$1=$2" >log 2>&1); then
            echo "$3  $dsc" | sha256sum -c --status || fail "$1_$2.dsc is not the pinned one"
        else
            # The lists may be older than the mirror: get them again next time.
            rm -f "$cache/apt/ready"
            [ "$4" = vouched ] || { tail -3 "$at/log" >&2; fail "the mirror has no $1 $2"; }
            (cd "$at" && apt apt-get source --download-only "$1" >log 2>&1) || return 1
            touch "$at/instead-of-$2"
            dsc=$(echo "$at/$1"_*.dsc)
            echo "micropython: $(basename "$dsc") instead of $2, signed by the archive" >&2
        fi
    fi
    # The .dsc holds the sha256 of the tarballs.
    awk '/^Checksums-Sha256:/ {on = 1; next} /^[^ ]/ {on = 0} on {print $1 "  " $3}' "$dsc" |
        (cd "$at" && sha256sum -c --status) || { rm -rf "$at"; fail "$1: a damaged download"; }
    sha256sum "$dsc" | cut -d' ' -f1
}

source_tree() {
    if [ -n "${MICROPYTHON_DIR:-}" ]; then
        [ -e "$MICROPYTHON_DIR/py/py.mk" ] || fail "MICROPYTHON_DIR holds no MicroPython source"
        tree=$(cd "$MICROPYTHON_DIR" && pwd)
        tree_id=$(cd "$tree" && find py extmod shared lib drivers mpy-cross ports/unix ports/qemu \
            -name 'build*' -prune -o -name '*.pyc' -prune -o -type f -print0 |
            sort -z | xargs -0 sha256sum | hash_of)
    else
        micropython_id=$(fetch $micropython_pin strict)
        # Else the build would take its name from the repository around it, and the date.
        export MICROPY_GIT_TAG=v1.25.0 MICROPY_GIT_HASH=debian SOURCE_DATE_EPOCH=1744675200
        if ! mbedtls_id=$(fetch $mbedtls_pin vouched); then
            mbedtls_id=none
        fi
        tree_id=$(echo "$micropython_id $mbedtls_id" | hash_of)
        tree=$cache/source-$tree_id
        if [ ! -d "$tree" ]; then
            rm -rf "$cache/unpack"
            mkdir -p "$cache/unpack/mbedtls"
            tar -xf "$cache"/dsc/micropython/*.orig.tar.* -C "$cache/unpack" \
                --one-top-level=tree --strip-components=1
            if [ "$mbedtls_id" != none ]; then
                # Where an upstream tree has it as a submodule.
                mkdir -p "$cache/unpack/tree/lib/mbedtls"
                tar -xf "$cache"/dsc/mbedtls/*.orig.tar.* -C "$cache/unpack/tree/lib/mbedtls" \
                    --strip-components=1
            fi
            mv "$cache/unpack/tree" "$tree"
            rm -rf "$cache/unpack"
        fi
    fi
    [ -e "$tree/lib/mbedtls/library/aes.c" ] ||
        echo "micropython: no mbedtls source: micropython32 gets no cryptolib and no tls" >&2
    ln -sfn "$tree" "$cache/source"
}

# --- the products ----------------------------------------------------------------------

# need COMMAND PACKAGE...: installs the packages when the command is missing.
need() {
    command=$1
    shift
    command -v "$command" >/dev/null || sh tools/debian.sh "$@"
}

# build PRODUCT FILE DIRECTORY MAKE-ARGUMENT...: FILE of the build becomes the product.
build() {
    product=$1 file=$2 directory=$3
    shift 3
    key=$({
        echo "$tree_id ${MICROPY_GIT_TAG:-} $directory $*" | sed "s|$top||g"
        $compiler --version
        cat /dev/null $inputs
    } | hash_of)
    kept=$cache/$product-$key
    if [ ! -e "$kept/$product" ]; then
        echo "micropython: building $product"
        start=$(date +%s)
        rm -rf "$cache/build-$product"
        if ! MICROPY_MPYCROSS="$cross" nice make -C "$tree/$directory" -j"$jobs" \
            BUILD="$cache/build-$product" "$@" >"$cache/$product.log" 2>&1; then
            tail -20 "$cache/$product.log" >&2
            fail "$product did not build; the whole log: .cache/micropython/$product.log"
        fi
        mkdir -p "$kept"
        cp "$cache/build-$product/$file" "$kept/$product"
        rm -rf "$cache/build-$product"
        echo "micropython: $product, $(stat -c %s "$kept/$product") bytes," \
            "$(($(date +%s) - start)) s"
    fi
    ln -sfn "$product-$key/$product" "$cache/$product"
}

mpy_cross() {
    need make make
    need gcc gcc libc6-dev
    compiler=gcc inputs="" cross=""
    build mpy-cross mpy-cross mpy-cross
    cross=$(readlink -f "$cache/mpy-cross")
}

unix32() {
    mpy_cross
    echo 'int main(void) { return 0; }' >"$cache/m32.c"
    gcc -m32 "$cache/m32.c" -o "$cache/m32" 2>/dev/null || {
        apt-cache show gcc-multilib >/dev/null 2>&1 || fail "gcc has no -m32 on this machine"
        sh tools/debian.sh gcc-multilib
    }
    rm -f "$cache/m32" "$cache/m32.c"
    compiler=gcc inputs=$(echo "$top"/tools/micropython/unix32/*)
    build micropython32 micropython ports/unix VARIANT_DIR="$top/tools/micropython/unix32"
}

# build_m3 PRODUCT INPUTS MAKE-ARGUMENT...
build_m3() {
    firmware=$1 files=$2
    shift 2
    mpy_cross
    need arm-none-eabi-gcc gcc-arm-none-eabi libnewlib-arm-none-eabi
    need qemu-system-arm qemu-system-arm
    compiler=arm-none-eabi-gcc inputs=$files
    build "$firmware" firmware.elf ports/qemu "$@"
}

# build_rv32 PRODUCT INPUTS MAKE-ARGUMENT...
build_rv32() {
    firmware=$1 files=$2
    shift 2
    mpy_cross
    need riscv64-unknown-elf-gcc gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf
    qemu=qemu-system-misc
    apt-cache show qemu-system-riscv >/dev/null 2>&1 && qemu=qemu-system-riscv
    need qemu-system-riscv32 "$qemu"
    compiler=riscv64-unknown-elf-gcc inputs=$files
    # Some compilers hold no libraries for the newer spelling of the same instruction set.
    case $($compiler -march=rv32imac_zicsr -mabi=ilp32 -print-libgcc-file-name) in
    *rv32*) ;;
    *) set -- "$@" RV32_ARCH=rv32imac RV32_ABI="ilp32 -misa-spec=2.2" ;;
    esac
    build "$firmware" firmware.elf ports/qemu "$@"
}

# Without the frozen modules that MicroPython's own test suite adds.
stock_m3() { build_m3 stock-m3.elf "" BOARD=MPS2_AN385 FROZEN_MANIFEST=; }
stock_rv32() { build_rv32 stock-rv32.elf "" BOARD=VIRT_RV32 FROZEN_MANIFEST=; }

# lwIP's source, in $lwip/lwip; MicroPython's tree is left as it is.
lwip_tree() {
    lwip_id=$(fetch $lwip_pin vouched) || fail "no source of lwIP: qemu-rv32.elf needs it"
    lwip=$cache/lwip-$(echo "$lwip_id" | hash_of)
    [ ! -d "$lwip" ] || return 0
    rm -rf "$cache/unpack"
    tar -xf "$cache"/dsc/lwip/*.orig.tar.* -C "$cache" --one-top-level=unpack/lwip \
        --strip-components=1
    mv "$cache/unpack" "$lwip"
}

boards=$top/hw_tests/boards
board_files() { find "$boards" -type f ! -name '*.md' | LC_ALL=C sort; }
qemu_m3() {
    build_m3 qemu-m3.elf "$(board_files)" BOARD=QEMU_M3 BOARD_DIR="$boards/QEMU_M3"
}
qemu_rv32() {
    lwip_tree
    build_rv32 qemu-rv32.elf "$(board_files)" BOARD=QEMU_RV32 BOARD_DIR="$boards/QEMU_RV32" \
        LWIP_TOP="$lwip"
}

mkdir -p "$cache"
[ "$#" -gt 0 ] || set -- mpy-cross micropython32 stock-m3.elf stock-rv32.elf \
    qemu-m3.elf qemu-rv32.elf
exec 9>"$cache/lock"
flock 9
need python3 python3
need xz xz-utils
need bzip2 bzip2
source_tree
for wanted in "$@"; do
    case $wanted in
    source) ;;
    mpy-cross) mpy_cross ;;
    micropython32) unix32 ;;
    stock-m3.elf) stock_m3 ;;
    stock-rv32.elf) stock_rv32 ;;
    qemu-m3.elf) qemu_m3 ;;
    qemu-rv32.elf) qemu_rv32 ;;
    *) echo "micropython: no product $wanted" >&2; exit 2 ;;
    esac
done

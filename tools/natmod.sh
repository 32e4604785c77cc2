#!/bin/sh
# Build the native TFLite kernels: mpy_port/tflite/natmod/kernels_ARCH.mpy, 12 to 21 KB each.
#   sh tools/natmod.sh [ARCH ...]     by default every architecture that has a compiler here
# A board needs only the file of its own architecture, in that folder.
# Beside them kernels.json: SHA-256 of the sources and of each file, so that a build which is
# older than the sources is noticed (edge_agent/tools/bundle.py).
# All of it goes into a wheel that is built here; none of it is in the repository.
# Needs MicroPython's source (tools/micropython.sh gets it). A second run takes a second.
set -eu
cd "$(dirname "$0")/.."
top=$PWD
cache=${MICROPYTHON_CACHE:-$top/.cache/micropython}
home=mpy_port/tflite/natmod

sh tools/micropython.sh source mpy-cross
python=python3
$python -c 'import elftools' 2>/dev/null || {
    sh tools/debian.sh python3-pyelftools
    python=/usr/bin/python3
}

compiler_of() {
    case $1 in
    x86 | x64) echo gcc ;;
    arm*) echo arm-none-eabi-gcc ;;
    rv32imc) echo riscv64-unknown-elf-gcc ;;
    xtensa) echo xtensa-lx106-elf-gcc ;;
    xtensawin) echo xtensa-esp32-elf-gcc ;;
    *) echo "natmod: no architecture $1" >&2; exit 2 ;;
    esac
}

all=no
[ "$#" -gt 0 ] || { all=yes; set -- x64 x86 armv6m armv7m armv7emsp rv32imc xtensa xtensawin; }
for arch in "$@"; do
    compiler=$(compiler_of "$arch")
    if ! command -v "$compiler" >/dev/null; then
        case $arch in
        arm*) sh tools/debian.sh gcc-arm-none-eabi libnewlib-arm-none-eabi ;;
        rv32imc) sh tools/debian.sh gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf ;;
        *)
            echo "natmod: $arch left out: no $compiler here" >&2
            [ "$all" = yes ] || exit 3
            continue
            ;;
        esac
    fi
    mkdir -p "$cache/natmod"
    if ! nice make -C $home ARCH="$arch" MPY_DIR="$cache/source" PYTHON="$python" \
        MPY_CROSS="$cache/mpy-cross" MOD="kernels_$arch" \
        BUILD="$cache/natmod/$arch" >"$cache/natmod/$arch.log" 2>&1; then
        tail -20 "$cache/natmod/$arch.log" >&2
        echo "natmod: $arch did not build; the log: .cache/micropython/natmod/$arch.log" >&2
        exit 1
    fi
    "$python" - "$home" "$arch" "$($compiler -dumpversion)" <<'EOF'
import hashlib, json, pathlib, sys
home, arch, compiler = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
sources = hashlib.sha256()
for path in sorted([*home.glob("*.c"), *home.glob("*.h"), home / "Makefile"]):
    sources.update(path.read_bytes())
record = home / "kernels.json"
known = json.loads(record.read_text()) if record.exists() else {}
built = (home / f"kernels_{arch}.mpy").read_bytes()
known[arch] = {
    "sources": sources.hexdigest(),
    "sha256": hashlib.sha256(built).hexdigest(),
    "size": len(built),
    "compiler": "gcc " + compiler,
}
part = home / "kernels.json.part"
part.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
part.replace(record)
EOF
    echo "natmod: $home/kernels_$arch.mpy, $(stat -c %s $home/kernels_"$arch".mpy) bytes"
done

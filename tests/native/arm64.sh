#!/usr/bin/env bash
# Tests the NEON kernels, with and without dot products, under emulation on another machine. Needs
# g++-aarch64-linux-gnu and qemu-user. Usage: tests/native/arm64.sh [FOLDER for what is built]
set -euo pipefail
out=$(mkdir -p "${1:-build/arm64}" && cd "${1:-build/arm64}" && pwd)
cd "$(dirname "$0")/../../csrc"
cxx=(aarch64-linux-gnu-g++ -std=c++17 -O2 -Wall -Wextra -Werror -static -pthread -I.)
"${cxx[@]}" -march=armv8.2-a+dotprod -c kernels/quant_neon_dotprod.cpp -o "$out/dotprod.o"
"${cxx[@]}" ../tests/native/check_quant_kernels.cpp kernels/{quant_neon,quant_scalar,pack,dispatch}.cpp foundation/{quant_blocks,isa}.cpp \
  "$out/dotprod.o" -o "$out/check_quant_kernels"
"${cxx[@]}" ../tests/native/check_dense_kernels.cpp kernels/dense{,_neon,_scalar}.cpp mimi/matrix.cpp foundation/{isa,memory}.cpp \
  -o "$out/check_dense_kernels"
for isa in "" cortex-a53; do  # any CPU that qemu knows, and one without dot products
  echo "-- ${isa:-all extensions}"
  qemu-aarch64 ${isa:+-cpu "$isa"} "$out/check_quant_kernels"
  qemu-aarch64 ${isa:+-cpu "$isa"} "$out/check_dense_kernels"
done

#!/usr/bin/env bash
# Runs the end-to-end tests in meshes in which some pods have Linkerd's own proxy in place of weft-proxy.
# Usage: scripts/interop.sh PATH_OF_LINKERD2_PROXY [clients|servers|all]...
set -euo pipefail

proxy=$(realpath "${1:?usage: scripts/interop.sh PATH_OF_LINKERD2_PROXY [clients|servers|all]...}")
shift
sides=("$@")
[ "${#sides[@]}" -gt 0 ] || sides=(clients servers all)
cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
  echo "interop: the tests make network namespaces; run this as root" >&2
  exit 1
fi
command -v openssl >/dev/null || { echo "interop: openssl is missing; it makes the keys of Linkerd's proxy" >&2; exit 1; }

scripts/setup.sh all
# The tests start the programs from the directory that their own program is in.
cargo test --workspace --locked --no-run
failed=()
for side in "${sides[@]}"; do
  echo "interop: $proxy for $side"
  WEFT_INTEROP_PROXY=$proxy WEFT_INTEROP_SIDE=$side \
    cargo test --workspace --locked --no-fail-fast --test mesh --test programs --test load || failed+=("$side")
done
if [ "${#failed[@]}" -gt 0 ]; then
  echo "interop: failed for ${failed[*]}" >&2
  exit 1
fi
echo "interop: everything passed for ${sides[*]}"

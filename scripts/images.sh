#!/usr/bin/env bash
# images.sh PROGRAMS DIRECTORY: writes an image archive of each part into the directory, named after the version.
# `ctr -n k8s.io images import`, `docker load`, `podman load` and `skopeo copy oci-archive:` take them.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
programs=${1:?usage: images.sh PROGRAMS DIRECTORY} directory=${2:?usage: images.sh PROGRAMS DIRECTORY}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../Cargo.toml" | head -1)
registry=${WEFT_REGISTRY:-localhost/weft}

image() {
  local name=$1
  shift
  "$here/image.sh" "$directory/$name.tar" "$registry/$name:$version" "${@/#/$programs/}"
  printf '  %-36s %6.1f MB  %s\n' "$registry/$name:$version" "$(stat -c %s "$directory/$name.tar" | awk '{ print $1 / 1e6 }')" "$directory/$name.tar"
}
image proxy weft-proxy weft-init
image controller weft-controller
image cni weft-cni
image demo weft-demo

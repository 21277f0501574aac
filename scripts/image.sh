#!/usr/bin/env bash
# image.sh [--libraries] ARCHIVE NAME:TAG PROGRAM...: writes a container image made of static programs and nothing else,
# as an archive that `ctr images import`, `docker load`, `podman load` and `skopeo copy oci-archive:` take. The first
# program is the entry point. The same programs make the same octets. No engine is needed, only tar and sha256sum.
# With --libraries programs may be dynamic, as in tests: they are stripped, and what they are linked with goes along.
set -euo pipefail
libraries=
if [ "${1:-}" = --libraries ]; then
  libraries=yes
  shift
fi
archive=${1:?usage: image.sh [--libraries] ARCHIVE NAME:TAG PROGRAM...} name=${2:?name and tag are missing}
shift 2
[ "$#" -gt 0 ] || { echo "image.sh: no program is named" >&2; exit 1; }

case "$(uname -m)" in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) architecture=$(uname -m) ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root image=$work/image blobs=$work/image/blobs/sha256
mkdir -p "$root" "$blobs"

pack() { tar -C "$1" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=ustar -cf "$2" .; }
# Moves a file among the blobs and then prints "SIZE DIGEST": whoever reads that goes on at once.
blob() {
  local digest
  digest=$(sha256sum "$1" | cut -d' ' -f1)
  mv "$1" "$blobs/$digest"
  echo "$(stat -c %s "$blobs/$digest") $digest"
}

for program in "$@"; do
  if [ -n "$libraries" ]; then
    strip -o "$root/$(basename "$program")" "$program"
    chmod 755 "$root/$(basename "$program")"
    # "name => /path (address)", and the loader as "/path (address)".
    for library in $(ldd "$program" | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }'); do
      install -D -m 755 "$library" "$root$library"
    done
    continue
  fi
  if command -v readelf >/dev/null && readelf -l "$program" | grep -q INTERP; then
    echo "image.sh: $program is not static; there are no libraries in the image" >&2
    exit 1
  fi
  install -m 755 "$program" "$root/$(basename "$program")"
done
# Programs keep temporary files here, if the pod gives them none; volumes are mounted below /var/run.
mkdir -p "$root/tmp" "$root/etc" "$root/var/run"
chmod 1777 "$root/tmp"
printf 'root:x:0:0:root:/:/none\nnobody:x:65534:65534:nobody:/:/none\n' >"$root/etc/passwd"
printf 'root:x:0:\nnobody:x:65534:\n' >"$root/etc/group"
find "$root" -mindepth 0 -type d -not -name tmp -exec chmod 755 {} +
chmod 644 "$root/etc/passwd" "$root/etc/group"

pack "$root" "$work/layer.tar"
read -r layer_size layer < <(blob "$work/layer.tar")
printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/"],"Entrypoint":["/%s"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
  "$architecture" "$(basename "$1")" "$layer" >"$work/config.json"
read -r config_size config < <(blob "$work/config.json")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%s","size":%s}]}' \
  "$config" "$config_size" "$layer" "$layer_size" >"$work/manifest.json"
read -r manifest_size manifest < <(blob "$work/manifest.json")
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"},"platform":{"architecture":"%s","os":"linux"}}]}' \
  "$manifest" "$manifest_size" "$name" "${name##*:}" "$architecture" >"$image/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$image/oci-layout"
# What Docker before version 25 reads.
printf '[{"Config":"blobs/sha256/%s","RepoTags":["%s"],"Layers":["blobs/sha256/%s"]}]' "$config" "$name" "$layer" >"$image/manifest.json"
chmod -R u=rwX,go=rX "$image"
mkdir -p "$(dirname "$archive")"
pack "$image" "$archive.part"
mv "$archive.part" "$archive"

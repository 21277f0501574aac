#!/usr/bin/env bash
# Installs with apt what a target needs and this machine lacks, and says what and why.
# Usage: scripts/setup.sh build|demo|bench|kubernetes|all
set -euo pipefail

want=${1:?usage: scripts/setup.sh build|demo|bench|kubernetes|all}

# How to see that it is there | package | which targets need it | what for
needs='
cc                 | gcc              | build demo bench kubernetes all | compiles the C parts of the cryptography library
ld                 | binutils         | build demo bench all | links the binaries
nft                | nftables         | demo bench all       | redirects the traffic of pods to their proxy
iptables-legacy    | iptables         | all                  | shows the rules for kernels without nf_tables
ip                 | iproute2         | demo bench kubernetes all | makes network namespaces and links
newuidmap          | uidmap           | demo all             | gives the cluster of an ordinary user users of its own
nsenter            | util-linux       | bench kubernetes all | enters network namespaces
openssl            | openssl          | kubernetes all       | makes the certificates of the test cluster
patch              | patch            | kubernetes all       | applies the changes of a source package
xz                 | xz-utils         | kubernetes all       | unpacks a source package
python:pip         | python3-pip      | kubernetes           | fetches a compiler for the test cluster
curl               | curl             | demo all             | is the client in examples and tests
tcpdump            | tcpdump          | all                  | shows that nothing travels in the clear
nghttp             | nghttp2-client   | all                  | is an HTTP/2 client that the proxy must serve
h2load             | nghttp2-client   | bench all            | is an HTTP/2 client that the proxy must serve
nghttpd            | nghttp2-server   | all                  | is an HTTP/2 server behind the proxy
nginx              | nginx-light      | bench all            | is the server behind the proxies that are compared
haproxy            | haproxy          | bench all            | is the proxy to compare with
wrk                | wrk              | bench all            | makes HTTP/1.1 load
strace             | strace           | bench                | counts system calls
node               | nodejs           | all                  | is an HTTP/2 client and server that the proxy must serve
python:h2          | python3-h2       | all                  | is an HTTP/2 client and server that the proxy must serve
python:pip         | python3-pip      | all                  | installs Python programs that Debian does not have
mariadbd           | mariadb-server-core | all               | is a server that speaks first, in the mesh
mariadb            | mariadb-client-core | all               | is its client
postgresql:initdb  | postgresql       | all                  | is a server with a binary protocol, in the mesh
psql               | postgresql-client | all                 | is its client
redis-server       | redis-server     | all                  | is a server with a protocol of lines, in the mesh
redis-cli          | redis-tools      | all                  | is its client
exim4              | exim4-daemon-light | all                | is an SMTP server, in the mesh
sshd               | openssh-server   | all                  | is a server where both sides speak first, in the mesh
ssh                | openssh-client   | all                  | is its client
mosquitto          | mosquitto        | all                  | is a message broker, in the mesh
mosquitto_pub      | mosquitto-clients | all                 | is its client
kcat               | kcat             | all                  | is the client of a broker with a binary protocol, in the mesh
'

# What Debian does not have, or not as people use it: package of PyPI | what for. These go beside what is built.
pypi='
grpcio==1.85.1     | is a gRPC client and server that the proxy must serve
websockets==17.4   | is a WebSocket client and server that the proxy must serve
kosoku==0.1.0      | runs the Autobahn suite for WebSockets
'

if ! command -v cargo >/dev/null; then
  echo "setup: Rust is missing; install it with rustup, then run this again" >&2
  exit 1
fi

# System programs are in sbin, which is not on everybody's path.
export PATH="$PATH:/usr/sbin:/sbin"

present() {
  case "$1" in
    python:*) /usr/bin/python3 -c "import ${1#python:}" 2>/dev/null ;;
    postgresql:*) compgen -G "/usr/lib/postgresql/*/bin/${1#postgresql:}" >/dev/null ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

packages=()
while IFS='|' read -r probe package targets purpose; do
  probe=${probe// /} package=${package// /}
  [ -n "$probe" ] || continue
  case " $targets " in *" $want "*) ;; *) continue ;; esac
  present "$probe" && continue
  echo "setup: $package is missing; it${purpose}"
  case " ${packages[*]-} " in *" $package "*) ;; *) packages+=("$package") ;; esac
done <<<"$needs"

install_python() {
  local directory=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/python package purpose missing=()
  [ "$want" = all ] || return 0
  while IFS='|' read -r package purpose; do
    package=${package// /}
    [ -n "$package" ] || continue
    compgen -G "$directory/${package/==/-}.dist-info" >/dev/null && continue
    echo "setup: $package is missing; it${purpose}"
    missing+=("$package")
  done <<<"$pypi"
  [ "${#missing[@]}" -gt 0 ] || return 0
  /usr/bin/python3 -m pip install -q --no-warn-script-location --root-user-action=ignore --upgrade \
    --target "$directory" "${missing[@]}"
  echo "setup: installed ${missing[*]} in $directory"
}

if [ "${#packages[@]}" -eq 0 ]; then
  install_python
  exit 0
fi

if ! command -v apt-get >/dev/null; then
  echo "setup: this is not Debian or Ubuntu; please install: ${packages[*]}" >&2
  exit 1
fi
root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: run this as root, or install: ${packages[*]}" >&2
    exit 1
  fi
  root=(sudo)
fi

# Servers are wanted as programs only: nothing that apt brings may start by itself, now or at the next boot. What is
# there already stays: apt may not remove another mailer or database for them.
enabled() { { systemctl list-unit-files --no-legend --state=enabled 2>/dev/null || true; } | awk '{ print $1 }' | sort; }
before=$(enabled)
guard=/usr/sbin/policy-rc.d
if [ ! -e "$guard" ]; then
  printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$guard" >/dev/null
  "${root[@]}" chmod 755 "$guard"
  trap '"${root[@]}" rm -f "$guard"' EXIT
fi

echo "setup: installing ${packages[*]}"
install() { "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-remove --no-install-recommends "${packages[@]}"; }
log=$(mktemp)
if ! install >"$log" 2>&1 && ! { "${root[@]}" apt-get update -q >>"$log" 2>&1 && install >>"$log" 2>&1; }; then
  cat "$log" >&2
  rm -f "$log"
  echo "setup: apt could not install ${packages[*]}" >&2
  exit 1
fi
rm -f "$log"
install_python
for unit in $(comm -13 <(echo "$before") <(enabled)); do
  "${root[@]}" systemctl disable -q "$unit"
done
echo "setup: done"

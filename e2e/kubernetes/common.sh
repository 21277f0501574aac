# What the scripts of this folder share: where things are, and which programs they use. Sourced, not run.
#
# The cluster lives outside the checkout, so that it is built once on a machine: WEFT_KUBERNETES_DIR names the folder.

recipe=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
base=${WEFT_KUBERNETES_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/weft/kubernetes}

version=1.20.2
go_version=1.21.13

# Made by build.sh.
programs=$base/bin
debian=$base/debian
images=$base/images
sources=$base/gopath/src/k8s.io/kubernetes
# Made by up.sh, removed by down.sh.
run=$base/run
keys=$run/keys
logs=$run/logs

node_name=node1
node_address=10.77.0.1
pod_network=10.88.0.0/16
service_network=10.96.0.0/16
dns_address=10.96.0.10
api_port=${WEFT_KUBERNETES_PORT:-6443}
cgroup=weft-kubernetes

libraries=/usr/lib/$(uname -m)-linux-gnu
export PATH="$programs:$debian/usr/sbin:$debian/usr/bin:$debian/sbin:$PATH:/usr/sbin:/sbin"

# Runs a program out of Debian's packages with the libraries that came with it.
export LD_LIBRARY_PATH="$debian$libraries:$debian/lib/$(uname -m)-linux-gnu"
export XTABLES_LIBDIR="$debian$libraries/xtables"

fail() {
  echo "kubernetes: $*" >&2
  exit 1
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || fail "timed out waiting for $what; see $logs"
    sleep 0.2
  done
}

# start NAME COMMAND...: in the background, with a log and its process id kept.
start() {
  local name=$1
  shift
  "$@" >"$logs/$name.log" 2>&1 </dev/null &
  echo $! >"$run/$name.pid"
}

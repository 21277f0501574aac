#!/usr/bin/env bash
# up.sh [IMAGE...]: starts the cluster that build.sh made, with these image archives, and prints its kubeconfig's path.
# It is one node in namespaces of its own (network, mounts, processes); out here there is only 127.0.0.1:6443, another
# port with WEFT_KUBERNETES_PORT. One cluster runs at a time.
set -euo pipefail
. "$(dirname "$0")/common.sh"
[ "$(id -u)" -eq 0 ] || fail "the node needs root"
compgen -G "$base/built-*" >/dev/null || fail "it is not built; run make kubernetes"
if [ -e "$run/node.pid" ] && kill -0 "$(cat "$run/node.pid")" 2>/dev/null; then
  fail "it is running; stop it with $recipe/down.sh"
fi
"$recipe/down.sh" >/dev/null
mkdir -p "$run" "$logs" "$run/images"
"$recipe/certificates.sh"
for image in "$images"/*.tar "$@"; do ln -sf "$(realpath "$image")" "$run/images/"; done

setsid unshare --net --mount --pid --fork --uts --ipc --propagation private "$recipe/node.sh" \
  >"$logs/node.log" 2>&1 </dev/null &
holder=$!
echo "$holder" >"$run/holder.pid"
first_child() { awk '{ print $1 }' "/proc/$holder/task/$holder/children" 2>/dev/null; }
wait_for 10 "the node's first process" test -n "$(sleep 0.3; first_child)"
# Its number out here: nsenter -t $(cat node.pid) -n enters its network.
first_child >"$run/node.pid"
start forward socat "TCP-LISTEN:$api_port,bind=127.0.0.1,fork,reuseaddr" "UNIX-CONNECT:$run/api.sock"

export KUBECONFIG=$keys/admin.kubeconfig
wait_for 120 "the API server" kubectl get --raw /readyz
ready() { kubectl get node "$node_name" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' | grep -q True; }
wait_for 120 "the node" ready
echo "$KUBECONFIG"

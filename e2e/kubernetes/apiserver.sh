#!/usr/bin/env bash
# apiserver.sh stop|start: kills the API server of the cluster that up.sh started, or starts it again. Everything else runs on.
set -euo pipefail
. "$(dirname "$0")/common.sh"
node=$(cat "$run/node.pid" 2>/dev/null) && kill -0 "$node" 2>/dev/null || fail "it is not running"
inside() { nsenter -t "$node" -m -p -n -u -i -- "$@"; }
alive() { inside kill -0 "$(cat "$run/apiserver.pid")"; }
gone() { ! alive; }

case "${1:-}" in
  stop)
    inside kill -9 "$(cat "$run/apiserver.pid")"
    wait_for 10 "the end of the API server" gone
    ;;
  start)
    alive 2>/dev/null && fail "the API server is running"
    # Inside, since the number is one of the node's own.
    inside env "PATH=$PATH" "LD_LIBRARY_PATH=$LD_LIBRARY_PATH" bash -c \
      'setsid "$1/apiserver.sh" >>"$2/apiserver.log" 2>&1 </dev/null & echo $! >"$1/apiserver.pid"' - "$run" "$logs"
    export KUBECONFIG=$keys/admin.kubeconfig
    wait_for 120 "the API server" kubectl get --raw /readyz
    ;;
  *) fail "usage: apiserver.sh stop|start" ;;
esac

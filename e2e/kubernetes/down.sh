#!/usr/bin/env bash
# down.sh: ends what up.sh started, and leaves nothing of it behind.
set -euo pipefail
. "$(dirname "$0")/common.sh"
[ -d "$run" ] || exit 0

holder=$(cat "$run/holder.pid" 2>/dev/null || true)
node=$(cat "$run/node.pid" 2>/dev/null || true)
child() { awk '{ print $1 }' "/proc/$holder/task/$holder/children" 2>/dev/null || true; }
# With the first process of its namespace every other one ends; its mounts and its network go with them. A number that is
# somebody else's by now is left alone.
if [ -n "$holder" ] && [ -n "$node" ] && [ "$(child)" = "$node" ]; then
  kill -9 "$node"
  for _ in $(seq 100); do
    kill -0 "$holder" 2>/dev/null || break
    sleep 0.1
  done
fi
forward=$(cat "$run/forward.pid" 2>/dev/null || true)
if [ -n "$forward" ] && tr '\0' ' ' <"/proc/$forward/cmdline" 2>/dev/null | grep -q "$run/api.sock"; then
  kill "$forward"
fi
for group in /sys/fs/cgroup/*/"$cgroup"; do
  [ -d "$group" ] || continue
  # A group goes when its last process is gone, which may take a moment.
  for _ in $(seq 50); do
    find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    [ -d "$group" ] || break
    sleep 0.1
  done
done
rm -rf "$run"

#!/usr/bin/env bash
# Runs the demo application meshed, in the foreground, until Ctrl-C.
# Usage: scripts/demo.sh DIRECTORY_OF_THE_BINARIES
set -euo pipefail

bins=$(realpath "${1:?usage: scripts/demo.sh DIRECTORY_OF_THE_BINARIES}")
weft=$bins/weft
manifest=$(dirname "$0")/../demo/emojivoto.yml
manifest=$(realpath --relative-to=. "$manifest")
wait_seconds=120
# One vote a second, of which one in six fails: fewer votes than these show nothing typical.
collect_seconds=20

# The first free port from 8080 on.
port=8080
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
  echo "demo: port $port is taken, trying the next"
  port=$((port + 1))
done

echo "demo: weft up -f $manifest --publish $port:web-svc.emojivoto:80"
# A process group of its own: Ctrl-C comes to this script alone, which then asks for the end once.
set -m
"$weft" up -f "$manifest" --publish "$port:web-svc.emojivoto:80" &
up=$!
set +m

ending=
end() {
  [ -z "$ending" ] || return 0
  ending=yes
  echo
  echo "demo: stopping"
  kill -TERM "$up" 2>/dev/null || true
}
trap end INT TERM HUP
# However this script ends, the cluster ends with it.
trap 'kill -TERM "$up" 2>/dev/null || true' EXIT

running() { [ -z "$ending" ] && kill -0 "$up" 2>/dev/null; }

# Traffic flows when the web front, which calls the others, has a success rate and latencies.
flows() {
  "$weft" stat deploy -n emojivoto 2>/dev/null |
    awk '$1 == "voting" || $1 == "web" { for (i = 2; i <= NF; i++) if ($i == "-") exit 1; seen++ } END { exit seen != 2 }'
}

started=$SECONDS
while running && ! flows; do
  if [ $((SECONDS - started)) -ge "$wait_seconds" ]; then
    echo "demo: no traffic after $wait_seconds seconds; weft check says:" >&2
    "$weft" check || true
    break
  fi
  sleep 1
done

if running && flows; then
  echo "demo: traffic flows; collecting figures for $collect_seconds s"
  until=$((SECONDS + collect_seconds))
  while running && [ "$SECONDS" -lt "$until" ]; do sleep 1; done
fi

if running; then
  echo
  echo "\$ weft stat deploy -n emojivoto"
  "$weft" stat deploy -n emojivoto || true
  cat <<END

The application:  http://127.0.0.1:$port
The binaries:     export PATH="$bins:\$PATH"
Then, for example:
  weft edges deploy -n emojivoto                                  who talks to whom, and with which identity
  weft stat pod -n emojivoto -o wide                              figures by pod
  weft ps -A                                                      everything that runs
  weft exec -n emojivoto deploy/vote-bot -- curl -s web-svc/api/list
  weft logs -n emojivoto deploy/voting
  weft check                                                      is everything well?
Ctrl-C stops it all and leaves nothing behind.
END
fi

# wait returns early when a signal comes; the cluster's own end is what counts.
while kill -0 "$up" 2>/dev/null; do
  wait "$up" || true
done
code=0
wait "$up" || code=$?
[ -z "$ending" ] || exit 0
exit "$code"

# shellcheck shell=bash disable=SC2034,SC2154
# What the plays of a twin that follows the lab's host share: the host with its agent, the server
# on what is another machine to it, and checks that wait for what the twin becomes. They set `here`,
# `work`, `binaries`, `image` and the host's `name` first.

# Before `prepare` has programs of its own.
agent=$binaries/twin-agent
# shellcheck source=lab/src/play.sh
. "$here/src/play.sh"

way_pid=

host() { "$here/host" "$1" --name "$name" "${@:2}"; }
on_host() { host exec "$@"; }
on_guest() { guest "$name" "$@"; }
api() { curl -sf "$url/api/v1/$1"; }
following() { api "twins/$name" | jq -r ".following.$1 // empty"; }
version() { api "hosts/$name" | jq .version; }

current() { [ "$(following state)" = current ]; }
# The version that the host has now, or a later one, was seen in the twin.
reached() { [ "$(following version)" -ge "$1" ] && current; }
active() { [ "$(on_guest systemctl is-active "$1")" = "$2" ]; }
tells() { twin "$1" "$name" --json | jq -e "$2"; }

explain() {
    show_out
    api "twins/$name" | jq .following | sed 's/^/        | /'
}

# follows WHAT COMMAND...: the host's change shows in the twin, and then in what is told of it.
# Lists of packages that are read for the first time take a while.
follows() {
    local what=$1 now
    shift
    within 240000 "$what" "$@"
    now=$(version)
    within 120000 "… and is seen there by a look, which counts" reached "$now"
    printf '        the host'"'"'s change was seen in the twin after %s ms\n' "$(following took_ms)"
}

# The host's network leads nowhere; the server is at the same address of it as of this machine's.
open_way() {
    "$here/host" netns-exec --name "$name" socat "TCP-LISTEN:$port,bind=127.0.0.1,reuseaddr,fork" \
        "EXEC:nsenter --target $$ --net socat STDIO TCP\:127.0.0.1\:$port" >"$work/way.log" 2>&1 </dev/null &
    way_pid=$!
}

# watch LINE...: the agent begins, with these in its configuration beside the server.
watch() {
    host copy-in "$agent" /usr/local/bin/twin-agent
    on_host mkdir -p /etc/safetytwin
    printf '%s\n' "server: $url" "$@" | on_host sh -c 'cat >/etc/safetytwin/agent.yaml'
    on_host systemd-run --quiet --unit=safetytwin-agent --property=Type=notify /usr/local/bin/twin-agent
    within 20000 'the host is watched' version
}

end_following() {
    end_server
    [ -z "$way_pid" ] || kill "$way_pid" 2>/dev/null || true
    host down >/dev/null 2>&1 || true
}

# shellcheck shell=bash disable=SC2154
# What the labs with real guests share: checks, and a server with its image. They set `here`, `work`,
# `binaries` and `image` first.

# shellcheck source=lab/src/checks.sh
. "$here/src/checks.sh"

data=$work/data
server_pid=

twin() { timeout 900 "$binaries/twin" --server "$url" "$@" </dev/null; }
guest() { timeout 60 "$binaries/twin" --server "$url" ssh "$@" </dev/null; }
# says WORDS COMMAND...: the command succeeds, and says this.
says() {
    local words=$1
    shift
    if "$@" >"$work/said" 2>&1 && grep -qF -- "$words" "$work/said"; then return; fi
    cat "$work/said"
    return 1
}

start_server() {
    "$binaries/twin" server --config "$work/twin.yaml" --data-dir "$data" --port "$port" >>"$work/server.log" 2>&1 </dev/null &
    server_pid=$!
    until_true 30 curl -sf "$url/readyz" || { cat "$work/server.log"; return 1; }
}

# Ends the server as a power cut does. One that ended by itself before is a failure.
kill_server() {
    local status=0
    kill -KILL "$server_pid" || bad 'the server runs until it is killed'
    { wait "$server_pid" || status=$?; } 2>/dev/null
    server_pid=
    [ $status -eq 137 ] || bad "the server ends by our signal alone, not with status $status"
}

# with_config LINE...: the server, killed, is there again with other settings.
with_config() {
    kill_server
    printf '%s\n' "$@" >"$work/twin.yaml"
    start_server
}

# The processes of machines, each by what was written down of it.
processes() {
    local file pid
    for file in "$data"/twins/*/run/*/process; do
        [ -e "$file" ] || continue
        read -r pid _ <"$file"
        if grep -q qemu "/proc/$pid/comm" 2>/dev/null; then printf '%s\n' "$pid"; fi
    done
}

# What is left of machines and the server goes.
end_server() {
    local pid
    [ -z "$server_pid" ] || kill_server
    for pid in $(processes); do kill -KILL "$pid" 2>/dev/null || true; done
}

# The data directory with the image, the programs, and an address.
prepare() {
    mkdir -m 700 "$data"
    mkdir "$data/images" "$work/bin"
    # The agent comes to its machine by the seed; without what only debuggers read it is there sooner.
    cp "$binaries/twin" "$work/bin/twin"
    strip -o "$work/bin/twin-guest" "$binaries/twin-guest" 2>/dev/null || cp "$binaries/twin-guest" "$work/bin/twin-guest"
    binaries=$work/bin
    cp -al "$image" "$data/images/" 2>/dev/null || cp -a "$image" "$data/images/"
    port=$(free_port)
    url=http://127.0.0.1:$port
}

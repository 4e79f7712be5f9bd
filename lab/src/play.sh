# shellcheck shell=bash disable=SC2154
# What the labs with real guests share: checks that say what came true, and a server with its
# image. They set `work`, `binaries` and `image` first.

data=$work/data
server_pid=
passed=0
failed=0

now_ms() { date +%s%3N; }
ok() { passed=$((passed + 1)); printf 'ok      %s\n' "$*"; }
bad() { failed=$((failed + 1)); printf 'FAILED  %s\n' "$*"; }

# check WHAT COMMAND...: the command succeeds; says how long it took.
check() {
    local what=$1 begin
    shift
    begin=$(now_ms)
    if "$@" >"$work/out" 2>&1 </dev/null; then
        ok "$what ($(($(now_ms) - begin)) ms)"
    else
        bad "$what"
        sed 's/^/        | /' "$work/out" | tail -n 12
    fi
}

# refused WHAT WORDS COMMAND...: the command fails, and says why in these words.
refused() {
    local what=$1 words=$2
    shift 2
    if ! "$@" >"$work/out" 2>&1 </dev/null && grep -qF -- "$words" "$work/out"; then
        ok "$what"
    else
        bad "$what"
        sed 's/^/        | /' "$work/out" | tail -n 12
    fi
}

# until_true SECONDS COMMAND...: waits for it.
until_true() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.005
    done
}

twin() { timeout 900 "$binaries/twin" --server "$url" "$@" </dev/null; }
guest() { timeout 60 "$binaries/twin" --server "$url" ssh "$@" </dev/null; }
is() { [ "$("${@:2}")" = "$1" ]; }
# says WORDS COMMAND...: the command succeeds, and says this.
says() {
    local words=$1
    shift
    if "$@" >"$work/said" 2>&1 && grep -qF -- "$words" "$work/said"; then return; fi
    cat "$work/said"
    return 1
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
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

# What all came to, which is the exit status.
summary() {
    printf '\n%s passed, %s failed\n' "$passed" "$failed"
    [ "$failed" -eq 0 ]
}

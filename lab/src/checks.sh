# shellcheck shell=bash disable=SC2154
# What all plays share: checks that say what came true, and how long it took. They set `work` first.

passed=0
failed=0
# Limits hold on a machine that does nothing else. Where other plays run beside this one they are so
# many times as long, and what took longer than its limit says so.
patience=${SAFETYTWIN_PATIENCE:-1}

now_ms() { date +%s%3N; }
ok() { passed=$((passed + 1)); printf 'ok      %s\n' "$*"; }
bad() { failed=$((failed + 1)); printf 'FAILED  %s\n' "$*"; }
# What the command of a check said.
show_out() { sed 's/^/        | /' "$work/out" | tail -n 30; }
# What helps to see why something did not come true; a play may know more.
explain() { show_out; }

# check WHAT COMMAND...: the command succeeds; says how long it took.
check() {
    local what=$1 begin
    shift
    begin=$(now_ms)
    if "$@" >"$work/out" 2>&1 </dev/null; then
        ok "$what ($(($(now_ms) - begin)) ms)"
    else
        bad "$what"
        show_out
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
        show_out
    fi
}

# within MS WHAT COMMAND...: the command succeeds before the time is over; says when it did.
within() {
    local limit=$1 what=$2 begin took late=
    shift 2
    begin=$(now_ms)
    until "$@" >"$work/out" 2>&1 </dev/null; do
        if [ $(($(now_ms) - begin)) -gt $((limit * patience)) ]; then
            bad "$what (not within $((limit * patience)) ms)"
            explain
            return 0
        fi
        sleep 0.02
    done
    took=$(($(now_ms) - begin))
    [ $took -le "$limit" ] || late=", later than $limit"
    ok "$what ($took ms$late)"
}

# until_true SECONDS COMMAND...: waits for it.
until_true() {
    local until=$((SECONDS + $1 * patience))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.005
    done
}

# is WANTED COMMAND...: the command prints exactly that.
is() {
    local wanted=$1 seen
    shift
    seen=$("$@") || true
    [[ $seen == "$wanted" ]] || { printf 'wanted: %s\nseen:   %s\n' "$wanted" "$seen" && return 1; }
}

fails() { ! "$@"; }

# A port of 127.0.0.1 that nobody has.
free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# What all came to, which is the exit status.
summary() {
    printf '\n%s passed, %s failed\n' "$passed" "$failed"
    [ "$failed" -eq 0 ]
}

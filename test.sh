#!/usr/bin/env bash
# Sets up what the tests need and runs every check and test. CI runs this.
#
#   ./test.sh                    everything
#   ./test.sh --allow-missing    leave out what this machine can't run, and say so
#   ./test.sh STEP...            only these steps, one after the other; see --list
#
# Nothing is left out silently: what can't run is named, and fails the run. What mostly waits runs
# beside what mostly builds, so that a step may be told of later than it began.
set -euo pipefail

cd "$(dirname "$(readlink -f "$0")")"
root=$PWD

say() { printf '\n== %s\n' "$*"; }

# Each row one after the other, the two rows beside each other. What calls cargo is in the first.
building=(shell format lint unit openapi deny alerts sinks observe machines libvirt twins fuzz)
playing=(lab endtoend sync kills inventory service follow)
steps=("${building[@]}" "${playing[@]}")
allow_missing=no
chosen=()
while [ $# -gt 0 ]; do
    case $1 in
        --allow-missing) allow_missing=yes ;;
        --list) printf '%s\n' "${steps[@]}"; exit 0 ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) printf 'test.sh: unknown option %s\n' "$1" >&2; exit 64 ;;
        *) chosen+=("$1") ;;
    esac
    shift
done
for step in "${chosen[@]}"; do
    [[ " ${steps[*]} " == *" $step "* ]] || { printf 'test.sh: no step %s; see --list\n' "$step" >&2; exit 64; }
done

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}"
export CARGO_TERM_PROGRESS_WHEN=never
# Where the steps find the programs: what is built for tests meanwhile takes none away.
binaries=$CARGO_TARGET_DIR/tested
told=$(mktemp -d) # What each step said, and its end.
trap 'rm -rf "$told"' EXIT

# Says why a step can't run; a failure unless that is allowed.
missing() {
    printf 'MISSING: %s\n' "$*" >&2
    [ $allow_missing = yes ]
}

need_root() {
    [ "$(id -u)" -eq 0 ] || missing "$1 needs root, for namespaces of its own"
}

# The programs that steps run, once for all. All at once, since another selection has its
# dependencies built anew with other features.
programs() (
    flock 9
    [ ! -e "$told/.programs" ] || exit 0
    examples=(plan build_image by_ansible relay images)
    cargo build --locked --quiet --workspace --bins "${examples[@]/#/--example=}"
    rm -rf "$binaries"
    mkdir -p "$binaries/examples"
    cp --link "$CARGO_TARGET_DIR"/debug/twin{,-agent,-guest,-node} "$binaries/"
    cp --link "${examples[@]/#/$CARGO_TARGET_DIR/debug/examples/}" "$binaries/examples/"
    touch "$told/.programs"
) 9>"$told/.lock"

step_shell() {
    ensure_packages shellcheck
    local scripts=()
    # Everything that says it is for a shell, and what such read.
    mapfile -t scripts < <(git grep -lI -E '^#!.*(bash|/sh)$' -- ':!*.md' ':!*.j2'; git ls-files '*.sh')
    shellcheck -x -P SCRIPTDIR -P "$root" "${scripts[@]}"
}

step_format() { cargo fmt --all --check; }

step_lint() { cargo clippy --locked --workspace --all-targets --quiet -- -D warnings; }

step_unit() {
    # Images are made and looked at with the real tools, SSH keys are made, and a small disk is
    # mounted, to be full.
    ensure_packages qemu-utils e2fsprogs mount openssh-client mmdebstrap
    local skipped=()
    if [ "$(id -u)" -ne 0 ]; then
        missing 'the store on a full disk needs root, to mount a small one' || return 1
        skipped=(-- --skip a_full_disk --skip a_reserve_keeps)
    fi
    # The same cases each time, so that a change is judged by itself; PROPTEST_RNG_SEED has others.
    PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-1} cargo test --locked --workspace --quiet "${skipped[@]}"
}

step_openapi() {
    programs
    "$binaries/twin" openapi | diff -u openapi/safetytwin.json - || {
        printf 'openapi/safetytwin.json is not what the routes say; run: just openapi\n' >&2
        return 1
    }
}

# Advisories need a database from outside; what can be judged here is.
step_deny() {
    command -v cargo-deny >/dev/null || cargo install --locked --quiet cargo-deny
    # It looks at the manifests of all that is locked, also of what other systems need.
    cargo fetch --locked --quiet
    cargo deny --offline check bans licenses sources
}

# The rules that ship do what they say, and the dashboard is whole.
step_alerts() {
    ensure_packages prometheus jq
    promtool check rules packaging/prometheus/alerts.yaml
    promtool test rules packaging/prometheus/tests.yaml
    jq -e '.panels | length > 0' packaging/grafana/vms.json >/dev/null
}

step_lab() {
    need_root 'the lab' || return 1
    [ "$(id -u)" -eq 0 ] || return 0
    lab/test
    programs
    lab/identity "$binaries"
    lab/apply "$binaries"
    lab/ansible "$binaries"
    lab/relay "$binaries"
    lab/images "$binaries"
}

# The collectors against real systemd, D-Bus and Docker.
step_observe() {
    need_root 'the lab' || return 1
    [ "$(id -u)" -eq 0 ] || return 0
    lab/observe
}

# What every hypervisor has to do, with machines that boot.
step_machines() {
    ensure_virtualisation
    local image
    # The agent comes to its machine by the seed: an image with it would be built for each.
    programs
    image=$(lab/guest-image --check --seed-agent "$binaries/twin-guest")
    SAFETYTWIN_GUEST_IMAGE=$image cargo test --locked --quiet -p vm --test contract
}

# The same, by way of a libvirt daemon of the lab's own.
step_libvirt() {
    need_root 'a libvirt daemon' || return 1
    [ "$(id -u)" -eq 0 ] || return 0
    ensure_virtualisation
    ensure_packages pkg-config
    local image
    image=$(lab/guest-image)
    cargo clippy --locked --quiet -p vm -p server -p cli --features libvirt --all-targets -- -D warnings
    lab/libvirt up
    # shellcheck disable=SC2064 # the folder as it is now
    trap "'$root/lab/libvirt' down" EXIT
    SAFETYTWIN_GUEST_IMAGE=$image SAFETYTWIN_LIBVIRT_URI=$(lab/libvirt uri) \
        cargo test --locked --quiet -p vm --features libvirt --test contract libvirt
    programs
    cargo build --locked --quiet --workspace --bin twin --features cli/libvirt
    rm -rf "$binaries-libvirt"
    mkdir "$binaries-libvirt"
    cp --link "$CARGO_TARGET_DIR/debug/twin" "$binaries/twin-guest" "$binaries-libvirt/"
    lab/by-libvirt "$binaries-libvirt" "$image"
}

# The server's twins, with a guest that boots, and what goes wrong with them.
step_twins() {
    ensure_virtualisation
    local image
    programs
    image=$(lab/guest-image)
    lab/twins "$binaries" "$image"
    lab/faults "$binaries" "$image"
}

# A twin that follows its host, with a guest that boots and all of the host's packages in it.
step_follow() {
    need_root 'the lab' || return 1
    [ "$(id -u)" -eq 0 ] || return 0
    ensure_virtualisation
    local image
    programs
    image=$(lab/guest-image --as-host)
    lab/follow "$binaries" "$image"
}

# The packaged server's unit with twins, under real systemd; what each kind of network reaches; and
# twins of images from elsewhere.
step_service() {
    need_root 'the lab' || return 1
    [ "$(id -u)" -eq 0 ] || return 0
    ensure_virtualisation
    local image
    programs
    image=$(lab/guest-image)
    lab/service "$binaries" "$image"
    lab/networks "$binaries" "$image"
    lab/foreign "$binaries" "$image"
}

step_endtoend() {
    need_root 'the lab' || return 1
    [ "$(id -u)" -eq 0 ] || return 0
    programs
    lab/endtoend "$binaries"
}

# The VM inventory, with real units that run a real guest and stand-ins for VMMs.
step_inventory() {
    need_root 'the lab' || return 1
    [ "$(id -u)" -eq 0 ] || return 0
    local image
    ensure_virtualisation
    programs
    image=$(lab/guest-image)
    lab/inventory "$binaries" "$image"
    lab/figures "$binaries" "$image"
}

# Documents and sessions in servers that are killed meanwhile.
step_sinks() {
    local redis ferretdb
    redis=$(lab/sync-parts redis)
    ferretdb=$(lab/sync-parts ferretdb)
    SAFETYTWIN_REDIS_SERVER=$redis SAFETYTWIN_FERRETDB=$ferretdb \
        cargo test --locked --quiet --workspace --test servers
    # What stands in for the drivers, where a program is built without.
    cargo test --locked --quiet --package sinks --lib
}

# A day of VMs in step with simulated vSpheres, a real Redis, FerretDB; faults and outages of each,
# and a service that is killed at each step.
step_sync() {
    ensure_packages python3-pymongo python3-redis openssl
    programs
    lab/sync "$binaries"
}

step_kills() {
    ensure_packages python3
    programs
    bench/kills --count 12 --binaries "$binaries"
    ensure_virtualisation
    bench/twin-kills --count 6 --binaries "$binaries"
}

# A while for each parser, the same way each time; `fuzz/run` by itself looks further.
step_fuzz() { fuzz/run --seconds "${FUZZ_SECONDS:-5}" --seed 1; }

# shellcheck source=packaging/toolchain.sh
. packaging/toolchain.sh
# shellcheck source=packaging/virtualisation.sh
. packaging/virtualisation.sh
ensure_toolchain gcc libc6-dev git ca-certificates

# A full disk shows as anything but that, halfway through.
mkdir -p "$CARGO_TARGET_DIR"
free=$(($(df --output=avail --block-size=1G "$CARGO_TARGET_DIR" | tail -n 1)))
[ $free -ge 10 ] || missing "room: $free GB are free for $CARGO_TARGET_DIR, 10 are needed" || exit 1

# Of the machine's cores, in hundredths of seconds: all time, and that in which they had nothing
# to do.
cores() { awk '$1 == "cpu" { for (i = 2; i <= 9; i++) all += $i; print all, $5 + $6 }' /proc/stat; }

# How busy all cores were since $1.
busy() {
    { echo "$1"; cores; } |
        awk '{ all = $1 - all; idle = $2 - idle } END { printf "%.0f %%", all ? 100 * (all - idle) / all : 0 }'
}

# The complaints of a step, or else the last that it said.
complaints() {
    local of wrong='\bFAILED\b\|panicked at\|^error'
    of=$(grep -v '^\(ok\|==\|--\|test .* ok$\|$\)' "$told/$1")
    if grep -q "$wrong" <<<"$of"; then
        grep -A 6 "$wrong" <<<"$of" | head -n 30
    else
        tail -n 15 <<<"$of"
    fi | cut -c -300 | sed 's/^/    /'
}

# One step, with an errexit of its own: a condition would switch it off. To a file, since what a
# step leaves running may hold the other end of a pipe for as long as it likes.
run() (
    exec </dev/null >"$told/$1" 2>&1
    set -e
    "step_$1"
)

declare -A step_of=() began=() cores_then=()
start() { # STEP
    : >"$told/$1"
    began[$1]=$SECONDS
    cores_then[$1]=$(cores)
    run "$1" &
    step_of[$!]=$1
}

passed=0
failed=()
ended() { # STEP STATUS
    local word=FAILED
    if [ "$2" -eq 0 ]; then
        word=passed
        passed=$((passed + 1))
    else
        failed+=("$1")
    fi
    printf -- '-- %s %s in %s s, cores %s busy\n' "$1" $word $((SECONDS - began[$1])) "$(busy "${cores_then[$1]}")"
}

# A group for each step, to be ended as a whole; a step cleans up after itself then.
set -m
stop() {
    trap '' INT TERM
    local pid
    for pid in "${!step_of[@]}"; do kill -TERM -- "-$pid" || true; done
    wait
    exit 130
}
trap stop INT TERM

if [ ${#chosen[@]} -gt 0 ]; then
    for step in "${chosen[@]}"; do
        say "$step"
        start "$step"
        pid=$!
        tail -n +1 -f -s 0.2 --pid=$pid "$told/$step" &
        reader=$!
        status=0
        wait $pid || status=$?
        unset "step_of[$pid]"
        wait $reader
        ended "$step" $status
    done
else
    programs
    export SAFETYTWIN_PATIENCE=5 # The rows slow each other down.
    declare -A row_of=()
    for step in "${building[@]}"; do row_of[$step]=building; done
    for step in "${playing[@]}"; do row_of[$step]=playing; done
    start_next() { # ROW
        local -n row=$1
        [ ${#row[@]} -gt 0 ] || return 0
        printf '.. %s begins\n' "${row[0]}"
        start "${row[0]}"
        row=("${row[@]:1}")
    }
    start_next building
    start_next playing
    while [ ${#step_of[@]} -gt 0 ]; do
        status=0
        wait -n -p pid "${!step_of[@]}" || status=$?
        step=${step_of[$pid]}
        unset "step_of[$pid]"
        say "$step"
        cat "$told/$step"
        ended "$step" $status
        start_next "${row_of[$step]}"
    done
fi

for step in "${failed[@]}"; do printf '\nfailed: %s\n%s\n' "$step" "$(complaints "$step")"; done
printf '\n%s passed, %s failed\n' "$passed" "${#failed[@]}"
[ ${#failed[@]} -eq 0 ]

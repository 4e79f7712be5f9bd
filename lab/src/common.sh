# shellcheck shell=bash
# What lab/host, lab/docker and lab/test share: messages, deadlines, package
# installation, and the one way the lab recognises its own processes: they are
# in a cgroup the lab made. A number in a file is only believed together with
# that cgroup and the process's start time.

readonly EXIT_USAGE=64
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf '%s\n' "$*" >&2; }

die() {
    say "$(basename "$0"): $*"
    exit 1
}

usage_error() {
    say "$(basename "$0"): $*"
    say "Try '$(basename "$0") --help'."
    exit "$EXIT_USAGE"
}

need_root() { [[ $EUID -eq 0 ]] || die "must run as root"; }

now_ms() {
    local now=$EPOCHREALTIME
    now=${now/[.,]/}
    printf '%s' "$((now / 1000))"
}

# wait_until SECONDS COMMAND…: true as soon as COMMAND is, false at the deadline.
wait_until() {
    local deadline=$(($(now_ms) + $1 * 1000))
    shift
    until "$@"; do
        (($(now_ms) < deadline)) || return 1
        sleep 0.02
    done
}

check_name() {
    [[ $1 =~ ^[a-z0-9][a-z0-9-]{0,30}$ ]] ||
        usage_error "bad name '$1': up to 31 of a-z, 0-9 and '-', not starting with '-'"
}

# Sets LAB and LAB_ID. LAB_ID keeps two lab directories apart in cgroup names.
enter_lab_dir() {
    LAB=${SAFETYTWIN_LAB_DIR:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/safetytwin/lab}
    [[ $LAB == /* ]] || die "SAFETYTWIN_LAB_DIR must be absolute: $LAB"
    mkdir -p "$LAB/rootfs" "$LAB/locks" "$LAB/shared"
    LAB=$(realpath "$LAB")
    # shellcheck disable=SC2034 # read by the scripts that source this
    LAB_ID=$(printf '%s' "$LAB" | sha256sum | cut -c1-8)
}

# lock NAME: held on descriptor 9 until this process ends.
lock() {
    exec 9>"$LAB/locks/$1"
    flock -w 600 9 || die "another process has held the lock $LAB/locks/$1 for 10 minutes"
}

# install_missing COMMAND:PACKAGE…: by apt, only what is not there.
install_missing() {
    local pair packages=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
    done
    ((${#packages[@]} == 0)) && return
    say "installing ${packages[*]}"
    apt_install "${packages[@]}" || {
        apt_get update && apt_install "${packages[@]}"
    } || die "could not install ${packages[*]}"
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -q -o DPkg::Lock::Timeout=300 "$@" </dev/null >&2
}

apt_install() { apt_get install -y --no-install-recommends "$@"; }

# start_time PID: in clock ticks since boot, so that a reused PID is told apart.
# Fails for a process that has ended, also for one nobody has waited for yet.
# The command name may hold spaces and brackets: count from the last bracket.
start_time() {
    local stat fields
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    read -ra fields <<<"${stat##*) }"
    [[ ${fields[0]} != [ZX] ]] || return 1
    printf '%s' "${fields[19]}"
}

# The mount point of the unified hierarchy, wherever this machine has it.
cgroup2_mount() {
    local mount
    mount=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)
    [[ -n $mount ]] || die "no cgroup2 hierarchy is mounted (mount -t cgroup2 none DIR)"
    printf '%s' "$mount"
}

# cgroup_dirs GROUP: its directories that exist, in every hierarchy of v1 and v2.
cgroup_dirs() {
    local mount
    findmnt -n -t cgroup,cgroup2 -o TARGET | while read -r mount; do
        [[ ! -d $mount/$1 ]] || printf '%s\n' "$mount/$1"
    done
}

cgroup_pids() {
    local dir
    cgroup_dirs "$1" | while read -r dir; do
        find "$dir" -name cgroup.procs -exec cat {} + 2>/dev/null || true
    done | sort -un
}

cgroup_empty() { [[ -z $(cgroup_pids "$1") ]]; }

# One round of SIGKILL to what is in the group now; true when nothing was.
kill_round() {
    local pid pids
    pids=$(cgroup_pids "$1")
    for pid in $pids; do
        kill -KILL "$pid" 2>/dev/null || true
    done
    [[ -z $pids ]]
}

remove_dirs_of_group() {
    local dir
    cgroup_dirs "$1" | while read -r dir; do
        find "$dir" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
    [[ -z $(cgroup_dirs "$1") ]]
}

# end_group GROUP: nothing of it is left afterwards, neither process nor cgroup.
end_group() {
    wait_until 20 kill_round "$1" ||
        die "processes of $1 do not end: $(cgroup_pids "$1" | tr '\n' ' ')"
    wait_until 10 remove_dirs_of_group "$1" || die "cgroup $1 can't be removed"
}

alive() { start_time "$1" >/dev/null; }

# remember FILE PID: what recall needs to know the process again.
remember() {
    printf '%s %s\n' "$2" "$(start_time "$2")" >"$1.new"
    mv "$1.new" "$1"
}

# recall FILE GROUP: prints the PID if that same process still runs in GROUP.
recall() {
    local pid start
    { read -r pid start <"$1"; } 2>/dev/null || return 1
    [[ $pid =~ ^[0-9]+$ && $(start_time "$pid") == "$start" ]] || return 1
    grep -qE "^0::(/.*)?/$2(/|\$)" "/proc/$pid/cgroup" 2>/dev/null || return 1
    printf '%s' "$pid"
}

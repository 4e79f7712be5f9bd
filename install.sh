#!/usr/bin/env bash
# Sets up SafetyTwin on this machine and starts it: server, agent, command line.
#
#   ./install.sh                 install and start
#   ./install.sh --no-start      install only
#   ./install.sh --prefix DIR    where the programs go (root: /usr/local, others: ~/.local)
#
# As root it installs for the machine; as an ordinary user for that user. Where systemd can be
# asked it starts services; elsewhere it runs `twin up` in the foreground. Run it again at any
# time: what is there already stays, programs are replaced, data and configuration are kept.
set -euo pipefail

cd "$(dirname "$(readlink -f "$0")")"

say() { printf '== %s\n' "$*"; }
die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

start=yes
prefix=
while [ $# -gt 0 ]; do
    case $1 in
        --no-start) start=no ;;
        --prefix) [ $# -ge 2 ] || die '--prefix wants a directory'; prefix=$2; shift ;;
        --prefix=*) prefix=${1#--prefix=} ;;
        -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) die "unknown option $1; see --help" ;;
    esac
    shift
done

root=no
[ "$(id -u)" -eq 0 ] && root=yes
if [ -z "$prefix" ]; then
    if [ $root = yes ]; then prefix=/usr/local; else prefix=$HOME/.local; fi
fi

# --- what it is built with -------------------------------------------------------------

. ./packaging/toolchain.sh
ensure_toolchain gcc libc6-dev ca-certificates

# --- build and install -----------------------------------------------------------------

say "building (the first time takes a few minutes)"
cargo build --locked --release -p cli
cargo build --locked --profile agent -p agent --features small
target=${CARGO_TARGET_DIR:-target}

say "installing into $prefix"
mkdir -p "$prefix/bin"
install -m 0755 "$target/release/twin" "$prefix/bin/twin"
install -m 0755 "$target/agent/twin-agent" "$prefix/bin/twin-agent"
install -m 0755 "$target/agent/twin-guest" "$prefix/bin/twin-guest"
install -m 0755 "$target/agent/twin-node" "$prefix/bin/twin-node"
"$prefix/bin/twin" man --dir "$prefix/share/man/man1"
for shell in bash zsh fish; do
    case $shell in
        bash) place=$prefix/share/bash-completion/completions/twin ;;
        zsh) place=$prefix/share/zsh/site-functions/_twin ;;
        fish) place=$prefix/share/fish/vendor_completions.d/twin.fish ;;
    esac
    mkdir -p "$(dirname "$place")"
    "$prefix/bin/twin" completions "$shell" >"$place"
done
case ":$PATH:" in
    *":$prefix/bin:"*) ;;
    *) say "note: $prefix/bin is not in PATH; add it, or call $prefix/bin/twin" ;;
esac

# --- configuration: written once, never overwritten --------------------------------------

if [ $root = yes ]; then config=/etc/safetytwin; else config=${XDG_CONFIG_HOME:-$HOME/.config}/safetytwin; fi
mkdir -p "$config"
for file in twin.yaml agent.yaml node.yaml; do
    if [ -e "$config/$file" ]; then
        say "keeping $config/$file"
    else
        install -m 0644 "packaging/$file" "$config/$file"
        say "wrote $config/$file"
    fi
done

[ $start = yes ] || { say "installed; start it with: twin up"; exit 0; }

# --- start -------------------------------------------------------------------------------

# Whether services can be started here, and if not, why.
foreground=
if ! [ -d /run/systemd/system ] || [ "$(cat /proc/1/comm)" != systemd ]; then
    foreground='systemd is not PID 1 here'
elif [ $root = yes ]; then
    units=/etc/systemd/system
    control=(systemctl)
else
    units=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
    control=(systemctl --user)
    # Not by way of su and sudo -u, for example.
    "${control[@]}" show-environment >/dev/null 2>&1 ||
        foreground="systemd of the user $(id -un) can't be reached here (log in as that user for services)"
fi

if [ -z "$foreground" ]; then
    # A second server would fail on the port of the first, again and again. Who has set `listen`
    # has chosen the port.
    if ! grep -qs '^listen:' "$config/twin.yaml" &&
        ! "${control[@]}" --quiet is-active safetytwin-server.service &&
        (exec 3<>/dev/tcp/127.0.0.1/8470) 2>/dev/null; then
        say "something listens on 127.0.0.1:8470 already, another installation perhaps: installed, not started"
        say "to run both, give this one another port (listen: in $config/twin.yaml, server: in $config/agent.yaml), then run this again"
        exit 0
    fi
    mkdir -p "$units"
    for unit in safetytwin-server safetytwin-agent; do
        variant=packaging/systemd/$unit.service
        [ $root = yes ] || variant=packaging/systemd/user/$unit.service
        sed "s|@PREFIX@|$prefix|g" "$variant" >"$units/$unit.service"
    done
    # For nodes that run VMs, and whose operator wants it: neither enabled nor started.
    if [ $root = yes ]; then
        sed "s|@PREFIX@|$prefix|g" packaging/systemd/safetytwin-node.service >"$units/safetytwin-node.service"
    fi
    "${control[@]}" daemon-reload
    "${control[@]}" enable safetytwin-server.service safetytwin-agent.service
    "${control[@]}" restart safetytwin-server.service safetytwin-agent.service
    say "running as services; look at them with: ${control[*]} status 'safetytwin-*'"
    if [ $root = no ] && [ "$(loginctl show-user "$(id -un)" --value --property Linger 2>/dev/null)" != yes ]; then
        say "they run while you are logged in; to keep them running: loginctl enable-linger"
    fi
    say "what is known of this machine: twin show"
else
    say "$foreground: running in the foreground, end with Ctrl-C"
    exec "$prefix/bin/twin" up
fi

# shellcheck shell=bash
# Sourced by install.sh, test.sh and the labs: makes sure of system packages and of the Rust
# toolchain.

# How it is said what is done, where whoever reads this has no `say` by then.
declare -F say >/dev/null || say() { printf '== %s\n' "$*" >&2; }

# Installs the Debian packages that are missing. Without root it says which to ask for.
ensure_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if ! command -v apt-get >/dev/null; then
        say "this machine has no apt-get; install the equivalents of: ${missing[*]}"
        return
    fi
    if [ "$(id -u)" -ne 0 ]; then
        printf 'missing packages; ask root for: apt-get install %s\n' "${missing[*]}" >&2
        return 1
    fi
    say "installing packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || say "apt-get update failed; trying with the lists there are"
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Whether apt has this package to give, of at least this version. A name alone may be known to it
# without a package, from a conflict of another one.
apt_offers() {
    local candidate
    command -v apt-cache >/dev/null || return
    candidate=$(LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p')
    [ -n "$candidate" ] && [ "$candidate" != '(none)' ] && dpkg --compare-versions "$candidate" ge "${2:-0}"
}

# The version of Rust that all is built with.
rust_wanted() { sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml; }

# Whether there is some Rust. What rustup.rs installed is in no login shell's PATH yet.
have_rust() {
    # shellcheck disable=SC1091
    [ -f "${CARGO_HOME:-$HOME/.cargo}/env" ] && . "${CARGO_HOME:-$HOME/.cargo}/env"
    command -v cargo >/dev/null
}

# The packages that bring Rust to this machine, if apt has any: rustup on Debian 13 and Ubuntu
# 24.04; on Debian 12 the compiler that its security archive keeps new for the browsers.
rust_packages() {
    if apt_offers rustup; then
        echo rustup
    elif apt_offers cargo-web "$(rust_wanted)"; then
        echo rustc-web cargo-web rustfmt-web rust-web-clippy
    fi
}

# Makes sure of packages and of Rust. Who has to ask root is told everything at once.
ensure_toolchain() {
    local rust=()
    if ! have_rust && [ "$(id -u)" -ne 0 ]; then read -ra rust <<<"$(rust_packages)"; fi
    ensure_packages "$@" "${rust[@]}"
    ensure_rust
}

# Makes the pinned toolchain available: through rustup, or a system Rust that is new enough.
ensure_rust() {
    local wanted have packages
    wanted=$(rust_wanted)
    if ! have_rust && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq || say "apt-get update failed; trying with the lists there are"
        read -ra packages <<<"$(rust_packages)"
        ensure_packages "${packages[@]}"
    fi
    if command -v rustup >/dev/null; then
        if ! cargo "+$wanted" fmt --version >/dev/null 2>&1 || ! cargo "+$wanted" clippy --version >/dev/null 2>&1; then
            say "fetching Rust $wanted"
            rustup toolchain install "$wanted" --profile minimal -c rustfmt -c clippy --no-self-update
        fi
        return
    fi
    if ! command -v cargo >/dev/null; then
        printf 'Rust %s or newer is needed and not there; install it from https://rustup.rs, then run this again\n' "$wanted" >&2
        return 1
    fi
    have=$(rustc --version | cut -d' ' -f2)
    if [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n1)" != "$wanted" ]; then
        printf 'Rust %s or newer is needed; this machine has %s. Install a newer one from https://rustup.rs beside it, then run this again\n' \
            "$wanted" "$have" >&2
        return 1
    fi
}

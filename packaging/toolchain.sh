# shellcheck shell=bash
# Sourced by install.sh and test.sh: makes sure of system packages and of the Rust toolchain.
# Expects the function `say`.

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
    candidate=$(LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p')
    [ -n "$candidate" ] && [ "$candidate" != '(none)' ] && dpkg --compare-versions "$candidate" ge "${2:-0}"
}

# rust_packages VERSION: the packages that bring Rust to this machine, if apt has any: rustup on
# Debian 13 and Ubuntu 24.04; on Debian 12 the compiler that its security archive keeps new for
# the browsers.
rust_packages() {
    command -v apt-get >/dev/null || return 0
    if apt_offers rustup; then
        echo rustup
    elif apt_offers cargo-web "$1"; then
        echo rustc-web cargo-web rustfmt-web rust-web-clippy
    fi
}

# Makes the pinned toolchain available: through rustup, or a system Rust that is new enough.
ensure_rust() {
    local wanted have packages=() offered
    wanted=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
    # shellcheck disable=SC1091
    [ -f "${CARGO_HOME:-$HOME/.cargo}/env" ] && . "${CARGO_HOME:-$HOME/.cargo}/env"
    if ! command -v cargo >/dev/null && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq || say "apt-get update failed; trying with the lists there are"
        read -ra packages <<<"$(rust_packages "$wanted")"
        ensure_packages "${packages[@]}"
    fi
    if command -v rustup >/dev/null; then
        if ! cargo "+$wanted" fmt --version >/dev/null 2>&1 || ! cargo "+$wanted" clippy --version >/dev/null 2>&1; then
            say "fetching Rust $wanted"
            rustup toolchain install "$wanted" --profile minimal -c rustfmt -c clippy
        fi
        return
    fi
    if ! command -v cargo >/dev/null; then
        offered=$(rust_packages "$wanted")
        printf 'Rust %s or newer is needed and not there; %sinstall it from https://rustup.rs, then run this again\n' \
            "$wanted" "${offered:+ask root for: apt-get install $offered; or }" >&2
        return 1
    fi
    have=$(rustc --version | cut -d' ' -f2)
    if [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n1)" != "$wanted" ]; then
        printf 'Rust %s or newer is needed; this machine has %s. Install a newer one from https://rustup.rs beside it, then run this again\n' \
            "$wanted" "$have" >&2
        return 1
    fi
}

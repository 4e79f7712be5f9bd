# shellcheck shell=bash
# Sourced by install.sh, test.sh and the lab, after packaging/toolchain.sh: makes sure of what
# builds images and runs machines. Expects `say` and `ensure_packages`.

# The first QEMU with migration to a file by page offsets (mapped-ram), which snapshots use.
readonly qemu_wanted=9.0

# Where this machine's apt gets bookworm itself from.
mirror_of_bookworm() {
    # shellcheck disable=SC2016 # apt expands these
    apt-get indextargets 'Created-By: Packages' 'Component: main' 'Origin: Debian' 'Release: bookworm' \
        --format '$(REPO_URI)' 2>/dev/null | head -n1
}

# Adds bookworm-backports, from the mirror that bookworm itself comes from, once.
ensure_backports() {
    local uri file=/etc/apt/sources.list.d/safetytwin-backports.list
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    # shellcheck disable=SC2016 # apt expands this
    if apt-get indextargets 'Created-By: Packages' --format '$(RELEASE)' 2>/dev/null | grep -qx bookworm-backports; then
        return
    fi
    if [ "$(id -u)" -ne 0 ]; then
        printf 'QEMU %s is in bookworm-backports; ask root to add that suite to apt\n' "$qemu_wanted" >&2
        return 1
    fi
    uri=$(mirror_of_bookworm)
    if [ -z "$uri" ]; then
        printf 'apt knows no archive of bookworm; run apt-get update first\n' >&2
        return 1
    fi
    say 'adding bookworm-backports to apt'
    if [ -e "$keyring" ]; then
        printf 'deb [signed-by=%s] %s bookworm-backports main\n' "$keyring" "$uri"
    else
        printf 'deb %s bookworm-backports main\n' "$uri"
    fi >"$file"
    apt-get update -qq
}

# The version of an installed program of QEMU, or nothing.
qemu_version() {
    qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9][0-9.]*\).*/\1/p'
}

# QEMU, libvirt and what builds images. On bookworm from its backports: all of QEMU's packages
# have to be of one version, and an older qemu-utils would hold the rest back.
ensure_virtualisation() {
    local packages release have
    packages=(qemu-system-x86 qemu-utils seabios ipxe-qemu passt mmdebstrap e2fsprogs
        libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients libvirt-dev)
    # shellcheck disable=SC1091
    release=$(. /etc/os-release && printf '%s' "${ID:-} ${VERSION_CODENAME:-}")
    have=$(qemu_version) || have=
    if [ "$release" = 'debian bookworm' ] &&
        [ "$(printf '%s\n' "$qemu_wanted" "${have:-0}" | sort -V | head -n1)" != "$qemu_wanted" ]; then
        ensure_backports
        if [ "$(id -u)" -ne 0 ]; then
            printf 'ask root for: apt-get install -t bookworm-backports %s\n' "${packages[*]}" >&2
            return 1
        fi
        say 'installing QEMU and libvirt from bookworm-backports'
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            -t bookworm-backports "${packages[@]}" >/dev/null
        return
    fi
    ensure_packages "${packages[@]}"
}

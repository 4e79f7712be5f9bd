//! Where things are on disk unless a configuration says otherwise: for root the machine's
//! places, for everybody else those of the XDG base directories.

use std::path::PathBuf;

/// `/etc/safetytwin`, or `~/.config/safetytwin`.
#[must_use]
pub fn configuration() -> PathBuf {
    of_root("/etc/safetytwin").unwrap_or_else(|| xdg("XDG_CONFIG_HOME", ".config"))
}

/// `/var/lib/safetytwin`, or `~/.local/share/safetytwin`.
#[must_use]
pub fn data() -> PathBuf {
    of_root("/var/lib/safetytwin").unwrap_or_else(|| xdg("XDG_DATA_HOME", ".local/share"))
}

fn of_root(path: &str) -> Option<PathBuf> {
    rustix::process::geteuid().is_root().then(|| path.into())
}

fn xdg(variable: &str, fallback: &str) -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into()));
    std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .unwrap_or_else(|| home().join(fallback))
        .join("safetytwin")
}

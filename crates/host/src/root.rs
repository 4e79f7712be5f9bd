//! Where one Linux machine's files are: the real `/`, or a directory that looks like it.
//!
//! Owns the mapping from a name to a path, nothing else: it opens no file. Collectors take a
//! [`Root`] and never spell an absolute path themselves, so that a test's captured tree and a
//! host's root mounted into a container are read by the same code.

use std::path::{Path, PathBuf};

/// The roots of one machine's file trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    base: PathBuf,
    proc: PathBuf,
    sys: PathBuf,
}

impl Root {
    /// This machine.
    #[must_use]
    pub fn live() -> Self {
        Self::at("/")
    }

    /// A machine whose `/`, `/proc` and `/sys` are below `directory`.
    #[must_use]
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        let base = directory.into();
        Self { proc: base.join("proc"), sys: base.join("sys"), base }
    }

    /// The same machine with its `/proc` elsewhere, as in a container that has the host's
    /// mounted at `/host/proc`.
    #[must_use]
    pub fn with_proc(self, proc: impl Into<PathBuf>) -> Self {
        Self { proc: proc.into(), ..self }
    }

    /// The same machine with its `/sys` elsewhere.
    #[must_use]
    pub fn with_sys(self, sys: impl Into<PathBuf>) -> Self {
        Self { sys: sys.into(), ..self }
    }

    /// A path below `/proc`, such as `self/stat`.
    #[must_use]
    pub fn proc(&self, relative: impl AsRef<Path>) -> PathBuf {
        below(&self.proc, relative.as_ref())
    }

    /// A path below `/sys`, such as `class/net`.
    #[must_use]
    pub fn sys(&self, relative: impl AsRef<Path>) -> PathBuf {
        below(&self.sys, relative.as_ref())
    }

    /// An absolute path of the machine, such as `/etc/os-release`.
    #[must_use]
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        below(&self.base, absolute.as_ref())
    }

    /// Whether this is the machine we run on, whose kernel can be asked directly.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.base == Path::new("/") && self.proc == Path::new("/proc")
    }
}

/// `Path::join` would let an absolute path replace the root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_their_root() {
        let root = Root::at("/capture");
        assert_eq!(root.path("/etc/os-release"), Path::new("/capture/etc/os-release"));
        assert_eq!(root.path("etc"), Path::new("/capture/etc"));
        assert_eq!(root.path("//etc"), Path::new("/capture/etc"));
        assert_eq!(root.proc("self/stat"), Path::new("/capture/proc/self/stat"));
        assert_eq!(root.sys("/class/net"), Path::new("/capture/sys/class/net"));
        assert_eq!(Root::live().proc("1/stat"), Path::new("/proc/1/stat"));
        let mounted = Root::live().with_proc("/host/proc").with_sys("/host/sys");
        assert_eq!(mounted.proc("1"), Path::new("/host/proc/1"));
        assert_eq!(mounted.sys("fs/cgroup"), Path::new("/host/sys/fs/cgroup"));
        assert!(Root::live().is_live() && !mounted.is_live() && !root.is_live());
    }
}

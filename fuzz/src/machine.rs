//! A made-up machine: a directory with the files a collector reads, written anew for each input.

use host::Root;
use std::fs;
use std::path::{Path, PathBuf};

/// The parts of an input, which lines of `%%` divide. Missing ones are empty.
#[must_use]
pub fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    const DIVIDER: &[u8] = b"%%\n";
    let mut rest = data;
    std::array::from_fn(|index| {
        let at = rest.windows(DIVIDER.len()).position(|window| window == DIVIDER);
        match at.filter(|_| index + 1 < N) {
            Some(at) => {
                let (part, tail) = rest.split_at(at);
                rest = &tail[DIVIDER.len()..];
                part
            }
            None => std::mem::take(&mut rest),
        }
    })
}

/// An empty directory of this process, in memory where there is any to write to.
/// `fuzz/run` says where, and removes it.
#[must_use]
pub fn scratch() -> PathBuf {
    let above = std::env::var_os("FUZZ_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
    let path = above.join(format!("safetytwin-fuzz-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a directory for made files can be made");
    path
}

#[derive(Debug)]
pub struct Machine {
    directory: PathBuf,
    pub root: Root,
}

impl Machine {
    /// A machine with these files that stay as they are.
    #[must_use]
    pub fn new(fixed: &[(&str, &str)]) -> Self {
        let directory = scratch();
        let machine = Self { root: Root::at(&directory), directory };
        fs::create_dir_all(machine.root.proc("")).expect("scratch can be written");
        for (path, text) in fixed {
            machine.write(path, text.as_bytes());
        }
        machine
    }

    /// Writes one file, the path being relative to the root.
    pub fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.directory.join(path);
        if fs::write(&path, bytes).is_err() {
            let parent = path.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(parent).expect("scratch can be written");
            fs::write(&path, bytes).expect("scratch can be written");
        }
    }

    /// Writes the parts of the input to the files, in order.
    pub fn fill<const N: usize>(&self, files: [&str; N], data: &[u8]) {
        for (path, part) in files.into_iter().zip(parts::<N>(data)) {
            self.write(path, part);
        }
    }

    /// A symbolic link, unless it is there.
    pub fn link(&self, path: &str, target: &str) {
        let path = self.directory.join(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))
            .expect("scratch can be written");
        let _there = std::os::unix::fs::symlink(target, path);
    }
}

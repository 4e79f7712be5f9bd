//! The files of `/proc`, read relative to one open directory into reused buffers.
//!
//! A process that vanished while we look is normal and reads as `None`; so does what we have
//! no right to see, which is counted apart ([`Denied`]).

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, openat, readlinkat, seek};
use rustix::io::{Errno, read};
use std::ffi::CStr;
use std::io::Write;
use std::mem::MaybeUninit;
use std::path::Path;

/// Something is there that we may not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Denied;

/// `/proc`, kept open.
#[derive(Debug)]
pub(crate) struct ProcDirectory {
    directory: OwnedFd,
    entries: Box<[MaybeUninit<u8>]>,
    link: Vec<u8>,
}

/// Space for `PID/NAME` and its end.
const NAME_SPACE: [u8; 48] = [0; 48];

impl ProcDirectory {
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(rustix::fs::CWD, path, flags, Mode::empty())?;
        let entries = vec![MaybeUninit::uninit(); 32 * 1024].into_boxed_slice();
        Ok(Self { directory, entries, link: Vec::with_capacity(256) })
    }

    /// Puts the pids of all processes into `pids`, in the kernel's order.
    pub(crate) fn list(&mut self, pids: &mut Vec<u32>) -> std::io::Result<()> {
        pids.clear();
        seek(&self.directory, SeekFrom::Start(0))?;
        let mut entries = RawDir::new(self.directory.as_fd(), &mut self.entries);
        while let Some(entry) = entries.next() {
            if let Some(pid) = pid_of(entry?.file_name().to_bytes()) {
                pids.push(pid);
            }
        }
        Ok(())
    }

    /// Fills `buffer` from the start of a process's file; gives what was read.
    pub(crate) fn read<'b>(&self, pid: u32, name: &str, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        let file = self.open_file(pid, name, OFlags::RDONLY).ok()?;
        let mut length = 0;
        loop {
            let space = buffer.get_mut(length..).filter(|space| !space.is_empty());
            let Some(space) = space else { break };
            let whole = space.len();
            match read(&file, space) {
                Ok(0) => break,
                Ok(count) => {
                    length += count;
                    // A short answer is the end of these files; asking again costs a call.
                    if count < whole && count < 4000 {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        buffer.get(..length)
    }

    /// Where a link of a process leads: `exe`, `cwd`.
    pub(crate) fn link(&mut self, pid: u32, name: &str) -> Result<Option<&[u8]>, Denied> {
        let mut space = NAME_SPACE;
        let Some(path) = file_name(&mut space, pid, name) else { return Ok(None) };
        self.link.clear();
        match readlinkat(&self.directory, path, std::mem::take(&mut self.link)) {
            Ok(target) => {
                self.link = target.into_bytes();
                Ok(Some(&self.link))
            }
            Err(Errno::ACCESS | Errno::PERM) => Err(Denied),
            Err(_) => Ok(None),
        }
    }

    /// Calls `each` with the target of every open file of a process, up to `limit` of them,
    /// until it says `false`.
    pub(crate) fn open_files(
        &mut self,
        pid: u32,
        limit: usize,
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), Denied> {
        let directory = match self.open_file(pid, "fd", OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => directory,
            Err(Errno::ACCESS | Errno::PERM) => return Err(Denied),
            Err(_) => return Ok(()),
        };
        let mut link = std::mem::take(&mut self.link);
        let mut entries = RawDir::new(&directory, &mut self.entries);
        let mut seen = 0;
        while let Some(Ok(entry)) = entries.next() {
            if pid_of(entry.file_name().to_bytes()).is_none() {
                continue;
            }
            seen += 1;
            link.clear();
            match readlinkat(&directory, entry.file_name(), std::mem::take(&mut link)) {
                Ok(target) => {
                    link = target.into_bytes();
                    if !each(&link) {
                        break;
                    }
                }
                Err(Errno::ACCESS | Errno::PERM) => return Err(Denied),
                Err(_) => {}
            }
            if seen >= limit {
                break;
            }
        }
        self.link = link;
        Ok(())
    }

    fn open_file(&self, pid: u32, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut space = NAME_SPACE;
        let path = file_name(&mut space, pid, name).ok_or(Errno::NAMETOOLONG)?;
        openat(&self.directory, path, flags | OFlags::CLOEXEC, Mode::empty())
    }
}

fn file_name<'s>(space: &'s mut [u8; 48], pid: u32, name: &str) -> Option<&'s CStr> {
    let mut rest = space.as_mut_slice();
    write!(rest, "{pid}/{name}\0").ok()?;
    CStr::from_bytes_until_nul(space).ok()
}

fn pid_of(name: &[u8]) -> Option<u32> {
    if !name.first()?.is_ascii_digit() {
        return None;
    }
    u32::try_from(crate::text::decimal(name)?).ok()
}

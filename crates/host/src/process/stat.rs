//! Reads `/proc/PID/stat` and `/proc/PID/status` from bytes. Pure.
//!
//! The name in `stat` is whatever the process says: it may hold `)`, spaces, newlines, escape
//! sequences and bytes that are no UTF-8. Numbers follow the last `)`, never the first.

use crate::text::{decimal, lines, words};

/// What one line of `stat` says, as far as we use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat<'a> {
    /// Raw bytes, as the process set them.
    pub(crate) name: &'a [u8],
    pub(crate) state: u8,
    pub(crate) parent: u32,
    pub(crate) kernel_thread: bool,
    /// User and system time together.
    pub(crate) cpu_ticks: u64,
    pub(crate) threads: u32,
    /// In clock ticks since boot: with the pid, names one process for good.
    pub(crate) start_ticks: u64,
    pub(crate) resident_pages: u64,
}

/// `PF_KTHREAD` among the process flags.
const KERNEL_THREAD: u64 = 0x0020_0000;

impl<'a> Stat<'a> {
    /// `None` for what is not a whole line.
    pub(crate) fn parse(line: &'a [u8]) -> Option<Self> {
        let open = line.iter().position(|&b| b == b'(')?;
        let close = line.iter().rposition(|&b| b == b')')?;
        let name = line.get(open + 1..close)?;
        let mut fields = words(line.get(close + 1..)?);
        let state = *fields.next()?.first()?;
        let parent = number(fields.next()?)?;
        let flags = decimal(fields.nth(4)?)?;
        let user = decimal(fields.nth(4)?)?;
        let system = decimal(fields.next()?)?;
        let threads = number(fields.nth(4)?)?;
        let start_ticks = decimal(fields.nth(1)?)?;
        let resident_pages = decimal(fields.nth(1)?)?;
        Some(Self {
            name,
            state,
            parent,
            kernel_thread: flags & KERNEL_THREAD != 0,
            cpu_ticks: user.saturating_add(system),
            threads,
            start_ticks,
            resident_pages,
        })
    }

    /// Ended, and only waiting for its parent to ask.
    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

fn number(digits: &[u8]) -> Option<u32> {
    u32::try_from(decimal(digits)?).ok()
}

/// The effective user in `status`.
pub(crate) fn effective_uid(status: &[u8]) -> Option<u32> {
    let line = lines(status).find_map(|line| line.strip_prefix(b"Uid:"))?;
    number(words(line).nth(1)?)
}

/// When the machine booted, in seconds since the epoch: `btime` of `/proc/stat`.
pub(crate) fn boot_seconds(stat: &[u8]) -> Option<i64> {
    let line = lines(stat).find_map(|line| line.strip_prefix(b"btime "))?;
    i64::try_from(decimal(line.trim_ascii())?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NUMBERS: &str = "S 1 700 700 0 -1 4194560 1811 4 8 0 12 30 0 0 20 0 3 0 8800 21786624 \
        1523 18446744073709551615 1 1 0 0 0 0 0 4096 1 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0";

    #[test]
    fn names_that_try_to_mislead() {
        for name in [
            "nginx",
            "a) S 99 (b",
            ")",
            "",
            "((((",
            "two words",
            "line\nbreak",
            "\u{1b}[31m",
            "700 (x) R 5",
        ] {
            let line = format!("701 ({name}) {NUMBERS}");
            let stat = Stat::parse(line.as_bytes()).unwrap_or_else(|| panic!("{name:?}"));
            assert_eq!(stat.name, name.as_bytes());
            assert_eq!((stat.state, stat.parent, stat.threads), (b'S', 1, 3));
            assert_eq!((stat.cpu_ticks, stat.start_ticks, stat.resident_pages), (42, 8800, 1523));
            assert!(!stat.kernel_thread);
        }
        let line = [b"7 (\xff\xfe) ", NUMBERS.as_bytes()].concat();
        assert_eq!(Stat::parse(&line).unwrap().name, b"\xff\xfe");
    }

    #[test]
    fn kernel_threads_and_zombies() {
        let line = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 2 0 0 0 0";
        assert!(Stat::parse(line.as_bytes()).unwrap().kernel_thread);
        let zombie = NUMBERS.replacen('S', "Z", 1);
        assert!(Stat::parse(format!("9 (x) {zombie}").as_bytes()).unwrap().is_zombie());
    }

    #[test]
    fn what_is_cut_off_is_not_guessed() {
        let line = format!("701 (nginx) {NUMBERS}");
        let needed = line.find("1523").unwrap();
        for end in 0..needed {
            assert_eq!(Stat::parse(&line.as_bytes()[..end]), None, "{end}");
        }
    }

    #[test]
    fn status_and_boot_time() {
        assert_eq!(effective_uid(b"Name:\tx\nUid:\t1000\t33\t0\t0\nGid:\t0\n"), Some(33));
        assert_eq!(effective_uid(b"Name:\tx\n"), None);
        assert_eq!(effective_uid(b"Uid:\t1000\t-1"), None);
        assert_eq!(boot_seconds(b"cpu 1 2\nbtime 1790000000\nprocesses 5\n"), Some(1_790_000_000));
        assert_eq!(boot_seconds(b"cpu 1"), None);
    }

    proptest! {
        #[test]
        fn anything_goes_in(bytes: Vec<u8>, name: Vec<u8>) {
            Stat::parse(&bytes);
            effective_uid(&bytes);
            boot_seconds(&bytes);
            let line = [b"1 (".as_slice(), &name, b") ", NUMBERS.as_bytes()].concat();
            prop_assert_eq!(Stat::parse(&line).map(|stat| stat.name.to_vec()), Some(name));
        }
    }
}

//! Reads `/proc/{stat,meminfo,loadavg,uptime}` and pressure files from bytes. Pure.

use crate::text::{decimal, fraction, lines, words};
use model::load::Pressure;

/// Time of one processor, or of all, in clock ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CpuTimes {
    user: u64,
    system: u64,
    idle: u64,
    iowait: u64,
    steal: u64,
}

/// Shares of the time between two readings, in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct CpuShares {
    pub(super) busy: f64,
    pub(super) user: f64,
    pub(super) system: f64,
    pub(super) iowait: f64,
    pub(super) steal: f64,
}

impl CpuTimes {
    /// `user nice system idle iowait irq softirq steal`; an old kernel has fewer.
    fn parse<'a>(mut fields: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let mut next = || fields.next().map(decimal);
        let (user, nice, system, idle) = (next()??, next()??, next()??, next()??);
        let mut rest = || next().flatten().unwrap_or(0);
        let (iowait, interrupts, soft, steal) = (rest(), rest(), rest(), rest());
        Some(Self {
            user: user.saturating_add(nice),
            system: system.saturating_add(interrupts).saturating_add(soft),
            idle,
            iowait,
            steal,
        })
    }

    /// `None` when no time passed. Idle and iowait may go back a little: that counts as none.
    pub(super) fn shares_since(&self, before: &Self) -> Option<CpuShares> {
        let [user, system, idle, iowait, steal] = [
            self.user.saturating_sub(before.user),
            self.system.saturating_sub(before.system),
            self.idle.saturating_sub(before.idle),
            self.iowait.saturating_sub(before.iowait),
            self.steal.saturating_sub(before.steal),
        ]
        .map(|ticks| ticks as f64);
        let total = user + system + idle + iowait + steal;
        let percent = |ticks: f64| 100.0 * ticks / total;
        (total > 0.0).then(|| CpuShares {
            busy: percent(user + system + steal),
            user: percent(user),
            system: percent(system),
            iowait: percent(iowait),
            steal: percent(steal),
        })
    }
}

/// `/proc/stat`, as far as we use it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) all: Option<CpuTimes>,
    /// By number; a processor that is offline has none.
    pub(super) cores: Vec<(u32, CpuTimes)>,
    pub(super) context_switches: Option<u64>,
    pub(super) forks: Option<u64>,
    pub(super) threads_running: Option<u64>,
}

impl Stat {
    const CORES_MAX: usize = 4096;

    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut stat = Self::default();
        for line in lines(bytes) {
            let mut fields = words(line);
            let Some(name) = fields.next() else { continue };
            match name {
                b"cpu" => stat.all = CpuTimes::parse(fields),
                b"ctxt" => stat.context_switches = fields.next().and_then(decimal),
                b"processes" => stat.forks = fields.next().and_then(decimal),
                b"procs_running" => stat.threads_running = fields.next().and_then(decimal),
                _ => {
                    let number = name.strip_prefix(b"cpu").and_then(decimal);
                    let number = number.and_then(|number| u32::try_from(number).ok());
                    if let (Some(number), Some(times)) = (number, CpuTimes::parse(fields))
                        && stat.cores.len() < Self::CORES_MAX
                    {
                        stat.cores.push((number, times));
                    }
                }
            }
        }
        stat
    }
}

/// `/proc/meminfo`, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MemInfo {
    pub(super) total: Option<u64>,
    pub(super) available: Option<u64>,
    pub(super) free: Option<u64>,
    pub(super) cached: Option<u64>,
    pub(super) swap_total: Option<u64>,
    pub(super) swap_free: Option<u64>,
}

impl MemInfo {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut info = Self::default();
        for line in lines(bytes) {
            let mut fields = words(line);
            let place = match fields.next() {
                Some(b"MemTotal:") => &mut info.total,
                Some(b"MemAvailable:") => &mut info.available,
                Some(b"MemFree:") => &mut info.free,
                Some(b"Cached:") => &mut info.cached,
                Some(b"SwapTotal:") => &mut info.swap_total,
                Some(b"SwapFree:") => &mut info.swap_free,
                _ => continue,
            };
            *place = fields.next().and_then(decimal).and_then(|kib| kib.checked_mul(1024));
        }
        info
    }
}

/// The three averages of `/proc/loadavg`.
pub(super) fn load_average(bytes: &[u8]) -> Option<[f64; 3]> {
    let mut fields = words(bytes).map(fraction);
    Some([fields.next()??, fields.next()??, fields.next()??])
}

pub(super) fn uptime_seconds(bytes: &[u8]) -> Option<f64> {
    words(bytes).next().and_then(fraction)
}

/// `some avg10=0.11 avg60=0.91 avg300=1.18 total=9247140`, and the same for `full`. `None`
/// when neither is there.
pub(super) fn pressure(bytes: &[u8]) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    for line in lines(bytes).take(8) {
        let mut fields = words(line);
        let place = match fields.next() {
            Some(b"some") => &mut pressure.some,
            Some(b"full") => &mut pressure.full,
            _ => continue,
        };
        let mut average = |name: &[u8]| {
            fields.next().and_then(|field| field.strip_prefix(name)).and_then(fraction)
        };
        *place = match (average(b"avg10="), average(b"avg60="), average(b"avg300=")) {
            (Some(short), Some(middle), Some(long)) => Some([short, middle, long]),
            _ => None,
        };
    }
    (pressure.some.is_some() || pressure.full.is_some()).then_some(pressure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn processor_time() {
        let parse = |line: &str| Stat::parse(line.as_bytes());
        let before = parse("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 0 1 8\ncpu3 1 0 1 8 0 0 0 0");
        let after = parse(
            "cpu  110 10 115 850 5 3 2 5 7 7\nintr 1 2 3\nctxt 9\nprocesses 5\nprocs_running 2\n",
        );
        let shares = after.all.unwrap().shares_since(&before.all.unwrap()).unwrap();
        let expected = CpuShares { busy: 45.0, user: 20.0, system: 20.0, iowait: 5.0, steal: 5.0 };
        assert_eq!(shares, expected);
        assert_eq!(before.cores.iter().map(|core| core.0).collect::<Vec<_>>(), [0, 3]);
        assert_eq!(
            (after.context_switches, after.forks, after.threads_running),
            (Some(9), Some(5), Some(2))
        );
        assert_eq!(before.all.unwrap().shares_since(&before.all.unwrap()), None);
        assert!(before.all.unwrap().shares_since(&after.all.unwrap()).is_none());
        assert_eq!(parse("cpu 1 2 x 4"), Stat::default());
    }

    #[test]
    fn memory() {
        let info = MemInfo::parse(b"MemTotal:  16 kB\nMemFree: x kB\nSwapFree:\nCached:  18446744073709551615 kB\nActive: 1 kB\n");
        assert_eq!(info, MemInfo { total: Some(16384), ..MemInfo::default() });
    }

    #[test]
    fn averages() {
        assert_eq!(load_average(b"2.42 2.00 1.31 1/92 12822\n"), Some([2.42, 2.0, 1.31]));
        assert_eq!(load_average(b"2.42 2.00"), None);
        assert_eq!(load_average(b"2.42 inf 1"), None);
        assert_eq!(uptime_seconds(b"352.15 600.00\n"), Some(352.15));
        assert_eq!(uptime_seconds(b""), None);
    }

    #[test]
    fn pressures() {
        let both = b"some avg10=0.11 avg60=0.91 avg300=1.18 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.50 total=0\n";
        let expected = Pressure { some: Some([0.11, 0.91, 1.18]), full: Some([0.0, 0.0, 0.5]) };
        assert_eq!(pressure(both), Some(expected));
        assert_eq!(pressure(b"some avg10=0.11 avg60=0.91"), None);
        assert_eq!(pressure(b"some avg60=1 avg10=1 avg300=1"), None);
        assert_eq!(pressure(b""), None);
    }

    proptest! {
        #[test]
        fn anything_goes_in(bytes: Vec<u8>, text in "(cpu[0-9]?|MemTotal:|some|full|avg10=|[0-9.]{1,22}|[ \n]){0,40}") {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                Stat::parse(bytes);
                MemInfo::parse(bytes);
                load_average(bytes);
                uptime_seconds(bytes);
                pressure(bytes);
            }
        }
    }
}

//! Rates of network interfaces and block devices, from `/proc/net/dev` and `/proc/diskstats`.

use super::source::Counter;
use crate::Root;
use crate::text::{decimal, lines, printable, words};
use model::load::{DiskLoad, InterfaceLoad};
use std::collections::BTreeMap;
use std::time::Duration;

/// Interfaces, and disks, that are looked at.
const DEVICES_MAX: usize = 1024;
/// The unit of `/proc/diskstats`, whatever the device's own sectors are.
const SECTOR_BYTES: f64 = 512.0;

/// Counters of `N` kinds for each device, by name.
#[derive(Debug)]
pub(super) struct Devices<const N: usize> {
    counters: BTreeMap<String, [Counter; N]>,
}

impl<const N: usize> Default for Devices<N> {
    fn default() -> Self {
        Self { counters: BTreeMap::new() }
    }
}

impl<const N: usize> Devices<N> {
    /// The rates of every device, and forgets those that are gone.
    pub(super) fn rates(
        &mut self,
        clock: Duration,
        readings: BTreeMap<String, [u64; N]>,
    ) -> BTreeMap<String, [Option<f64>; N]> {
        self.counters.retain(|name, _| readings.contains_key(name));
        let mut rates = BTreeMap::new();
        for (name, values) in readings {
            let counters = self.counters.entry(name.clone()).or_insert([Counter::default(); N]);
            let mut of_device = [None; N];
            for ((rate, counter), value) in of_device.iter_mut().zip(counters).zip(values) {
                *rate = counter.rate(clock, Some(value));
            }
            rates.insert(name, of_device);
        }
        rates
    }
}

/// Received bytes, packets, errors, drops; sent bytes, packets, errors, drops.
pub(super) type Interfaces = Devices<8>;

impl Interfaces {
    pub(super) fn load(
        &mut self,
        clock: Duration,
        table: &[u8],
    ) -> BTreeMap<String, InterfaceLoad> {
        let sum = |a: Option<f64>, b: Option<f64>| Some(a? + b?);
        let rates = self.rates(clock, interface_counts(table));
        let load = |[
            bytes_in,
            packets_in,
            errors_in,
            drops_in,
            bytes_out,
            packets_out,
            errors_out,
            drops_out,
        ]: [Option<f64>; 8]| {
            InterfaceLoad {
                received_bytes_per_second: bytes_in,
                sent_bytes_per_second: bytes_out,
                received_packets_per_second: packets_in,
                sent_packets_per_second: packets_out,
                errors_per_second: sum(errors_in, errors_out),
                drops_per_second: sum(drops_in, drops_out),
            }
        };
        rates.into_iter().map(|(name, rates)| (name, load(rates))).collect()
    }
}

/// Reads, sectors read, writes, sectors written, busy milliseconds.
#[derive(Debug, Default)]
pub(super) struct Disks {
    devices: Devices<5>,
    /// Whether a name is that of a whole disk.
    whole: BTreeMap<String, bool>,
}

impl Disks {
    pub(super) fn load(
        &mut self,
        clock: Duration,
        table: &[u8],
        root: &Root,
    ) -> BTreeMap<String, DiskLoad> {
        let mut readings = disk_counts(table);
        self.whole.retain(|name, _| readings.contains_key(name));
        readings.retain(|name, values| {
            let unused = values.iter().all(|&value| value == 0);
            let passing = name.starts_with("loop") || name.starts_with("ram");
            if unused && passing {
                return false;
            }
            *self.whole.entry(name.clone()).or_insert_with(|| {
                let partition = root.sys(format!("class/block/{name}/partition"));
                !partition.exists()
            })
        });
        let rates = self.devices.rates(clock, readings);
        let load = |[reads, read, writes, written, busy]: [Option<f64>; 5]| DiskLoad {
            read_bytes_per_second: read.map(|sectors| sectors * SECTOR_BYTES),
            written_bytes_per_second: written.map(|sectors| sectors * SECTOR_BYTES),
            reads_per_second: reads,
            writes_per_second: writes,
            // Milliseconds per second; several requests at once count once, but for rounding.
            busy_percent: busy.map(|millis| (millis / 10.0).min(100.0)),
        };
        rates.into_iter().map(|(name, rates)| (name, load(rates))).collect()
    }
}

fn interface_counts(table: &[u8]) -> BTreeMap<String, [u64; 8]> {
    let mut counts = BTreeMap::new();
    for line in lines(table) {
        // A name may hold a colon (`eth0:1`), a number can't.
        let Some(colon) = line.iter().rposition(|&b| b == b':') else { continue };
        let (name, numbers) = line.split_at(colon);
        let numbers: Vec<u64> =
            words(numbers.get(1..).unwrap_or_default()).map_while(decimal).collect();
        let [
            bytes_in,
            packets_in,
            errors_in,
            drops_in,
            _,
            _,
            _,
            _,
            bytes_out,
            packets_out,
            errors_out,
            drops_out,
            ..,
        ] = numbers[..]
        else {
            continue;
        };
        if counts.len() < DEVICES_MAX {
            let values = [
                bytes_in,
                packets_in,
                errors_in,
                drops_in,
                bytes_out,
                packets_out,
                errors_out,
                drops_out,
            ];
            counts.insert(printable(name.trim_ascii()), values);
        }
    }
    counts
}

fn disk_counts(table: &[u8]) -> BTreeMap<String, [u64; 5]> {
    let mut counts = BTreeMap::new();
    for line in lines(table) {
        let mut fields = words(line).skip(2);
        let Some(name) = fields.next() else { continue };
        // A name becomes part of a path.
        let plain = name.iter().all(|b| b.is_ascii_alphanumeric() || b"-_!.".contains(b))
            && name != b".."
            && name != b".";
        let numbers: Vec<u64> = fields.map_while(decimal).collect();
        let [reads, _, read, _, writes, _, written, _, _, busy, ..] = numbers[..] else { continue };
        if plain && counts.len() < DEVICES_MAX {
            counts.insert(printable(name), [reads, read, writes, written, busy]);
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn interfaces() {
        let mut interfaces = Interfaces::default();
        let head = "Inter-|   Receive  |  Transmit\n face |bytes packets errs|bytes packets\n";
        let at = |interfaces: &mut Interfaces, seconds, rows: &str| {
            interfaces.load(Duration::from_secs(seconds), format!("{head}{rows}").as_bytes())
        };
        at(&mut interfaces, 10, "  eth0: 1000 10 0 0 0 0 0 0 2000 20 0 0 0 0 0 0\n");
        let rows = "  eth0:1500 12 1 2 0 0 0 0 2200 24 1 2 0 0 0 0\n eth0:1: 0 0 0 0 0 0 0 0 0 0 0 0 0\nlo: 1 2";
        let load = at(&mut interfaces, 12, rows);
        let expected = InterfaceLoad {
            received_bytes_per_second: Some(250.0),
            sent_bytes_per_second: Some(100.0),
            received_packets_per_second: Some(1.0),
            sent_packets_per_second: Some(2.0),
            errors_per_second: Some(1.0),
            drops_per_second: Some(2.0),
        };
        assert_eq!(load["eth0"], expected);
        assert_eq!(load["eth0:1"], InterfaceLoad::default());
        assert_eq!(load.len(), 2);
    }

    #[test]
    fn disks() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        std::fs::create_dir_all(root.sys("class/block/vda1/partition")).unwrap();
        let mut disks = Disks::default();
        let mut at =
            |seconds, rows: &str| disks.load(Duration::from_secs(seconds), rows.as_bytes(), &root);
        at(10, " 254 0 vda 10 0 100 5 20 0 200 5 0 1000 10\n");
        let rows = " 254 0 vda 12 0 104 5 24 0 208 5 0 3000 10 0 0\n 254 1 vda1 1 1 1 1 1 1 1 1 1 1 1\n 7 0 loop0 0 0 0 0 0 0 0 0 0 0 0\n 8 0 ../x 1 1 1 1 1 1 1 1 1 1 1\n 8 0 sdb 1";
        let load = at(12, rows);
        let expected = DiskLoad {
            read_bytes_per_second: Some(1024.0),
            written_bytes_per_second: Some(2048.0),
            reads_per_second: Some(1.0),
            writes_per_second: Some(2.0),
            busy_percent: Some(100.0),
        };
        assert_eq!(load.get("vda"), Some(&expected));
        assert_eq!(load.len(), 1);
    }

    proptest! {
        #[test]
        fn anything_goes_in(bytes: Vec<u8>, text in "([a-z:]{1,4}|[0-9]{1,22}|[ \n]){0,60}") {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                interface_counts(bytes);
                disk_counts(bytes);
            }
        }
    }
}

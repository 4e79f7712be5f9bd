//! Asks `nvidia-smi`, and reads its answers. Only [`ask`] does anything.

use crate::text::{decimal, fraction, lines, printable};
use model::entity::Gpu;
use model::load::GpuLoad;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// Bytes of an answer that are looked at.
const ANSWER_MAX: u64 = 256 * 1024;
/// Devices, and processes on them, that are looked at.
const ROWS_MAX: usize = 1024;

pub(super) const DEVICES: &str = "--query-gpu=pci.bus_id,name,uuid,memory.total,driver_version,\
    utilization.gpu,memory.used,temperature.gpu";
pub(super) const PROCESSES: &str = "--query-compute-apps=gpu_bus_id,pid";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not start nvidia-smi")]
    Start(#[source] io::Error),
    #[error("could not read the answer of nvidia-smi")]
    Read(#[source] io::Error),
    #[error("nvidia-smi did not answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("nvidia-smi failed: {0}")]
    Failed(String),
}

/// Runs one query. The program is ended when it takes too long.
pub(super) async fn ask(program: &Path, query: &str, within: Duration) -> Result<Vec<u8>, Error> {
    let mut child = Command::new(program)
        .args([query, "--format=csv,noheader,nounits"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::Start)?;
    let mut answer = Vec::new();
    let run = async {
        if let Some(stdout) = child.stdout.take() {
            stdout.take(ANSWER_MAX).read_to_end(&mut answer).await.map_err(Error::Read)?;
        }
        child.wait().await.map_err(Error::Read)
    };
    let status =
        tokio::time::timeout(within, run).await.map_err(|_elapsed| Error::Late(within))??;
    if !status.success() {
        // It says what is wrong on its output.
        let said = lines(&answer).next().map(printable).unwrap_or_else(|| status.to_string());
        return Err(Error::Failed(said.chars().take(200).collect()));
    }
    Ok(answer)
}

/// The answer to [`DEVICES`]. A line that is not whole is left out.
pub(super) fn devices(answer: &[u8]) -> Vec<(Gpu, GpuLoad)> {
    const MIB: u64 = 1 << 20;
    let mut devices = Vec::new();
    for line in lines(answer).take(ROWS_MAX) {
        let fields: Vec<&[u8]> = line.split(|&b| b == b',').map(<[u8]>::trim_ascii).collect();
        let [bus, name, uuid, memory, driver, busy, used, temperature] = fields[..] else {
            continue;
        };
        let Some(id) = bus_id(bus) else { continue };
        let text = |field: &[u8]| known(field).map(printable);
        let bytes = |field: &[u8]| known(field).and_then(decimal)?.checked_mul(MIB);
        let gpu = Gpu {
            id,
            vendor: Some("NVIDIA".to_owned()),
            model: text(name),
            uuid: text(uuid),
            memory_bytes: bytes(memory).and_then(|bytes| i64::try_from(bytes).ok()),
            driver: Some("nvidia".to_owned()),
            driver_version: text(driver),
        };
        let load = GpuLoad {
            busy_percent: known(busy).and_then(fraction),
            memory_used_bytes: bytes(used),
            temperature_celsius: known(temperature).and_then(fraction),
        };
        devices.push((gpu, load));
    }
    devices
}

/// The answer to [`PROCESSES`]: the devices of each process.
pub(super) fn processes(answer: &[u8]) -> BTreeMap<u32, Vec<String>> {
    let mut by_pid: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for line in lines(answer).take(ROWS_MAX) {
        let mut fields = line.split(|&b| b == b',').map(<[u8]>::trim_ascii);
        let (Some(bus), Some(pid)) = (fields.next().and_then(bus_id), fields.next()) else {
            continue;
        };
        let Some(pid) = decimal(pid).and_then(|pid| u32::try_from(pid).ok()) else { continue };
        let devices = by_pid.entry(pid).or_default();
        if !devices.contains(&bus) {
            devices.push(bus);
        }
    }
    by_pid
}

/// `00000000:01:00.0` as sysfs writes it: `0000:01:00.0`.
fn bus_id(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?.to_ascii_lowercase();
    let (domain, rest) = text.split_once(':')?;
    let hexadecimal = |part: &str| part.bytes().all(|b| b.is_ascii_hexdigit());
    let whole = rest.len() == 7
        && rest.split([':', '.']).map(str::len).eq([2, 2, 1])
        && rest.split([':', '.']).all(hexadecimal);
    let domain = u32::from_str_radix(domain, 16).ok().filter(|_| hexadecimal(domain))?;
    whole.then(|| format!("{domain:04x}:{rest}"))
}

/// `[N/A]`, `[Not Supported]` and `[Unknown Error]` are no values.
fn known(field: &[u8]) -> Option<&[u8]> {
    let unknown = field.is_empty() || field.starts_with(b"[") || field == b"N/A";
    (!unknown).then_some(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers() {
        let answer = "00000000:01:00.0, NVIDIA GeForce RTX 3090, GPU-1234, 24576, 535.183.01, 37, 1024, 54\n\
            00000000:02:00.0, Tesla, [N/A], [N/A], 535, [Not Supported], [N/A], [N/A]\n\
            garbage\n\
            00000000:03:00, x, x, 1, 1, 1, 1, 1\n";
        let devices = devices(answer.as_bytes());
        assert_eq!(devices.len(), 2);
        let (gpu, load) = &devices[0];
        assert_eq!((gpu.id.as_str(), gpu.memory_bytes), ("0000:01:00.0", Some(24576 << 20)));
        assert_eq!(gpu.driver_version.as_deref(), Some("535.183.01"));
        let expected = GpuLoad {
            busy_percent: Some(37.0),
            memory_used_bytes: Some(1 << 30),
            temperature_celsius: Some(54.0),
        };
        assert_eq!(*load, expected);
        assert_eq!(devices[1].1, GpuLoad::default());
        assert_eq!(devices[1].0.uuid, None);
    }

    #[test]
    fn users_of_devices() {
        let answer = b"00000000:01:00.0, 100\n00000000:02:00.0, 100\n00000000:01:00.0, 100\n[N/A], 5\n00000000:01:00.0, -\n";
        let expected = [(100, vec!["0000:01:00.0".to_owned(), "0000:02:00.0".to_owned()])];
        assert_eq!(processes(answer), BTreeMap::from(expected));
    }

    proptest! {
        #[test]
        fn anything_goes_in(bytes: Vec<u8>, text in "([0-9a-f:.]{0,17}(, [0-9a-zA-Z\\[\\]/]{0,9}){0,9}\n){0,4}") {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                devices(bytes);
                processes(bytes);
            }
        }
    }
}

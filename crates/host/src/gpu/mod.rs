//! Graphics processors: what they are, how busy, and which processes use them.
//!
//! Every display controller on the PCI bus is one; `nvidia-smi`, where the machine has it,
//! knows more of NVIDIA's. It is given a deadline, since it hangs with a hung driver, and its
//! failure is a fault beside what the kernel lists, never instead of it.

mod nvidia;
mod sysfs;

pub use nvidia::Error;

use crate::Root;
use model::entity::Gpu;
use model::load::GpuLoad;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What one look came to.
#[derive(Debug, Default)]
pub struct Observation {
    pub gpus: Vec<Gpu>,
    /// By the id of the GPU.
    pub load: BTreeMap<String, GpuLoad>,
    /// The ids of the GPUs that each process computes on, as far as a driver tells.
    pub processes: BTreeMap<u32, Vec<String>>,
    /// Why some of it is missing.
    pub fault: Option<Error>,
}

/// Finds `nvidia-smi` in a list of directories such as `PATH`.
#[must_use]
pub fn find_nvidia_smi(path: &str) -> Option<PathBuf> {
    path.split(':')
        .filter(|directory| directory.starts_with('/'))
        .map(|directory| Path::new(directory).join("nvidia-smi"))
        .find(|program| program.is_file())
}

/// Looks once. `nvidia_smi` is asked twice at most, each time for `within` at most.
pub async fn observe(root: &Root, nvidia_smi: Option<&Path>, within: Duration) -> Observation {
    let mut devices: BTreeMap<String, (Gpu, GpuLoad)> =
        sysfs::devices(root).into_iter().map(|(gpu, load)| (gpu.id.clone(), (gpu, load))).collect();
    let mut observation = Observation::default();
    if let Some(program) = nvidia_smi {
        match ask_nvidia(program, within).await {
            Ok((told, processes)) => {
                for (gpu, load) in told {
                    devices.insert(gpu.id.clone(), (gpu, load));
                }
                observation.processes = processes;
            }
            Err(fault) => observation.fault = Some(fault),
        }
    }
    for (id, (gpu, load)) in devices {
        observation.gpus.push(gpu);
        if load != GpuLoad::default() {
            observation.load.insert(id, load);
        }
    }
    observation
}

type Told = (Vec<(Gpu, GpuLoad)>, BTreeMap<u32, Vec<String>>);

async fn ask_nvidia(program: &Path, within: Duration) -> Result<Told, Error> {
    let devices = nvidia::devices(&nvidia::ask(program, nvidia::DEVICES, within).await?);
    if devices.is_empty() {
        return Ok((devices, BTreeMap::new()));
    }
    let processes = nvidia::ask(program, nvidia::PROCESSES, within).await?;
    Ok((devices, nvidia::processes(&processes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    /// Written by another process: a descriptor of ours, inherited by what another test
    /// starts, would keep the file busy.
    fn program(directory: &Path, script: &str) -> PathBuf {
        let path = directory.join("nvidia-smi");
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let status = Command::new("/bin/sh").args(["-c", write]).arg(&path).arg(script).status();
        assert!(status.unwrap().success());
        path
    }

    async fn look(script: &str, within: Duration) -> (tempfile::TempDir, Observation) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        let card = root.sys("bus/pci/devices/0000:01:00.0");
        fs::create_dir_all(&card).unwrap();
        fs::write(card.join("class"), "0x030000\n").unwrap();
        fs::write(card.join("vendor"), "0x10de\n").unwrap();
        let program = program(directory.path(), script);
        let observation = observe(&root, Some(&program), within).await;
        (directory, observation)
    }

    #[tokio::test]
    async fn the_driver_knows_more_than_the_bus() {
        let script = r#"case "$1" in
            --query-gpu=pci.bus_id,name,uuid,memory.total,driver_version,utilization.gpu,memory.used,temperature.gpu)
                echo "00000000:01:00.0, RTX, GPU-1, 1024, 535, 5, 10, 40";;
            *) echo "00000000:01:00.0, 4711";;
            esac"#;
        let (_directory, seen) = look(script, Duration::from_secs(20)).await;
        assert!(seen.fault.is_none(), "{:?}", seen.fault);
        assert_eq!(seen.gpus.len(), 1);
        assert_eq!(seen.gpus[0].model.as_deref(), Some("RTX"));
        assert_eq!(seen.load["0000:01:00.0"].busy_percent, Some(5.0));
        assert_eq!(seen.processes[&4711], ["0000:01:00.0"]);
    }

    #[tokio::test]
    async fn failures_are_faults_beside_what_is_known() {
        let (_directory, seen) =
            look("echo 'No devices were found'; exit 6", Duration::from_secs(20)).await;
        assert_eq!(seen.fault.unwrap().to_string(), "nvidia-smi failed: No devices were found");
        assert_eq!(seen.gpus[0].vendor.as_deref(), Some("NVIDIA"));
        let (_directory, seen) = look("exec sleep 1000", Duration::from_millis(50)).await;
        assert!(matches!(seen.fault, Some(Error::Late(_))));
        let absent = Path::new("/nowhere/nvidia-smi");
        let seen = observe(&Root::at("/nowhere"), Some(absent), Duration::from_secs(1)).await;
        assert!(matches!(seen.fault, Some(Error::Start(_))));
    }

    #[test]
    fn where_it_is_looked_for() {
        let directory = tempfile::tempdir().unwrap();
        let program = program(directory.path(), "");
        let path = format!("relative::/nowhere:{}", directory.path().display());
        assert_eq!(find_nvidia_smi(&path), Some(program));
        assert_eq!(find_nvidia_smi("bin"), None);
    }
}

//! Answers of programs and of systemd, read by functions that open nothing. Their files are
//! taken in by their path, being private to their crate.

#[allow(dead_code, reason = "asking is left out here")]
#[path = "../../../crates/host/src/gpu/nvidia.rs"]
mod nvidia;
#[allow(dead_code, reason = "asking is left out here")]
#[path = "../../../crates/host/src/systemd/unit.rs"]
mod unit;

use super::printable;
use crate::machine::parts;
use crate::redactor;
use ::host::workload::{Signs, deserves_a_closer_look, judge};
use arbitrary::Arbitrary;
use serde_json::Value;

/// nvidia-smi's two tables.
pub fn host_nvidia(data: &[u8]) {
    let [devices, processes] = parts(data);
    let gpus: Vec<_> = nvidia::devices(devices).into_iter().map(|(gpu, _)| gpu).collect();
    printable(&gpus);
    for devices in nvidia::processes(processes).into_values() {
        assert!(devices.iter().all(|device| device.is_ascii()));
    }
}

/// The properties of units as `busctl --json=short` writes them: a list of objects.
pub fn host_unit(data: &[u8]) {
    let Ok(Value::Array(units)) = serde_json::from_slice(data) else { return };
    for one in units {
        let Value::Object(one) = one else { continue };
        let properties: unit::Properties = one
            .into_iter()
            .map(|(name, mut value)| match value.get_mut("data") {
                Some(data) => (name, data.take()),
                None => (name, value),
            })
            .collect();
        for owner in [None, Some("me")] {
            let seen = unit::unit(&properties, &redactor(), owner);
            printable(seen.as_slice());
        }
    }
}

#[derive(Debug, Arbitrary)]
pub struct MadeSigns {
    name: String,
    program: u8,
    arguments: Vec<(u8, String)>,
    libraries: Vec<String>,
    files: Vec<String>,
    gpus: Vec<String>,
}

/// Whether a process runs a language model, by whatever it calls itself.
pub fn host_workload(made: MadeSigns) {
    const PROGRAMS: [&str; 6] = ["python3", "/usr/bin/ollama", "uvicorn", "sh", "torchrun", ""];
    const WORDS: [&str; 8] =
        ["", "-c", "-m", "--model=", "--model", "import ", "from ", "/x/vllm/"];
    let program = PROGRAMS[usize::from(made.program) % PROGRAMS.len()];
    let words = made
        .arguments
        .into_iter()
        .map(|(word, text)| format!("{}{text}", WORDS[usize::from(word) % WORDS.len()]));
    let arguments: Vec<String> = std::iter::once(program.to_owned()).chain(words).collect();
    let signs = Signs {
        name: &made.name,
        executable: (!program.is_empty()).then_some(program),
        arguments: &arguments,
        libraries: &made.libraries,
        open_files: &made.files,
        gpus: &made.gpus,
    };
    // Whatever has a verdict is looked at.
    assert!(judge(&signs).is_none() || deserves_a_closer_look(&signs));
}

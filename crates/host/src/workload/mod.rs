//! Which processes run a language model: a [`Detector`] that gathers the signs for
//! [`judge`], and remembers the costly ones.
//!
//! Memory maps are read only of processes that may be one (interpreters, users of a graphics
//! processor, holders of a model), when they are new, a few times soon after (libraries are
//! loaded late), and then seldom.

mod judge;
mod names;

pub use judge::{Signs, Verdict, deserves_a_closer_look, judge};

use crate::Root;
use crate::process::{Scanner, View};
use crate::sockets::table::each_line;
use crate::text::{printable, words};
use model::entity::{Socket, Workload};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Telling libraries kept of one process.
const LIBRARIES_MAX: usize = 32;
/// Lines of one memory map that are looked at.
const MAP_LINES_MAX: usize = 50_000;
/// Processes whose maps are kept.
const PROCESSES_MAX: usize = 4096;

/// What was seen of one process.
#[derive(Debug)]
struct Look {
    start_ticks: u64,
    executable: Option<String>,
    age: u32,
    round: u32,
    libraries: Vec<String>,
}

impl Look {
    fn is_due(&self, pid: u32) -> bool {
        match self.age {
            0 => true,
            age @ 1..=32 => age.is_power_of_two(),
            age => age.wrapping_add(pid).is_multiple_of(64),
        }
    }
}

/// Finds workloads, and remembers which libraries a process has.
#[derive(Debug)]
pub struct Detector {
    root: Root,
    looks: HashMap<u32, Look>,
    /// Groups whose names and arguments are no sign of a model: what their processes open may be.
    plain: HashSet<Arc<str>>,
    round: u32,
    buffer: Vec<u8>,
}

impl Detector {
    #[must_use]
    pub fn new(root: &Root) -> Self {
        Self {
            root: root.clone(),
            looks: HashMap::new(),
            plain: HashSet::new(),
            round: 0,
            buffer: Vec::new(),
        }
    }

    /// The workloads among the scanned processes, one for each group of processes.
    /// `gpus` gives the GPUs that drivers say a process computes on.
    pub fn observe(
        &mut self,
        scanner: &Scanner,
        sockets: &[Socket],
        gpus: &BTreeMap<u32, Vec<String>>,
    ) -> Vec<Workload> {
        self.round = self.round.wrapping_add(1);
        let mut workloads: BTreeMap<String, Workload> = BTreeMap::new();
        for process in scanner.processes() {
            let Some(id) = process.group_id() else { continue };
            let own = gpus.get(&process.pid).map(Vec::as_slice).unwrap_or_default();
            let opens_nothing = own.is_empty()
                && process.open_files.is_empty()
                && process.graphics_devices.is_empty();
            if opens_nothing && self.plain.contains(id) {
                continue;
            }
            let Some(found) = self.judge_process(&process, own) else {
                // One that deserved a closer look may show something in the next.
                let was_looked_at = self.looks.contains_key(&process.pid);
                if opens_nothing && !was_looked_at && self.looks.len() < PROCESSES_MAX {
                    self.plain.insert(Arc::clone(id));
                }
                continue;
            };
            match workloads.get_mut(&**id) {
                Some(workload) => merge(workload, found),
                None => {
                    let name = process.name();
                    let (unit, container) = (process.unit(), process.container());
                    let workload = Workload {
                        id: id.to_string(),
                        listens: listens(sockets, &name, unit, container),
                        name,
                        unit: unit.map(str::to_owned),
                        container: container.map(str::to_owned),
                        ..found
                    };
                    workloads.insert(id.to_string(), workload);
                }
            }
        }
        let round = self.round;
        self.looks.retain(|_, look| look.round == round);
        if self.plain.len() > 2 * scanner.processes().count() {
            self.plain.clear();
        }
        workloads.into_values().collect()
    }

    /// A workload without its place, when the process is one.
    fn judge_process(&mut self, process: &View<'_>, gpus: &[String]) -> Option<Workload> {
        let name = process.name();
        let open_files: Vec<String> = process.open_files.iter().map(|f| f.to_string()).collect();
        // Drivers know better than open devices, which a mere listing of GPUs opens, too.
        let gpus = match gpus {
            [] => process.graphics_devices.iter().map(|device| device.to_string()).collect(),
            known => known.to_vec(),
        };
        let signs = Signs {
            name: &name,
            executable: process.executable(),
            arguments: process.arguments(),
            libraries: &[],
            open_files: &open_files,
            gpus: &gpus,
        };
        if !deserves_a_closer_look(&signs) {
            return None;
        }
        let libraries = self.libraries(process);
        let verdict = judge(&Signs { libraries, ..signs })?;
        Some(Workload {
            runtime: verdict.runtime.to_owned(),
            evidence: verdict.evidence,
            model_files: verdict.model_files,
            gpus,
            ..Workload::default()
        })
    }

    fn libraries(&mut self, process: &View<'_>) -> &[String] {
        if self.looks.len() >= PROCESSES_MAX && !self.looks.contains_key(&process.pid) {
            return &[];
        }
        let fresh = || Look {
            start_ticks: process.start_ticks,
            executable: process.executable().map(str::to_owned),
            age: 0,
            round: 0,
            libraries: Vec::new(),
        };
        let look = self.looks.entry(process.pid).or_insert_with(fresh);
        let same = look.start_ticks == process.start_ticks
            && look.executable.as_deref() == process.executable();
        if !same {
            *look = fresh();
        }
        if look.is_due(process.pid) {
            let mut seen = BTreeSet::new();
            let mut lines = 0;
            let path = self.root.proc(format!("{}/maps", process.pid));
            // Gone, or not ours to read: then nothing more is known of it.
            let _unreadable = each_line(&path, &mut self.buffer, |line| {
                lines += 1;
                if let Some(path) = mapped_file(line).filter(|p| judge::is_telling_library(p)) {
                    seen.insert(path);
                }
                lines < MAP_LINES_MAX && seen.len() < LIBRARIES_MAX
            });
            look.libraries = seen.into_iter().collect();
        }
        look.age = look.age.saturating_add(1);
        look.round = self.round;
        &look.libraries
    }
}

/// The path at the end of a line of `/proc/PID/maps`: `RANGE PERMS OFFSET DEVICE INODE PATH`.
fn mapped_file(line: &[u8]) -> Option<String> {
    let slash = line.iter().position(|&b| b == b'/')?;
    let (before, path) = line.split_at(slash);
    if words(before).count() != 5 {
        return None;
    }
    Some(printable(path.strip_suffix(b" (deleted)").unwrap_or(path)))
}

/// Another process of the same group adds what it alone shows.
fn merge(workload: &mut Workload, other: Workload) {
    let add = |to: &mut Vec<String>, from: Vec<String>| {
        for text in from {
            if !to.contains(&text) {
                to.push(text);
            }
        }
        to.sort();
    };
    add(&mut workload.evidence, other.evidence);
    add(&mut workload.model_files, other.model_files);
    add(&mut workload.gpus, other.gpus);
}

/// Where the processes of that name, unit and container listen.
fn listens(
    sockets: &[Socket],
    name: &str,
    unit: Option<&str>,
    container: Option<&str>,
) -> Vec<String> {
    sockets
        .iter()
        .filter(|socket| {
            socket.process.as_deref() == Some(name)
                && socket.unit.as_deref() == unit
                && socket.container.as_deref() == container
        })
        .map(|socket| socket.id.clone())
        .collect()
}

#[cfg(test)]
mod detector_tests {
    use super::*;
    use crate::Now;
    use model::redact::Redactor;
    use proptest::prelude::*;
    use std::fs;

    fn put(root: &Root, pid: u32, command_line: &str, maps: &str) {
        let directory = root.proc(pid.to_string());
        fs::create_dir_all(directory.join("fd")).unwrap();
        let name = command_line.split(' ').next().unwrap();
        let stat =
            format!("{pid} ({name}) S 1 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid} 4096 10 0\n");
        fs::write(directory.join("stat"), stat).unwrap();
        fs::write(directory.join("cmdline"), command_line.replace(' ', "\0")).unwrap();
        fs::write(directory.join("cgroup"), "0::/system.slice/chat.service\n").unwrap();
        fs::write(directory.join("maps"), maps).unwrap();
    }

    #[test]
    fn libraries_that_come_late() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        put(&root, 10, "python3 chat.py", "");
        put(&root, 11, "nginx -g", "7f00-7f01 r-xp 00000000 fe:00 9 /usr/lib/libllama.so.1\n");
        let mut scanner = Scanner::new(&root).unwrap();
        let mut detector = Detector::new(&root);
        let mut observe = || {
            scanner.scan(Now::default(), &Redactor::new([7; 32], Vec::new())).unwrap();
            let listener = |process: &str, port| Socket {
                id: format!("tcp 0.0.0.0:{port}"),
                process: Some(process.into()),
                unit: Some("chat.service".into()),
                ..Socket::default()
            };
            let sockets = [listener("python3", 8000), listener("nginx", 80)];
            detector.observe(
                &scanner,
                &sockets,
                &BTreeMap::from([(10, vec!["0000:01:00.0".into()])]),
            )
        };
        assert_eq!(observe(), []);
        put(
            &root,
            10,
            "python3 chat.py",
            "7f00-7f01 r-xp 00000000 fe:00 9    /x/torch/lib/libtorch_cpu.so\n",
        );
        let seen = (0..8).map(|_| observe()).find(|seen| !seen.is_empty()).unwrap();
        assert_eq!(seen.len(), 1);
        let workload = &seen[0];
        assert!(workload.id.starts_with("python3#"), "{}", workload.id);
        assert_eq!(
            (workload.runtime.as_str(), workload.unit.as_deref()),
            ("torch", Some("chat.service"))
        );
        assert_eq!(workload.listens, ["tcp 0.0.0.0:8000"]);
        assert_eq!(workload.gpus, ["0000:01:00.0"]);
    }

    #[test]
    fn maps() {
        let check = |line: &str, expected: Option<&str>| {
            assert_eq!(mapped_file(line.as_bytes()).as_deref(), expected, "{line}");
        };
        check(
            "556df0111000-556df0113000 r--p 00000000 fe:00 247026      /usr/bin/cat",
            Some("/usr/bin/cat"),
        );
        check("5-6 r--p 0 fe:00 2 /a b.so (deleted)", Some("/a b.so"));
        check("7fff-8000 rw-p 00000000 00:00 0    [stack]", None);
        check("7fff-8000 rw-p 00000000 00:00 0", None);
        check("/usr/bin/cat", None);
    }

    proptest! {
        #[test]
        fn anything_goes_in(bytes: Vec<u8>) {
            mapped_file(&bytes);
        }
    }
}

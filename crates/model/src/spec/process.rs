//! Processes that no unit and no container owns: each becomes a service of the twin's.
//!
//! # Invariants
//! - Whatever a process is called and started with, its unit is one service with one command:
//!   words are quoted for systemd, and there is no shell.

use super::{Cause, Spec, UnitName};
use crate::entity::{self, Entity};
use crate::redact::MARK;
use crate::{ContentId, Facts, Subject, Time};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

/// How the units that are made for processes begin.
pub const PREFIX: &str = "digital_twin_";
/// What a process that nobody limits may take: bytes, and hundredths of one processor.
const MEMORY_MAX: u64 = 1 << 30;
const CPU_PERCENT: u32 = 100;
/// Units made for one group of equal processes.
const GROUP_MAX: usize = 16;

/// What people and logins run by themselves; a twin has its own.
const PASSING: [&str; 18] = [
    "(sd-pam)",
    "agetty",
    "bash",
    "dash",
    "fish",
    "init",
    "ksh",
    "login",
    "scp",
    "screen",
    "sftp-server",
    "sh",
    "sshd",
    "su",
    "sudo",
    "systemd",
    "tmux: server",
    "zsh",
];
/// Commands that change a machine, or look at it, and end. Run once more in a twin they would do
/// there what a plan decides.
const COMMANDS: [&str; 20] = [
    "apt",
    "apt-get",
    "aptitude",
    "dnf",
    "docker",
    "dpkg",
    "halt",
    "journalctl",
    "loginctl",
    "mount",
    "poweroff",
    "reboot",
    "rpm",
    "shutdown",
    "systemctl",
    "systemd-run",
    "umount",
    "useradd",
    "userdel",
    "yum",
];
/// How long a process that nothing else brings has to be there before a twin has it: what somebody
/// runs by hand is over by then.
const SETTLED: Duration = Duration::from_secs(5);
/// Of this product; a twin has its own.
const OURS: [&str; 3] = ["twin", "twin-agent", "twin-guest"];

/// A service made for a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The process it is made for.
    pub subject: Subject,
    /// What the unit file says; the description names the process and a hash of the rest.
    pub text: String,
    pub description: String,
}

impl Spec {
    pub(super) fn take_processes(&mut self, facts: &Facts) {
        let all: Vec<entity::Process> =
            facts.entities::<entity::Process>().filter(is_alone).collect();
        let names: BTreeSet<&str> = all.iter().map(|process| process.name.as_str()).collect();
        for process in &all {
            // What another of these started, it starts in the twin, too.
            let is_child = process
                .parent
                .as_deref()
                .is_some_and(|parent| parent != process.name && names.contains(parent));
            if !is_child {
                self.take_process(process);
            }
        }
    }

    fn take_process(&mut self, process: &entity::Process) {
        let (subject, _) = process.to_item();
        if process.arguments.iter().any(|word| word.contains(MARK)) {
            let what = "a secret is among its arguments";
            self.gap(&subject, Cause::Secret, what, "start it in the twin by hand");
            return;
        }
        let Some(executable) = process.executable.as_deref().filter(|path| path.starts_with('/'))
        else {
            let what = "its program is not known";
            self.gap(&subject, Cause::Unseen, what, "let the agent run as root");
            return;
        };
        if executable.ends_with(" (deleted)") {
            let what = "its program was deleted while it runs";
            self.gap(&subject, Cause::Data, what, "start it anew on the host");
            return;
        }
        // Workers are started by what they work for, in the twin, too.
        let own: Vec<i64> =
            process.pids.iter().filter(|pid| !process.forked.contains(pid)).copied().collect();
        if own.len() > GROUP_MAX {
            let what = format!("only {GROUP_MAX} of {} equal ones are made", own.len());
            self.gap(&subject, Cause::Data, &what, "let one unit start them");
        }
        for pid in own.into_iter().take(GROUP_MAX) {
            if let Some((name, made)) = unit(&subject, process, executable, pid) {
                self.processes.insert(name, made);
            }
        }
    }
}

/// Takes processes from the facts that may be over in a moment; returns when the next of them has
/// been there long enough.
pub fn leave_out_passing(facts: &mut Facts, now: Time) -> Option<Time> {
    let young = |process: &entity::Process| {
        let started_at = process.started_at?;
        let settled_at = started_at.plus(SETTLED);
        // A clock that is far ahead tells nothing.
        let is_young = settled_at > now && started_at < now.plus(SETTLED);
        (is_young && is_alone(process)).then_some(settled_at)
    };
    let passing: Vec<(Subject, Time)> = facts
        .entities::<entity::Process>()
        .filter_map(|process| Some((process.to_item().0, young(&process)?)))
        .collect();
    for (subject, _) in &passing {
        facts.remove(subject);
    }
    passing.into_iter().map(|(_, settled_at)| settled_at).min()
}

/// Whether nothing else that is followed brings it.
fn is_alone(process: &entity::Process) -> bool {
    let is_free = process.unit.as_deref().is_none_or(|unit| unit.ends_with(".scope"));
    let is_kept = !PASSING.contains(&process.name.as_str()) || runs_script(process);
    // The first of all processes is in a scope of its own.
    is_free
        && is_kept
        && process.container.is_none()
        && !process.pids.contains(&1)
        && !OURS.contains(&process.name.as_str())
        && !COMMANDS.contains(&process.name.as_str())
}

/// A shell that runs a file, not a person's.
fn runs_script(process: &entity::Process) -> bool {
    ["bash", "dash", "sh", "ksh", "zsh", "fish"].contains(&process.name.as_str())
        && process.arguments.get(1).is_some_and(|word| word.starts_with('/'))
}

fn unit(
    subject: &Subject,
    process: &entity::Process,
    executable: &str,
    pid: i64,
) -> Option<(UnitName, Process)> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name: String = process.name.chars().take(64).map(plain).collect();
    let unit: UnitName = format!("{PREFIX}{name}_{pid}.service").parse().ok()?;
    let mut service = String::new();
    let mut line = |key: &str, value: &str| {
        writeln!(service, "{key}={value}").expect("a text takes whatever is written");
    };
    line("Type", "simple");
    line("ExecStart", &command(executable, &process.arguments));
    if let Some(user) =
        process.user.as_deref().filter(|user| user.parse::<super::AccountName>().is_ok())
    {
        line("User", user);
    }
    if let Some(directory) = process.working_directory.as_deref().filter(|d| d.starts_with('/')) {
        // Without it the process still runs, elsewhere.
        line("WorkingDirectory", &format!("-{}", quoted_path(directory)));
    }
    line("Restart", "on-failure");
    line("RestartSec", "5s");
    line("MemoryMax", &MEMORY_MAX.to_string());
    line("CPUQuota", &format!("{CPU_PERCENT}%"));
    let hash = ContentId::of(service.as_bytes()).to_string();
    let hash = hash.get(..12).unwrap_or_default();
    let description = format!("Twin of the process {name} {pid}, form {hash}");
    let text = format!(
        "# Written by SafetyTwin for a process that no unit owns on the host.\n\
         [Unit]\nDescription={description}\n\n[Service]\n{service}\n[Install]\nWantedBy=multi-user.target\n"
    );
    Some((unit, Process { subject: subject.clone(), text, description }))
}

/// The command line as systemd reads it back: the program, then each argument as it was.
pub(super) fn command(executable: &str, arguments: &[String]) -> String {
    let name = arguments.first().map_or(executable, String::as_str);
    // The first word of a process may differ from its program; @ says so.
    let mut line = format!("@{} {}", quoted(executable), quoted(name));
    for word in arguments.iter().skip(1) {
        line.push(' ');
        line.push_str(&quoted(word));
    }
    line
}

/// A word in quotes, with all that systemd would take for something else escaped.
fn quoted(word: &str) -> String {
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => {
                text.push('\\');
                text.push(c);
            }
            '%' | '$' => {
                text.push(c);
                text.push(c);
            }
            c if c.is_control() => {
                let mut utf8 = [0; 4];
                for byte in c.encode_utf8(&mut utf8).bytes() {
                    write!(text, "\\x{byte:02x}").expect("a text takes whatever is written");
                }
            }
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// A variable and its value, as systemd reads them back. Nothing is put in for a `$` there.
pub(super) fn quoted_assignment(name: &str, value: &str) -> String {
    quoted(&format!("{name}={value}")).replace("$$", "$")
}

/// A path takes no quotes; only specifiers mean something in it.
pub(super) fn quoted_path(path: &str) -> String {
    let plain: String = path.chars().filter(|c| !c.is_control()).collect();
    plain.replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Extras;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn process(arguments: &[&str]) -> entity::Process {
        entity::Process {
            id: "stray#1".into(),
            name: "stray".into(),
            executable: Some("/usr/bin/stray".into()),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            user: Some("app".into()),
            working_directory: Some("/srv".into()),
            pids: vec![42],
            ..entity::Process::default()
        }
    }

    fn check(process: &entity::Process, expected: &Expect) {
        let mut facts = Facts::default();
        facts.put_entity(process);
        let spec = Spec::of(&facts, &Extras::default(), None);
        let units = spec.processes.iter().map(|(name, made)| format!("{name}\n{}", made.text));
        let gaps = spec.gaps.iter().map(|gap| format!("{}: {}\n", gap.subject, gap.what));
        expected.assert_eq(&units.chain(gaps).collect::<String>());
    }

    #[test]
    fn workers_are_left_to_what_they_work_for() {
        let many = entity::Process {
            pids: vec![42, 43, 44, 50],
            forked: vec![43, 44],
            ..process(&["stray"])
        };
        let mut facts = Facts::default();
        facts.put_entity(&many);
        let spec = Spec::of(&facts, &Extras::default(), None);
        let names: Vec<_> = spec.processes.keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["digital_twin_stray_42.service", "digital_twin_stray_50.service"]);
    }

    #[test]
    fn units_of_processes() {
        check(
            &process(&["stray", "a b", "$(rm -rf /); %n \"x\" \\", "x\ny"]),
            &expect![[r#"
            digital_twin_stray_42.service
            # Written by SafetyTwin for a process that no unit owns on the host.
            [Unit]
            Description=Twin of the process stray 42, form eaf9a7a8ef08

            [Service]
            Type=simple
            ExecStart=@"/usr/bin/stray" "stray" "a b" "$$(rm -rf /); %%n \"x\" \\" "x\x0ay"
            User=app
            WorkingDirectory=-/srv
            Restart=on-failure
            RestartSec=5s
            MemoryMax=1073741824
            CPUQuota=100%

            [Install]
            WantedBy=multi-user.target
        "#]],
        );
        check(
            &process(&["stray", "--token=redacted:0123456789abcdef"]),
            &expect![[r#"
            process:stray#1: a secret is among its arguments
        "#]],
        );
        let shell = entity::Process { name: "bash".into(), ..process(&["-bash"]) };
        check(&shell, &expect![[""]]);
        let owned = entity::Process { unit: Some("app.service".into()), ..process(&["stray"]) };
        check(&owned, &expect![[""]]);
        let hostile = entity::Process {
            name: "../../x;y\n".into(),
            user: Some("a\nExecStart=/bin/sh".into()),
            working_directory: Some("/a\n[Unit]".into()),
            ..process(&["x"])
        };
        check(
            &hostile,
            &expect![[r#"
            digital_twin_______x_y__42.service
            # Written by SafetyTwin for a process that no unit owns on the host.
            [Unit]
            Description=Twin of the process ______x_y_ 42, form 50eb54f0b508

            [Service]
            Type=simple
            ExecStart=@"/usr/bin/stray" "x"
            WorkingDirectory=-/a[Unit]
            Restart=on-failure
            RestartSec=5s
            MemoryMax=1073741824
            CPUQuota=100%

            [Install]
            WantedBy=multi-user.target
        "#]],
        );
    }

    proptest! {
        #[test]
        fn one_command_on_one_line(words in prop::collection::vec(any::<String>(), 0..5), name in ".{0,20}") {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let hostile = entity::Process { name, ..process(&words) };
            let mut facts = Facts::default();
            facts.put_entity(&hostile);
            let spec = Spec::of(&facts, &Extras::default(), None);
            for (name, made) in &spec.processes {
                prop_assert!(name.as_str().starts_with(PREFIX));
                prop_assert_eq!(made.text.lines().filter(|l| l.starts_with("ExecStart=")).count(), 1);
                prop_assert_eq!(made.text.lines().filter(|l| l.starts_with('[')).count(), 3);
                prop_assert!(!made.text.chars().any(|c| c.is_control() && c != '\n'));
            }
        }
    }

    #[test]
    fn what_may_be_over_in_a_moment_is_left_out() {
        let process = |name: &str, started_at: i64, unit: Option<&str>| entity::Process {
            id: name.to_owned(),
            name: name.to_owned(),
            executable: Some(format!("/bin/{name}")),
            started_at: Some(Time::from_seconds(started_at)),
            unit: unit.map(str::to_owned),
            pids: vec![7],
            ..entity::Process::default()
        };
        let mut facts = Facts::default();
        for one in [
            process("old", 90, None),
            process("young", 97, None),
            process("younger", 99, None),
            process("owned", 99, Some("a.service")),
            process("ahead", 500, None),
        ] {
            facts.put_entity(&one);
        }
        let settles = leave_out_passing(&mut facts, Time::from_seconds(100));
        assert_eq!(settles, Some(Time::from_seconds(102)));
        let left: Vec<String> = facts.entities::<entity::Process>().map(|one| one.id).collect();
        assert_eq!(left, ["ahead", "old", "owned"]);
        assert_eq!(leave_out_passing(&mut facts, Time::from_seconds(104)), None);
    }

    #[test]
    fn commands_are_not_run_once_more() {
        for name in ["systemctl", "apt-get", "reboot"] {
            let one = entity::Process { name: name.to_owned(), ..entity::Process::default() };
            assert!(!is_alone(&one), "{name}");
        }
    }
}

//! Packages as tasks: those that follow each other change in one transaction, and then each that
//! this did not bring alone.

use super::task::Task;
use super::tasks::none_failed;
use super::yaml::Yaml;
use model::plan::{Action, Step, apt};

/// Whether the file that keeps services from starting is ours, or nobody's.
const IS_OURS: &str =
    "twin_policy.content is not defined or 'SafetyTwin' in (twin_policy.content | b64decode)";
/// What apt-get says in the end where it changed nothing.
const NOTHING: &str = "(?m)^0 upgraded, 0 newly installed, 0 to remove";
const FAILED: &str = "twin_packages is not skipped and twin_packages.rc | default(1) != 0";
const BROUGHT: &str = "twin_packages is changed or twin_again is changed";

pub(super) fn is_one(action: &Action) -> bool {
    apt::word(action).is_some()
}

/// What comes before the steps of a batch, the first of which has this number.
pub(super) fn together(first: usize, batch: &[&Step], relay: Option<u16>) -> Vec<Yaml> {
    let mut needs: Vec<usize> = batch.iter().flat_map(|step| &step.needs).copied().collect();
    needs.retain(|need| *need < first);
    needs.sort_unstable();
    needs.dedup();
    let words: Vec<String> = batch.iter().filter_map(|step| apt::word(&step.action)).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let all = |when: &str, called: &str| {
        let changed =
            format!("{called}.rc | default(1) == 0 and {called}.stdout is not search('{NOTHING}')");
        transaction(&words, relay)
            .when(when)
            .register(called)
            .changed_when(&changed)
            .never_fails()
            .within(apt::WITHIN)
    };
    let slurp = vec![("src", Yaml::own(apt::POLICY_PATH))];
    let slurp = Task::new("ansible.builtin.slurp", slurp).register("twin_policy").never_fails();
    let policy = vec![
        ("content", Yaml::data(apt::POLICY)),
        ("dest", Yaml::own(apt::POLICY_PATH)),
        ("mode", Yaml::own("0755")),
    ];
    let policy = Task::new("ansible.builtin.copy", policy).when(IS_OURS).looks();
    let mut tasks = vec![
        slurp.named("Who keeps packages from starting services"),
        policy.named("Packages start no services meanwhile"),
        all(&none_failed(&needs), "twin_packages").named("Packages, all at once"),
    ];
    for (program, words) in apt::REPAIR {
        let repair = self::program(program, words, relay)
            .when(FAILED)
            .looks()
            .never_fails()
            .within(apt::WITHIN);
        tasks.push(repair.named("What was half done, and new lists"));
    }
    tasks.push(all(FAILED, "twin_again").named("Packages, all at once, again"));
    tasks
}

/// What comes after the steps of a batch.
pub(super) fn end() -> Yaml {
    let arguments = vec![("path", Yaml::own(apt::POLICY_PATH)), ("state", Yaml::own("absent"))];
    let removed = Task::new("ansible.builtin.file", arguments).when(IS_OURS).looks();
    removed.never_fails().named("Packages may start services again")
}

/// One package: nothing, where all at once brought it.
pub(super) fn alone(action: &Action, relay: Option<u16>) -> Vec<Task> {
    let (name, wanted, when) = match action {
        Action::PutPackage { name, version } => {
            (name, format!("{version} installed"), "twin_there.stdout != wanted")
        }
        Action::RemovePackage(name) => {
            let is_there = "twin_there.rc == 0 and twin_there.stdout is search(wanted)";
            (name, " installed$".to_owned(), is_there)
        }
        _ => return Vec::new(),
    };
    let format = "--showformat=${Version} ${db:Status-Status}";
    let look = Task::program(["dpkg-query", "--show", format, name.as_str()])
        .register("twin_there")
        .changed_when(BROUGHT)
        .never_fails();
    let word = apt::word(action).unwrap_or_default();
    vec![look, transaction(&[&word], relay).when(when).with("wanted", &wanted)]
}

fn transaction(words: &[&str], relay: Option<u16>) -> Task {
    let words: Vec<&str> = apt::TRANSACTION.into_iter().chain(words.iter().copied()).collect();
    program("apt-get", &words, relay)
}

fn program(program: &str, words: &[&str], relay: Option<u16>) -> Task {
    let relay = apt::through(program, relay);
    Task::program([program].into_iter().chain(relay.as_deref()).chain(words.iter().copied()))
}

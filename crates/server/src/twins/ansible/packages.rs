//! Packages as tasks: those that follow each other change in one transaction, and then each that
//! this did not bring alone. Each transaction is simulated before, as the guest's agent does.

use super::task::Task;
use super::tasks::none_failed;
use super::yaml::Yaml;
use model::plan::{Action, Step, apt};
use model::spec::{PackageName, PackageVersion};

/// Whether the file that keeps services from starting is ours, or nobody's.
const IS_OURS: &str =
    "twin_policy.content is not defined or 'SafetyTwin' in (twin_policy.content | b64decode)";
/// What apt-get says in the end where it changed nothing.
const NOTHING: &str = "(?m)^0 upgraded, 0 newly installed, 0 to remove";
const FAILED: &str = "twin_simulated is not skipped \
    and (twin_packages is skipped or twin_packages.rc | default(1) != 0)";
/// What became of the new lists, where those were needed.
const LISTS: &str = "twin_lists";
/// Whether no repository has the version of a step; told only by lists that are new and whole.
const IS_GONE: &str = "twin_versions is not skipped and twin_versions.rc | default(1) == 0 \
    and twin_versions.stdout is not search('(?m)[|] +' ~ (twin_version | regex_escape) ~ ' +[|]')";
/// What the tasks know as the packages that go.
const LEAVING: &str = "twin_leaving";
const REMOVES: &str = "apt would remove what no step of the plan removes";
const BROUGHT: &str = "twin_packages is changed or twin_again is changed";

/// How apt-get is used.
#[derive(Debug, Clone)]
pub(super) struct Apt<'p> {
    /// The port of the machine's loopback at which it is to ask for packages.
    pub(super) relay: Option<u16>,
    /// What a step of the plan removes.
    pub(super) leaving: Vec<&'p str>,
}

pub(super) fn is_one(action: &Action) -> bool {
    apt::word(action).is_some()
}

/// What comes before the steps of a batch, the first of which has this number.
pub(super) fn together(first: usize, batch: &[&Step], apt: &Apt<'_>) -> Vec<Yaml> {
    let mut needs: Vec<usize> = batch.iter().flat_map(|step| &step.needs).copied().collect();
    needs.retain(|need| *need < first);
    needs.sort_unstable();
    needs.dedup();
    let words: Vec<String> = batch.iter().filter_map(|step| apt::word(&step.action)).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let all = |simulated: &str, called: &str| {
        let changed =
            format!("{called}.rc | default(1) == 0 and {called}.stdout is not search('{NOTHING}')");
        apt.transaction(&words)
            .when(&fits(simulated))
            .register(called)
            .changed_when(&changed)
            .never_fails()
            .with_all(LEAVING, &apt.leaving)
            .within(apt::WITHIN)
    };
    let simulated = |when: &str, called: &str| {
        let simulated = apt.simulated(&words).when(when).register(called).looks().never_fails();
        simulated.within(apt::WITHIN).named("What that would remove")
    };
    let program = |(program, words): (&str, &[&str])| {
        apt.program(program, words.iter().copied()).looks().never_fails().within(apt::WITHIN)
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
        program(apt::FINISH).named("What was half done"),
        simulated(&none_failed(&needs), "twin_simulated"),
        all("twin_simulated", "twin_packages").named("Packages, all at once"),
    ];
    for repair in apt::REPAIR {
        // The last of them makes the lists.
        let repair = program(repair).when(FAILED).register(LISTS);
        tasks.push(repair.named("What was half done, and new lists"));
    }
    tasks.push(simulated(FAILED, "twin_simulated_again"));
    tasks.push(all("twin_simulated_again", "twin_again").named("Packages, all at once, again"));
    tasks
}

/// What comes after the steps of a batch.
pub(super) fn end() -> Yaml {
    let arguments = vec![("path", Yaml::own(apt::POLICY_PATH)), ("state", Yaml::own("absent"))];
    let removed = Task::new("ansible.builtin.file", arguments).when(IS_OURS).looks();
    removed.never_fails().named("Packages may start services again")
}

/// One package: nothing, where all at once brought it.
pub(super) fn alone(action: &Action, apt: &Apt<'_>) -> Vec<Task> {
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
    let gone = match action {
        Action::PutPackage { name, version } => gone(name, version, &wanted).to_vec(),
        _ => Vec::new(),
    };
    let simulated = apt.simulated(&[&word]).when(when).register("twin_simulated").looks();
    let removed = removed("twin_simulated");
    let others = format!("{{{{ {removed} | difference({LEAVING}) | join(', ') }}}}");
    let arguments = vec![
        ("that", Yaml::List(vec![Yaml::Own(fits("twin_simulated"))])),
        ("fail_msg", Yaml::Own(format!("{REMOVES}: {others}"))),
        ("quiet", Yaml::Truth(true)),
    ];
    let judged = Task::new("ansible.builtin.assert", arguments)
        .when("twin_simulated is not skipped")
        .with_all(LEAVING, &apt.leaving);
    let done = apt.transaction(&[&word]).when(when).with("wanted", &wanted);
    let tasks = [simulated.with("wanted", &wanted), judged, done];
    [look].into_iter().chain(gone).chain(tasks).collect()
}

/// Looks whether a repository has a version that is not there, and fails where none has.
fn gone(name: &PackageName, version: &PackageVersion, wanted: &str) -> [Task; 2] {
    let words = ["apt-cache"].into_iter().chain(apt::VERSIONS).chain([name.as_str()]);
    let is_open = format!("twin_there.stdout != wanted and {LISTS}.rc | default(1) == 0");
    let versions = Task::program(words).when(&is_open).with("wanted", wanted);
    let versions = versions.register("twin_versions").looks().never_fails();
    let arguments = vec![("msg", Yaml::data(&format!("{}: {name}={version}", apt::GONE)))];
    let told = Task::new("ansible.builtin.fail", arguments).when(IS_GONE);
    [versions, told.with("twin_version", version.as_str())]
}

/// The packages that a simulated transaction removes, as an expression.
fn removed(called: &str) -> String {
    let [one, other] = apt::GOES;
    format!("({called}.stdout | regex_findall('(?m)^(?:{one}|{other}) ([^ ]+)') | unique)")
}

/// Whether a simulated transaction removes nothing but what steps of the plan remove, and says so
/// beyond doubt; an expression.
fn fits(called: &str) -> String {
    let removed = removed(called);
    format!(
        "{called} is not skipped and {called}.rc | default(1) == 0 \
         and {removed} | difference({LEAVING}) | length == 0 \
         and {called}.stdout is search(' ' ~ ({removed} | length) ~ ' to remove ')"
    )
}

impl Apt<'_> {
    fn transaction(&self, words: &[&str]) -> Task {
        self.program("apt-get", apt::TRANSACTION.into_iter().chain(words.iter().copied()))
    }

    fn simulated(&self, words: &[&str]) -> Task {
        let words = apt::TRANSACTION.into_iter().chain(words.iter().copied());
        self.program("apt-get", [apt::SIMULATE].into_iter().chain(words))
    }

    fn program<'w>(&self, program: &'w str, words: impl Iterator<Item = &'w str>) -> Task {
        let relay = apt::through(program, self.relay);
        let words: Vec<&str> = words.collect();
        Task::program([program].into_iter().chain(relay.as_deref()).chain(words))
    }
}

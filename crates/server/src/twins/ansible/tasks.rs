//! A plan as tasks of Ansible, in the plan's order: a block for each step.
//!
//! ```text
//! what it needs failed? ─no─► tasks ─► done
//!          └─yes─┐              └─failed─┐
//!                └──────► rescue: written down, and the next step follows
//! ```
//!
//! A task is named as its step, with the step's number before it: so what Ansible tells of a task
//! is known to be of that step ([`super::events`]).
//!
//! # Invariants
//! - What comes from a host is data (`!unsafe`), never an expression, a shell's or a key.
//! - A failed step leaves out what needs it, and nothing else.

use super::packages::Apt;
use super::task::Task;
use super::yaml::Yaml;
use super::{containers, packages};
use model::plan::{Action, Plan, PutFile, Step};
use model::spec::{PackageName, UnitName, User};
use std::collections::BTreeSet;

/// From here on a user has a home that is made.
const FIRST_PERSON: u32 = 1000;
/// What a step that is left out says, before its reason.
pub(super) const LEFT_OUT: &str = "left out, since it needs a step that failed";

/// All steps.
pub(super) fn tasks(plan: &Plan, relay: Option<u16>) -> Yaml {
    let steps = plan.steps();
    let leaving = plan.leaving_packages().map(PackageName::as_str).collect();
    let apt = Apt { relay, leaving };
    let mut all = Vec::new();
    let last_user = steps.iter().rposition(|step| matches!(step.action, Action::PutUser { .. }));
    let mut has_directories = false;
    let is_package = |step: Option<&Step>| step.is_some_and(|step| packages::is_one(&step.action));
    for (at, step) in steps.iter().enumerate() {
        if !has_directories && directory(step).is_some() {
            // Homes are made with their users, so of what comes after all of these it is one task.
            has_directories = last_user.is_none_or(|user| user < at);
            let rest = steps.get(at..).unwrap_or_default();
            let those = if has_directories { rest } else { std::slice::from_ref(step) };
            all.push(put_directories(those));
        }
        if is_package(Some(step)) && !is_package(at.checked_sub(1).and_then(|at| steps.get(at))) {
            let rest = steps.get(at..).unwrap_or_default();
            let batch: Vec<&Step> = rest.iter().take_while(|one| is_package(Some(one))).collect();
            all.extend(packages::together(at, &batch, &apt));
        }
        all.push(block(at, step, &apt));
        if is_package(Some(step)) && !is_package(steps.get(at + 1)) {
            all.push(packages::end());
        }
    }
    Yaml::List(all)
}

/// The name of a step's tasks.
pub(super) fn name(at: usize, action: &Action) -> String {
    format!("{at}: {action}")
}

/// The directory that a file or link is in; nothing for the root, and other steps.
fn directory(step: &Step) -> Option<&str> {
    let (Action::PutFile(PutFile { path, .. }) | Action::PutLink { path, .. }) = &step.action
    else {
        return None;
    };
    Some(path.directory()).filter(|directory| !directory.is_empty())
}

fn put_directories(steps: &[Step]) -> Yaml {
    let directories: BTreeSet<&str> = steps.iter().filter_map(directory).collect();
    let words = ["mkdir", "--parents", "--"].into_iter().chain(directories);
    Task::program(words).looks().never_fails().named("Directories of files")
}

fn block(at: usize, step: &Step, apt: &Apt<'_>) -> Yaml {
    let name = name(at, &step.action);
    let mut block = Vec::new();
    if !step.needs.is_empty() {
        let arguments = vec![
            ("that", Yaml::List(vec![Yaml::Own(none_failed(&step.needs))])),
            ("fail_msg", Yaml::own(LEFT_OUT)),
            ("quiet", Yaml::Truth(true)),
        ];
        block.push(Task::new("ansible.builtin.assert", arguments).named(&name));
    }
    let within = step.action.within();
    block.extend(of(&step.action, apt).into_iter().map(|task| task.within(within).named(&name)));
    let mut rescue = Vec::new();
    if let Action::Start(unit) | Action::Restart(unit) | Action::Reload(unit) = &step.action {
        rescue.push(journal(unit).named(&format!("{at}? what {unit} said")));
    }
    let failed = Yaml::Own(format!("{{{{ twin_failed + [{at}] }}}}"));
    let noted = Task::new("ansible.builtin.set_fact", vec![("twin_failed", failed)]);
    rescue.push(noted.named(&format!("Step {at} failed")));
    Yaml::Map(vec![
        ("name", Yaml::Data(name)),
        ("block", Yaml::List(block)),
        ("rescue", Yaml::List(rescue)),
    ])
}

/// Whether none of these steps failed, as an expression.
pub(super) fn none_failed(needs: &[usize]) -> String {
    let needs: Vec<String> = needs.iter().map(ToString::to_string).collect();
    format!("[{}] | intersect(twin_failed) | length == 0", needs.join(", "))
}

/// What makes it so.
fn of(action: &Action, apt: &Apt<'_>) -> Vec<Task> {
    match action {
        Action::SetHostname(name) => hostname(name.as_str()),
        Action::PutGroup { name, gid } => {
            vec![group(name.as_str(), "present", Some(u64::from(*gid)))]
        }
        Action::RemoveGroup(name) => vec![group(name.as_str(), "absent", None)],
        Action::SetMembers { name, group } => {
            let members: Vec<&str> = group.members.iter().map(|member| member.as_str()).collect();
            set_members(name.as_str(), &members.join(","))
        }
        Action::PutUser { name, user } => vec![put_user(name.as_str(), user)],
        Action::RemoveUser(name) => {
            let arguments = vec![
                ("name", Yaml::data(name.as_str())),
                ("state", Yaml::own("absent")),
                ("remove", Yaml::Truth(false)),
            ];
            vec![Task::new("ansible.builtin.user", arguments)]
        }
        Action::PutPackage { .. } | Action::RemovePackage(_) => packages::alone(action, apt),
        Action::PutFile(file) => vec![put_file(file)],
        Action::PutLink { path, target } => {
            let arguments = vec![
                ("path", Yaml::data(path.as_str())),
                ("src", Yaml::data(target.as_str())),
                ("state", Yaml::own("link")),
                ("force", Yaml::Truth(true)),
                ("follow", Yaml::Truth(false)),
            ];
            vec![Task::new("ansible.builtin.file", arguments)]
        }
        // The module that removes files removes directories with all that is in them, too.
        Action::RemoveFile(path) => {
            let words = ["rm", "--force", "--verbose", "--", path.as_str()];
            vec![Task::program(words).register("twin_removed").changed_when(REMOVED)]
        }
        Action::ReloadManager => {
            let arguments = vec![("daemon_reload", Yaml::Truth(true))];
            vec![Task::new("ansible.builtin.systemd", arguments)]
        }
        Action::Enable(unit) => vec![systemd(unit, "enabled", Yaml::Truth(true))],
        Action::Disable(unit) => vec![systemd(unit, "enabled", Yaml::Truth(false))],
        Action::Mask(unit) => vec![systemd(unit, "masked", Yaml::Truth(true))],
        Action::Unmask(unit) => vec![systemd(unit, "masked", Yaml::Truth(false))],
        Action::Start(unit) => vec![systemd(unit, "state", Yaml::own("started"))],
        Action::Stop(unit) => vec![systemd(unit, "state", Yaml::own("stopped"))],
        Action::Restart(unit) => vec![systemd(unit, "state", Yaml::own("restarted"))],
        Action::Reload(unit) => vec![systemd(unit, "state", Yaml::own("reloaded"))],
        Action::PutImage(_)
        | Action::RenewImage(_)
        | Action::CreateContainer { .. }
        | Action::StartContainer(_)
        | Action::StopContainer(_)
        | Action::PauseContainer(_)
        | Action::UnpauseContainer(_)
        | Action::RemoveContainer(_) => containers::of(action),
    }
}

const REMOVED: &str = "twin_removed.stdout | length > 0";

fn hostname(name: &str) -> Vec<Task> {
    // The full name comes first, as `hostname --fqdn` takes it.
    let own = match name.split_once('.') {
        Some((short, _)) => format!("127.0.1.1\t{name} {short}"),
        None => format!("127.0.1.1\t{name}"),
    };
    let set = vec![("name", Yaml::data(name)), ("use", Yaml::own("systemd"))];
    let resolves = vec![
        ("path", Yaml::own("/etc/hosts")),
        ("regexp", Yaml::own(r"^127\.0\.1\.1\s")),
        ("insertafter", Yaml::own(r"^127\.")),
        ("line", Yaml::Data(own)),
        ("create", Yaml::Truth(true)),
        ("mode", Yaml::own("0644")),
    ];
    vec![
        Task::new("ansible.builtin.hostname", set),
        Task::new("ansible.builtin.lineinfile", resolves),
    ]
}

fn group(name: &str, state: &str, gid: Option<u64>) -> Task {
    let mut arguments = vec![("name", Yaml::data(name)), ("state", Yaml::own(state))];
    arguments.extend(gid.map(|gid| ("gid", Yaml::Number(gid))));
    Task::new("ansible.builtin.group", arguments)
}

/// There is no module that says who is in a group, and nobody else.
fn set_members(name: &str, members: &str) -> Vec<Task> {
    // Of the characters in names the dot alone means something in a pattern.
    let pattern = |text: &str| text.replace('.', "[.]");
    let line = format!("^{}:[^:]*:[0-9]+:{}$", pattern(name), pattern(members));
    let words = ["grep", "--quiet", "--extended-regexp", "-e", &line, "/etc/group"];
    let look = Task::program(words).register("twin_members").looks().never_fails();
    let set = Task::program(["gpasswd", "--members", members, name]);
    vec![look, set.when("twin_members.rc != 0")]
}

fn put_user(name: &str, user: &User) -> Task {
    let arguments = vec![
        ("name", Yaml::data(name)),
        ("uid", Yaml::Number(u64::from(user.uid))),
        ("group", Yaml::Data(user.gid.to_string())),
        ("home", Yaml::data(user.home.as_str())),
        ("shell", Yaml::data(user.shell.as_str())),
        ("comment", Yaml::data(user.comment.as_str())),
        ("create_home", Yaml::Truth(user.uid >= FIRST_PERSON)),
    ];
    Task::new("ansible.builtin.user", arguments)
}

fn put_file(file: &PutFile) -> Task {
    let arguments = vec![
        ("src", Yaml::Own(super::content_file(&file.source.id()))),
        ("dest", Yaml::data(file.path.as_str())),
        ("owner", Yaml::data(file.owner.as_str())),
        ("group", Yaml::data(file.group.as_str())),
        ("mode", Yaml::Own(file.mode.to_string())),
        ("follow", Yaml::Truth(false)),
        // One that looks like Ansible's own encrypted files is a file like others.
        ("decrypt", Yaml::Truth(false)),
    ];
    Task::new("ansible.builtin.copy", arguments)
}

fn systemd(unit: &UnitName, what: &'static str, value: Yaml) -> Task {
    let arguments = vec![("name", Yaml::data(unit.as_str())), (what, value)];
    Task::new("ansible.builtin.systemd", arguments)
}

/// The last lines of what it said, which say more than that it failed.
fn journal(unit: &UnitName) -> Task {
    let unit = format!("--unit={unit}");
    let words = ["journalctl", &unit, "--lines=8", "--output=cat", "--no-pager", "--quiet"];
    Task::program(words).looks().never_fails()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use model::spec::Source;
    use model::{Kind, Subject};

    fn check(steps: Vec<(Action, Vec<usize>)>, expected: &Expect) {
        let step = |(action, needs): (Action, Vec<usize>)| Step {
            subject: Subject::escaped(Kind::UNIT, "a"),
            action,
            why: String::new(),
            needs,
            after: vec![],
        };
        let plan = Plan::new(steps.into_iter().map(step).collect(), vec![]).unwrap();
        expected.assert_eq(&tasks(&plan, Some(8473)).document());
    }

    fn file(path: &str) -> Action {
        Action::PutFile(PutFile {
            path: path.parse().unwrap(),
            source: Source::Made("{{ x }}".to_owned()),
            mode: "0640".parse().unwrap(),
            owner: "root".parse().unwrap(),
            group: "adm".parse().unwrap(),
        })
    }

    #[test]
    fn a_file_and_a_unit_that_needs_it() {
        let unit = Action::Start("a\\x2db.service".parse().unwrap());
        check(
            vec![(file("/etc/a/{{ x }} $(id);\"b"), vec![]), (unit, vec![0])],
            &expect![[r#"
            ---
            - name: !unsafe "Directories of files"
              ansible.builtin.command:
                argv:
                  - !unsafe "mkdir"
                  - !unsafe "--parents"
                  - !unsafe "--"
                  - !unsafe "/etc/a"
              changed_when: false
              failed_when: false
            - name: !unsafe "0: write /etc/a/{{ x }} $(id);\"b"
              block:
                - name: !unsafe "0: write /etc/a/{{ x }} $(id);\"b"
                  ansible.builtin.copy:
                    src: "files/627edc2eda464749c14171674ceaa35f81f54874921201d4ea4ad03be5b3a23d"
                    dest: !unsafe "/etc/a/{{ x }} $(id);\"b"
                    owner: !unsafe "root"
                    group: !unsafe "adm"
                    mode: "0640"
                    follow: false
                    decrypt: false
                  timeout: 60
              rescue:
                - name: !unsafe "Step 0 failed"
                  ansible.builtin.set_fact:
                    twin_failed: "{{ twin_failed + [0] }}"
            - name: !unsafe "1: start a\\x2db.service"
              block:
                - name: !unsafe "1: start a\\x2db.service"
                  ansible.builtin.assert:
                    that:
                      - "[0] | intersect(twin_failed) | length == 0"
                    fail_msg: "left out, since it needs a step that failed"
                    quiet: true
                - name: !unsafe "1: start a\\x2db.service"
                  ansible.builtin.systemd:
                    name: !unsafe "a\\x2db.service"
                    state: "started"
                  timeout: 120
              rescue:
                - name: !unsafe "1? what a\\x2db.service said"
                  ansible.builtin.command:
                    argv:
                      - !unsafe "journalctl"
                      - !unsafe "--unit=a\\x2db.service"
                      - !unsafe "--lines=8"
                      - !unsafe "--output=cat"
                      - !unsafe "--no-pager"
                      - !unsafe "--quiet"
                  changed_when: false
                  failed_when: false
                - name: !unsafe "Step 1 failed"
                  ansible.builtin.set_fact:
                    twin_failed: "{{ twin_failed + [1] }}"
        "#]],
        );
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "what is expected is long")]
    fn packages_change_together_and_then_alone() {
        let put = Action::PutPackage {
            name: "nginx".parse().unwrap(),
            version: "1.22-1".parse().unwrap(),
        };
        let remove = Action::RemovePackage("apache2".parse().unwrap());
        check(
            vec![(put, vec![]), (remove, vec![])],
            &expect![[r##"
                ---
                - name: !unsafe "Who keeps packages from starting services"
                  ansible.builtin.slurp:
                    src: "/usr/sbin/policy-rc.d"
                  register: "twin_policy"
                  failed_when: false
                - name: !unsafe "Packages start no services meanwhile"
                  ansible.builtin.copy:
                    content: !unsafe "#!/bin/sh\x0a# Written by SafetyTwin while packages change.\x0aexit 101\x0a"
                    dest: "/usr/sbin/policy-rc.d"
                    mode: "0755"
                  when: "twin_policy.content is not defined or 'SafetyTwin' in (twin_policy.content | b64decode)"
                  changed_when: false
                - name: !unsafe "What was half done"
                  ansible.builtin.command:
                    argv:
                      - !unsafe "dpkg"
                      - !unsafe "--configure"
                      - !unsafe "-a"
                      - !unsafe "--force-confdef"
                      - !unsafe "--force-confold"
                  changed_when: false
                  failed_when: false
                  timeout: 1800
                - name: !unsafe "What that would remove"
                  ansible.builtin.command:
                    argv:
                      - !unsafe "apt-get"
                      - !unsafe "--option=Acquire::http::Proxy=http://127.0.0.1:8473/"
                      - !unsafe "--simulate"
                      - !unsafe "--quiet"
                      - !unsafe "--yes"
                      - !unsafe "--no-install-recommends"
                      - !unsafe "--allow-downgrades"
                      - !unsafe "--allow-change-held-packages"
                      - !unsafe "--option=Dpkg::Options::=--force-confdef"
                      - !unsafe "--option=Dpkg::Options::=--force-confold"
                      - !unsafe "--option=Dpkg::Use-Pty=0"
                      - !unsafe "install"
                      - !unsafe "--"
                      - !unsafe "nginx=1.22-1"
                      - !unsafe "apache2-"
                  when: "[] | intersect(twin_failed) | length == 0"
                  register: "twin_simulated"
                  changed_when: false
                  failed_when: false
                  timeout: 1800
                - name: !unsafe "Packages, all at once"
                  ansible.builtin.command:
                    argv:
                      - !unsafe "apt-get"
                      - !unsafe "--option=Acquire::http::Proxy=http://127.0.0.1:8473/"
                      - !unsafe "--quiet"
                      - !unsafe "--yes"
                      - !unsafe "--no-install-recommends"
                      - !unsafe "--allow-downgrades"
                      - !unsafe "--allow-change-held-packages"
                      - !unsafe "--option=Dpkg::Options::=--force-confdef"
                      - !unsafe "--option=Dpkg::Options::=--force-confold"
                      - !unsafe "--option=Dpkg::Use-Pty=0"
                      - !unsafe "install"
                      - !unsafe "--"
                      - !unsafe "nginx=1.22-1"
                      - !unsafe "apache2-"
                  when: "twin_simulated is not skipped and twin_simulated.rc | default(1) == 0 and (twin_simulated.stdout | regex_findall('(?m)^(?:Remv|Purg) ([^ ]+)') | unique) | difference(twin_leaving) | length == 0 and twin_simulated.stdout is search(' ' ~ ((twin_simulated.stdout | regex_findall('(?m)^(?:Remv|Purg) ([^ ]+)') | unique) | length) ~ ' to remove ')"
                  register: "twin_packages"
                  changed_when: "twin_packages.rc | default(1) == 0 and twin_packages.stdout is not search('(?m)^0 upgraded, 0 newly installed, 0 to remove')"
                  failed_when: false
                  vars:
                    twin_leaving:
                      - !unsafe "apache2"
                  timeout: 1800
                - name: !unsafe "What was half done, and new lists"
                  ansible.builtin.command:
                    argv:
                      - !unsafe "dpkg"
                      - !unsafe "--configure"
                      - !unsafe "-a"
                      - !unsafe "--force-confdef"
                      - !unsafe "--force-confold"
                  changed_when: false
                  failed_when: false
                  timeout: 1800
                  when: "twin_simulated is not skipped and (twin_packages is skipped or twin_packages.rc | default(1) != 0)"
                  register: "twin_lists"
                - name: !unsafe "What was half done, and new lists"
                  ansible.builtin.command:
                    argv:
                      - !unsafe "apt-get"
                      - !unsafe "--option=Acquire::http::Proxy=http://127.0.0.1:8473/"
                      - !unsafe "--quiet"
                      - !unsafe "--option=APT::Update::Error-Mode=any"
                      - !unsafe "update"
                  changed_when: false
                  failed_when: false
                  timeout: 1800
                  when: "twin_simulated is not skipped and (twin_packages is skipped or twin_packages.rc | default(1) != 0)"
                  register: "twin_lists"
                - name: !unsafe "What that would remove"
                  ansible.builtin.command:
                    argv:
                      - !unsafe "apt-get"
                      - !unsafe "--option=Acquire::http::Proxy=http://127.0.0.1:8473/"
                      - !unsafe "--simulate"
                      - !unsafe "--quiet"
                      - !unsafe "--yes"
                      - !unsafe "--no-install-recommends"
                      - !unsafe "--allow-downgrades"
                      - !unsafe "--allow-change-held-packages"
                      - !unsafe "--option=Dpkg::Options::=--force-confdef"
                      - !unsafe "--option=Dpkg::Options::=--force-confold"
                      - !unsafe "--option=Dpkg::Use-Pty=0"
                      - !unsafe "install"
                      - !unsafe "--"
                      - !unsafe "nginx=1.22-1"
                      - !unsafe "apache2-"
                  when: "twin_simulated is not skipped and (twin_packages is skipped or twin_packages.rc | default(1) != 0)"
                  register: "twin_simulated_again"
                  changed_when: false
                  failed_when: false
                  timeout: 1800
                - name: !unsafe "Packages, all at once, again"
                  ansible.builtin.command:
                    argv:
                      - !unsafe "apt-get"
                      - !unsafe "--option=Acquire::http::Proxy=http://127.0.0.1:8473/"
                      - !unsafe "--quiet"
                      - !unsafe "--yes"
                      - !unsafe "--no-install-recommends"
                      - !unsafe "--allow-downgrades"
                      - !unsafe "--allow-change-held-packages"
                      - !unsafe "--option=Dpkg::Options::=--force-confdef"
                      - !unsafe "--option=Dpkg::Options::=--force-confold"
                      - !unsafe "--option=Dpkg::Use-Pty=0"
                      - !unsafe "install"
                      - !unsafe "--"
                      - !unsafe "nginx=1.22-1"
                      - !unsafe "apache2-"
                  when: "twin_simulated_again is not skipped and twin_simulated_again.rc | default(1) == 0 and (twin_simulated_again.stdout | regex_findall('(?m)^(?:Remv|Purg) ([^ ]+)') | unique) | difference(twin_leaving) | length == 0 and twin_simulated_again.stdout is search(' ' ~ ((twin_simulated_again.stdout | regex_findall('(?m)^(?:Remv|Purg) ([^ ]+)') | unique) | length) ~ ' to remove ')"
                  register: "twin_again"
                  changed_when: "twin_again.rc | default(1) == 0 and twin_again.stdout is not search('(?m)^0 upgraded, 0 newly installed, 0 to remove')"
                  failed_when: false
                  vars:
                    twin_leaving:
                      - !unsafe "apache2"
                  timeout: 1800
                - name: !unsafe "0: install nginx 1.22-1"
                  block:
                    - name: !unsafe "0: install nginx 1.22-1"
                      ansible.builtin.command:
                        argv:
                          - !unsafe "dpkg-query"
                          - !unsafe "--show"
                          - !unsafe "--showformat=${Version} ${db:Status-Status}"
                          - !unsafe "nginx"
                      register: "twin_there"
                      changed_when: "twin_packages is changed or twin_again is changed"
                      failed_when: false
                      timeout: 1800
                    - name: !unsafe "0: install nginx 1.22-1"
                      ansible.builtin.command:
                        argv:
                          - !unsafe "apt-cache"
                          - !unsafe "madison"
                          - !unsafe "--"
                          - !unsafe "nginx"
                      when: "twin_there.stdout != wanted and twin_lists.rc | default(1) == 0"
                      vars:
                        wanted: !unsafe "1.22-1 installed"
                      register: "twin_versions"
                      changed_when: false
                      failed_when: false
                      timeout: 1800
                    - name: !unsafe "0: install nginx 1.22-1"
                      ansible.builtin.fail:
                        msg: !unsafe "no repository has this version: nginx=1.22-1"
                      when: "twin_versions is not skipped and twin_versions.rc | default(1) == 0 and twin_versions.stdout is not search('(?m)[|] +' ~ (twin_version | regex_escape) ~ ' +[|]')"
                      vars:
                        twin_version: !unsafe "1.22-1"
                      timeout: 1800
                    - name: !unsafe "0: install nginx 1.22-1"
                      ansible.builtin.command:
                        argv:
                          - !unsafe "apt-get"
                          - !unsafe "--option=Acquire::http::Proxy=http://127.0.0.1:8473/"
                          - !unsafe "--simulate"
                          - !unsafe "--quiet"
                          - !unsafe "--yes"
                          - !unsafe "--no-install-recommends"
                          - !unsafe "--allow-downgrades"
                          - !unsafe "--allow-change-held-packages"
                          - !unsafe "--option=Dpkg::Options::=--force-confdef"
                          - !unsafe "--option=Dpkg::Options::=--force-confold"
                          - !unsafe "--option=Dpkg::Use-Pty=0"
                          - !unsafe "install"
                          - !unsafe "--"
                          - !unsafe "nginx=1.22-1"
                      when: "twin_there.stdout != wanted"
                      register: "twin_simulated"
                      changed_when: false
                      vars:
                        wanted: !unsafe "1.22-1 installed"
                      timeout: 1800
                    - name: !unsafe "0: install nginx 1.22-1"
                      ansible.builtin.assert:
                        that:
                          - "twin_simulated is not skipped and twin_simulated.rc | default(1) == 0 and (twin_simulated.stdout | regex_findall('(?m)^(?:Remv|Purg) ([^ ]+)') | unique) | difference(twin_leaving) | length == 0 and twin_simulated.stdout is search(' ' ~ ((twin_simulated.stdout | regex_findall('(?m)^(?:Remv|Purg) ([^ ]+)') | unique) | length) ~ ' to remove ')"
                        fail_msg: "apt would remove what no step of the plan removes: {{ (twin_simulated.stdout | regex_findall('(?m)^(?:Remv|Purg) ([^ ]+)') | unique) | difference(twin_leaving) | join(', ') }}"
                        quiet: true
                      when: "twin_simulated is not skipped"
                      vars:
                        twin_leaving:
                          - !unsafe "apache2"
                      timeout: 1800
                    - name: !unsafe "0: install nginx 1.22-1"
                      ansible.builtin.command:
                        argv:
                          - !unsafe "apt-get"
                          - !unsafe "--option=Acquire::http::Proxy=http://127.0.0.1:8473/"
                          - !unsafe "--quiet"
                          - !unsafe "--yes"
                          - !unsafe "--no-install-recommends"
                          - !unsafe "--allow-downgrades"
                          - !unsafe "--allow-change-held-packages"
                          - !unsafe "--option=Dpkg::Options::=--force-confdef"
                          - !unsafe "--option=Dpkg::Options::=--force-confold"
                          - !unsafe "--option=Dpkg::Use-Pty=0"
                          - !unsafe "install"
                          - !unsafe "--"
                          - !unsafe "nginx=1.22-1"
                      when: "twin_there.stdout != wanted"
                      vars:
                        wanted: !unsafe "1.22-1 installed"
                      timeout: 1800
                  rescue:
                    - name: !unsafe "Step 0 failed"
                      ansible.builtin.set_fact:
                        twin_failed: "{{ twin_failed + [0] }}"
                - name: !unsafe "1: remove package apache2"
                  block:
                    - name: !unsafe "1: remove package apache2"
                      ansible.builtin.command:
                        argv:
                          - !unsafe "dpkg-query"
                          - !unsafe "--show"
                          - !unsafe "--showformat=${Version} ${db:Status-Status}"
                          - !unsafe "apache2"
                      register: "twin_there"
                      changed_when: "twin_packages is changed or twin_again is changed"
                      failed_when: false
                      timeout: 1800
                    - name: !unsafe "1: remove package apache2"
                      ansible.builtin.command:
                        argv:
                          - !unsafe "apt-get"
                          - !unsafe "--option=Acquire::http::Proxy=http://127.0.0.1:8473/"
                          - !unsafe "--simulate"
                          - !unsafe "--quiet"
                          - !unsafe "--yes"
                          - !unsafe "--no-install-recommends"
                          - !unsafe "--allow-downgrades"
                          - !unsafe "--allow-change-held-packages"
                          - !unsafe "--option=Dpkg::Options::=--force-confdef"
                          - !unsafe "--option=Dpkg::Options::=--force-confold"
                          - !unsafe "--option=Dpkg::Use-Pty=0"
                          - !unsafe "install"
                          - !unsafe "--"
                          - !unsafe "apache2-"
                      when: "twin_there.rc == 0 and twin_there.stdout is search(wanted)"
                      register: "twin_simulated"
                      changed_when: false
                      vars:
                        wanted: !unsafe " installed$"
                      timeout: 1800
                    - name: !unsafe "1: remove package apache2"
                      ansible.builtin.assert:
                        that:
                          - "twin_simulated is not skipped and twin_simulated.rc | default(1) == 0 and (twin_simulated.stdout | regex_findall('(?m)^(?:Remv|Purg) ([^ ]+)') | unique) | difference(twin_leaving) | length == 0 and twin_simulated.stdout is search(' ' ~ ((twin_simulated.stdout | regex_findall('(?m)^(?:Remv|Purg) ([^ ]+)') | unique) | length) ~ ' to remove ')"
                        fail_msg: "apt would remove what no step of the plan removes: {{ (twin_simulated.stdout | regex_findall('(?m)^(?:Remv|Purg) ([^ ]+)') | unique) | difference(twin_leaving) | join(', ') }}"
                        quiet: true
                      when: "twin_simulated is not skipped"
                      vars:
                        twin_leaving:
                          - !unsafe "apache2"
                      timeout: 1800
                    - name: !unsafe "1: remove package apache2"
                      ansible.builtin.command:
                        argv:
                          - !unsafe "apt-get"
                          - !unsafe "--option=Acquire::http::Proxy=http://127.0.0.1:8473/"
                          - !unsafe "--quiet"
                          - !unsafe "--yes"
                          - !unsafe "--no-install-recommends"
                          - !unsafe "--allow-downgrades"
                          - !unsafe "--allow-change-held-packages"
                          - !unsafe "--option=Dpkg::Options::=--force-confdef"
                          - !unsafe "--option=Dpkg::Options::=--force-confold"
                          - !unsafe "--option=Dpkg::Use-Pty=0"
                          - !unsafe "install"
                          - !unsafe "--"
                          - !unsafe "apache2-"
                      when: "twin_there.rc == 0 and twin_there.stdout is search(wanted)"
                      vars:
                        wanted: !unsafe " installed$"
                      timeout: 1800
                  rescue:
                    - name: !unsafe "Step 1 failed"
                      ansible.builtin.set_fact:
                        twin_failed: "{{ twin_failed + [1] }}"
                - name: !unsafe "Packages may start services again"
                  ansible.builtin.file:
                    path: "/usr/sbin/policy-rc.d"
                    state: "absent"
                  when: "twin_policy.content is not defined or 'SafetyTwin' in (twin_policy.content | b64decode)"
                  changed_when: false
                  failed_when: false
            "##]],
        );
    }

    #[test]
    fn accounts() {
        let members: BTreeSet<_> = ["b.c", "a"].map(|name| name.parse().unwrap()).into();
        let group = model::spec::Group { gid: 7, members };
        let user = User {
            uid: 1000,
            gid: 7,
            home: "/home/a".parse().unwrap(),
            shell: "/bin/sh".parse().unwrap(),
            comment: "{{ x }}".parse().unwrap(),
        };
        let name: model::spec::AccountName = "team.a".parse().unwrap();
        let steps = vec![
            (Action::SetMembers { name: name.clone(), group }, vec![]),
            (Action::PutUser { name, user }, vec![]),
        ];
        check(
            steps,
            &expect![[r#"
            ---
            - name: !unsafe "0: set the members of group team.a"
              block:
                - name: !unsafe "0: set the members of group team.a"
                  ansible.builtin.command:
                    argv:
                      - !unsafe "grep"
                      - !unsafe "--quiet"
                      - !unsafe "--extended-regexp"
                      - !unsafe "-e"
                      - !unsafe "^team[.]a:[^:]*:[0-9]+:a,b[.]c$"
                      - !unsafe "/etc/group"
                  register: "twin_members"
                  changed_when: false
                  failed_when: false
                  timeout: 60
                - name: !unsafe "0: set the members of group team.a"
                  ansible.builtin.command:
                    argv:
                      - !unsafe "gpasswd"
                      - !unsafe "--members"
                      - !unsafe "a,b.c"
                      - !unsafe "team.a"
                  when: "twin_members.rc != 0"
                  timeout: 60
              rescue:
                - name: !unsafe "Step 0 failed"
                  ansible.builtin.set_fact:
                    twin_failed: "{{ twin_failed + [0] }}"
            - name: !unsafe "1: have user team.a as 1000"
              block:
                - name: !unsafe "1: have user team.a as 1000"
                  ansible.builtin.user:
                    name: !unsafe "team.a"
                    uid: 1000
                    group: !unsafe "7"
                    home: !unsafe "/home/a"
                    shell: !unsafe "/bin/sh"
                    comment: !unsafe "{{ x }}"
                    create_home: true
                  timeout: 60
              rescue:
                - name: !unsafe "Step 1 failed"
                  ansible.builtin.set_fact:
                    twin_failed: "{{ twin_failed + [1] }}"
        "#]],
        );
    }

    #[test]
    fn a_container() {
        check(
            vec![(Action::StopContainer("web".parse().unwrap()), vec![])],
            &expect![[r#"
            ---
            - name: !unsafe "0: stop container web"
              block:
                - name: !unsafe "0: stop container web"
                  ansible.builtin.uri:
                    url: !unsafe "http://localhost/containers/web/json"
                    unix_socket: "{{ docker_socket }}"
                    method: "GET"
                    status_code:
                      - 200
                    timeout: 60
                  register: "twin_seen"
                  timeout: 120
                - name: !unsafe "0: stop container web"
                  ansible.builtin.uri:
                    url: !unsafe "http://localhost/containers/web/stop"
                    unix_socket: "{{ docker_socket }}"
                    method: "POST"
                    status_code:
                      - 204
                      - 304
                    timeout: 900
                  when: "twin_seen.json.State.Status not in ['exited', 'created', 'dead']"
                  changed_when: "true"
                  timeout: 120
              rescue:
                - name: !unsafe "Step 0 failed"
                  ansible.builtin.set_fact:
                    twin_failed: "{{ twin_failed + [0] }}"
        "#]],
        );
    }
}

//! The scanner on trees that look like `/proc`, and on the real one.

use super::*;
use std::os::unix::fs::symlink;
use std::path::Path;

const DOCKER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn redactor() -> Redactor {
    Redactor::new([7; 32], Vec::new())
}

fn now(seconds: u64) -> Now {
    Now {
        at: Time::from_seconds(1_790_000_000).plus(Duration::from_secs(seconds)),
        clock: Duration::from_secs(seconds),
    }
}

/// One process of a made-up machine.
struct Sham<'a> {
    pid: u32,
    name: &'a str,
    start: u64,
    ticks: u64,
    command_line: &'a str,
    cgroup: &'a str,
}

const SHAM: Sham<'_> = Sham {
    pid: 1,
    name: "init",
    start: 5,
    ticks: 0,
    command_line: "/sbin/init",
    cgroup: "0::/init.scope",
};

fn put(proc: &Path, sham: &Sham<'_>) {
    let Sham { pid, name, start, ticks, command_line, cgroup } = sham;
    let directory = proc.join(pid.to_string());
    fs::create_dir_all(directory.join("fd")).unwrap();
    let parent = u32::from(*pid != 1);
    let stat = format!(
        "{pid} ({name}) S {parent} {pid} {pid} 0 -1 4194560 1 1 1 1 {ticks} 0 0 0 20 0 2 0 {start} 4096 10 0\n"
    );
    fs::write(directory.join("stat"), stat).unwrap();
    fs::write(directory.join("cmdline"), command_line.replace(' ', "\0") + "\0").unwrap();
    fs::write(directory.join("cgroup"), format!("{cgroup}\n")).unwrap();
    fs::write(directory.join("status"), "Name:\tx\nUid:\t0\t33\t0\t0\n").unwrap();
    let exe = command_line.split(' ').next().unwrap_or_default();
    if !exe.is_empty() && fs::symlink_metadata(directory.join("exe")).is_err() {
        symlink(exe, directory.join("exe")).unwrap();
        symlink("/srv", directory.join("cwd")).unwrap();
    }
}

/// A machine with init and two workers of one service.
fn machine() -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::at(directory.path());
    let proc = root.proc("");
    fs::create_dir_all(&proc).unwrap();
    fs::write(proc.join("stat"), "cpu 1 2 3\nbtime 1790000000\n").unwrap();
    fs::create_dir_all(root.path("/etc")).unwrap();
    fs::write(root.path("/etc/passwd"), "root:x:0:0::/:/bin/sh\nwww-data:x:33:33::/:/bin/sh\n")
        .unwrap();
    put(&proc, &SHAM);
    for pid in [40, 41] {
        put(
            &proc,
            &Sham {
                pid,
                name: "web",
                start: 500 + u64::from(pid),
                command_line: "/usr/bin/web --token=abc --port 80",
                cgroup: "0::/system.slice/web.service",
                ..SHAM
            },
        );
    }
    (directory, root)
}

fn names(scanner: &Scanner) -> Vec<String> {
    let mut names: Vec<_> = scanner
        .groups()
        .map(|group| format!("{} {:?}", group.process.name, group.process.pids))
        .collect();
    names.sort();
    names
}

#[test]
fn processes_that_are_the_same_thing_are_one_item() {
    let (_directory, root) = machine();
    let mut scanner = Scanner::new(&root).unwrap();
    let scan = scanner.scan(now(1), &redactor()).unwrap();
    assert_eq!((scan.processes, scan.changed.len(), scan.hidden), (3, 2, false));
    let web = scanner.groups().find(|group| group.process.name == "web").unwrap();
    assert_eq!(web.first_seen, now(1).at);
    let process = web.process;
    assert_eq!(
        process.id,
        *scan.changed.iter().find(|id| id.starts_with("web#")).unwrap().to_string()
    );
    assert_eq!(process.pids, [40, 41]);
    assert_eq!(
        process.arguments,
        ["/usr/bin/web", &format!("--token={}", redactor().mark("abc")), "--port", "80"]
    );
    assert_eq!(process.unit.as_deref(), Some("web.service"));
    assert_eq!((process.uid, process.user.as_deref()), (Some(33), Some("www-data")));
    assert_eq!(process.executable.as_deref(), Some("/usr/bin/web"));
    assert_eq!(process.working_directory.as_deref(), Some("/srv"));
    assert_eq!(process.parent.as_deref(), Some("init"));
    let ticks = rustix::param::clock_ticks_per_second();
    let started = Duration::from_micros(540 * 1_000_000 / ticks);
    assert_eq!(process.started_at, Some(Time::from_seconds(1_790_000_000).plus(started)));
    let view = scanner.process(41).unwrap();
    assert_eq!((view.name().as_str(), view.threads, view.cpu_percent), ("web", 2, None));
    assert!(scanner.scan(now(2), &redactor()).unwrap().changed.is_empty());
}

#[test]
fn workers_are_told_from_what_they_work_for() {
    let (_directory, root) = machine();
    let stat = root.proc("41/stat");
    let of_another = fs::read_to_string(&stat).unwrap().replacen("(web) S 1 ", "(web) S 40 ", 1);
    fs::write(&stat, of_another).unwrap();
    let mut scanner = Scanner::new(&root).unwrap();
    scanner.scan(now(1), &redactor()).unwrap();
    let web = scanner.groups().find(|group| group.process.name == "web").unwrap().process;
    assert_eq!((web.pids, web.forked), (vec![40, 41], vec![41]));
}

#[test]
fn what_a_process_becomes() {
    let (_directory, root) = machine();
    let proc = root.proc("");
    let mut scanner = Scanner::new(&root).unwrap();
    scanner.scan(now(1), &redactor()).unwrap();

    // Another pid 41 takes the place of the one that ended.
    put(&proc, &Sham { pid: 41, name: "new", start: 900, command_line: "/usr/bin/web", ..SHAM });
    scanner.scan(now(2), &redactor()).unwrap();
    assert_eq!(names(&scanner), ["init [1]", "new [41]", "web [40]"]);

    // An exec under the same name shows when told, and only of those told.
    put(
        &proc,
        &Sham { pid: 40, name: "web", start: 540, command_line: "/usr/bin/web --changed", ..SHAM },
    );
    let changed = scanner.refresh(&[40, 77], now(3), &redactor());
    assert_eq!(changed.len(), 2);
    let web = scanner.groups().find(|group| group.process.name == "web").unwrap();
    assert_eq!(web.process.arguments, ["/usr/bin/web", "--changed"]);

    // Without being told, it shows after some scans.
    put(
        &proc,
        &Sham { pid: 40, name: "web", start: 540, command_line: "/usr/bin/web --again", ..SHAM },
    );
    let scans = (4..40).find(|&at| !scanner.scan(now(at), &redactor()).unwrap().changed.is_empty());
    assert!(scans.is_some());

    // Ends.
    fs::remove_dir_all(proc.join("40")).unwrap();
    fs::remove_dir_all(proc.join("41")).unwrap();
    scanner.refresh(&[40], now(50), &redactor());
    assert_eq!(names(&scanner), ["init [1]", "new [41]"]);
    scanner.scan(now(51), &redactor()).unwrap();
    assert_eq!(names(&scanner), ["init [1]"]);
}

#[test]
fn kernel_threads_and_zombies_are_only_counted() {
    let (_directory, root) = machine();
    let proc = root.proc("");
    let write = |pid: u32, line: &str| {
        fs::create_dir_all(proc.join(pid.to_string())).unwrap();
        fs::write(proc.join(format!("{pid}/stat")), format!("{pid} {line}")).unwrap();
    };
    write(2, "(kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 2 0 0 0 0");
    write(9, "(gone) Z 1 0 0 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 3 0 0 0 0");
    write(10, "(half) S 1 0 0");
    write(41, "(web) Z 1 0 0 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 541 0 0 0 0");
    let mut scanner = Scanner::new(&root).unwrap();
    let scan = scanner.scan(now(1), &redactor()).unwrap();
    assert_eq!((scan.processes, scan.kernel_threads, scan.zombies), (2, 1, 2));
    assert_eq!(names(&scanner), ["init [1]", "web [40]"]);
    write(40, "(web) Z 1 0 0 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 540 0 0 0 0");
    assert_eq!(scanner.scan(now(2), &redactor()).unwrap().changed.len(), 1);
    assert_eq!(names(&scanner), ["init [1]"]);
    assert_eq!(scanner.process(2).unwrap().name(), "kthreadd");
}

#[test]
fn rates_are_over_the_time_between_scans() {
    let (_directory, root) = machine();
    let mut scanner = Scanner::new(&root).unwrap();
    scanner.scan(now(10), &redactor()).unwrap();
    let ticks = 2 * rustix::param::clock_ticks_per_second();
    put(&root.proc(""), &Sham { ticks, ..SHAM });
    scanner.scan(now(14), &redactor()).unwrap();
    assert_eq!(scanner.process(1).unwrap().cpu_percent, Some(50.0));
    put(&root.proc(""), &SHAM);
    scanner.scan(now(15), &redactor()).unwrap();
    assert_eq!(scanner.process(1).unwrap().cpu_percent, Some(0.0));
}

#[test]
fn containers_take_their_names() {
    let (_directory, root) = machine();
    let cgroup = format!("0::/system.slice/docker-{DOCKER}.scope");
    put(
        &root.proc(""),
        &Sham { pid: 60, name: "app", command_line: "/app", cgroup: &cgroup, ..SHAM },
    );
    let mut scanner = Scanner::new(&root).unwrap();
    scanner.scan(now(1), &redactor()).unwrap();
    assert_eq!(scanner.process(60).unwrap().container(), Some(DOCKER));
    scanner.name_containers([(DOCKER.to_owned(), "shop".to_owned())].into());
    assert_eq!(scanner.scan(now(2), &redactor()).unwrap().changed.len(), 2);
    let view = scanner.process(60).unwrap();
    assert_eq!((view.container(), view.unit()), (Some("shop"), None));
}

#[test]
fn open_files_of_interest() {
    let (_directory, root) = machine();
    let fd = root.proc("40/fd");
    for (number, target) in
        ["/dev/null", "/srv/b.db", "/srv/a.gguf", "/dev/nvidia0", "socket:[5]"].iter().enumerate()
    {
        symlink(target, fd.join(number.to_string())).unwrap();
    }
    let mut scanner = Scanner::new(&root).unwrap();
    scanner.scan(now(1), &redactor()).unwrap();
    let web = scanner.groups().find(|group| group.process.name == "web").unwrap();
    assert_eq!(web.process.open_files, ["/srv/a.gguf", "/srv/b.db"]);
    assert_eq!(*scanner.process(40).unwrap().graphics_devices, ["/dev/nvidia0".into()]);
    symlink("/srv/c.sqlite", fd.join("9")).unwrap();
    assert_eq!(scanner.scan(now(2), &redactor()).unwrap().changed.len(), 1);
}

#[test]
fn a_missing_proc_says_where() {
    let error = Scanner::new(&Root::at("/nowhere")).unwrap_err();
    assert_eq!(error.to_string(), "could not open /nowhere/proc/");
}

#[test]
fn this_machine() {
    let mut scanner = Scanner::new(&Root::live()).unwrap();
    let scan = scanner.scan(now(1), &redactor()).unwrap();
    assert!(scan.processes > 0);
    let me = std::process::id();
    let view = scanner.process(me).unwrap();
    let executable = std::env::current_exe().unwrap();
    assert_eq!(view.executable(), executable.to_str());
    let group = scanner.group(view.group_id().unwrap()).unwrap();
    assert!(group.process.pids.contains(&i64::from(me)));
    assert!(group.process.started_at.is_some());
}

#[test]
fn a_process_that_calls_itself_anything() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("a) R\n(\u{1b}[2J");
    symlink("/bin/sleep", &link).unwrap();
    let mut child = std::process::Command::new(&link).arg("600").spawn().unwrap();
    let mut scanner = Scanner::new(&Root::live()).unwrap();
    scanner.scan(now(1), &redactor()).unwrap();
    let view = scanner.process(child.id()).unwrap();
    let (name, arguments) = (view.name(), view.arguments().to_vec());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(name, "a) R\\x0a(\\x1b[2J");
    assert_eq!(arguments[1..], ["600"]);
    let changed = scanner.refresh(&[child.id()], now(2), &redactor());
    assert!(changed.iter().any(|id| id.starts_with("a) R")), "{changed:?}");
    assert!(scanner.process(child.id()).is_none());
}

#[test]
fn processes_that_vanish_while_we_look() {
    let churn = std::thread::spawn(|| {
        for _ in 0..100 {
            std::process::Command::new("/bin/true").status().unwrap();
        }
    });
    let mut scanner = Scanner::new(&Root::live()).unwrap();
    let mut at = 1;
    while !churn.is_finished() {
        scanner.scan(now(at), &redactor()).unwrap();
        at += 1;
    }
    churn.join().unwrap();
    scanner.scan(now(at), &redactor()).unwrap();
    for group in scanner.groups() {
        assert!(!group.process.pids.is_empty());
        assert!(group.process.pids.is_sorted());
    }
}

/// One of the workers, as another.
const OTHER: Sham<'_> = Sham {
    pid: 41,
    name: "other",
    start: 541,
    ticks: 7,
    command_line: "/usr/bin/web",
    cgroup: "0::/system.slice/web.service",
};

fn web_is_quiet() -> Quiet {
    let mut quiet = Quiet::default();
    quiet.insert("/system.slice/web.service");
    quiet
}

/// What one process of a group that did nothing costs: its `stat` is not read in most scans.
#[test]
fn processes_of_quiet_groups_rest() {
    let (_directory, root) = machine();
    let proc = root.proc("");
    let quiet = web_is_quiet();
    let mut scanner = Scanner::new(&root).unwrap();
    // They began long ago. Nothing is known yet that could rest.
    scanner.scan_but(now(1001), &redactor(), &quiet).unwrap();
    assert_eq!(names(&scanner), ["init [1]", "web [40, 41]"]);

    // As if the counter had missed it: that it is not read shows.
    put(&proc, &OTHER);
    scanner.scan_but(now(1011), &redactor(), &quiet).unwrap();
    assert_eq!(names(&scanner), ["init [1]", "web [40, 41]"]);
    assert_eq!(scanner.process(41).unwrap().cpu_percent, Some(0.0));
    // One of the next six reads it all the same.
    let at = (2..9)
        .find(|at| {
            scanner.scan_but(now(1001 + 10 * at), &redactor(), &quiet).unwrap();
            names(&scanner) != ["init [1]", "web [40, 41]"]
        })
        .unwrap();
    assert_eq!(names(&scanner), ["init [1]", "other [41]", "web [40]"]);

    // A group that did something is read at once; who ended is missed at once, quiet or not.
    put(&proc, &Sham { pid: 40, name: "third", start: 540, ..OTHER });
    fs::remove_dir_all(proc.join("41")).unwrap();
    scanner.scan_but(now(1011 + 10 * at), &redactor(), &quiet).unwrap();
    assert_eq!(scanner.process(41).map(|view| view.pid), None);
    scanner.scan_but(now(1021 + 10 * at), &redactor(), &Quiet::default()).unwrap();
    assert_eq!(names(&scanner), ["init [1]", "third [40]"]);
}

#[test]
fn after_a_scan_that_saw_nothing_all_are_read() {
    let (_directory, root) = machine();
    let quiet = web_is_quiet();
    let mut scanner = Scanner::new(&root).unwrap();
    scanner.scan(now(1), &redactor()).unwrap();
    scanner.is_whole = false;
    put(&root.proc(""), &OTHER);
    scanner.scan_but(now(11), &redactor(), &quiet).unwrap();
    assert_eq!(names(&scanner), ["init [1]", "other [41]", "web [40]"]);
}

#[test]
fn a_process_that_was_moved_from_a_quiet_group_is_found() {
    let (_directory, root) = machine();
    let quiet = web_is_quiet();
    let mut scanner = Scanner::new(&root).unwrap();
    scanner.scan_but(now(1001), &redactor(), &quiet).unwrap();
    let mut unit = None;
    for at in 1..=8 {
        let cgroup = "0::/system.slice/other.service";
        let moved = Sham { name: "web", ticks: 900 * at, cgroup, ..OTHER };
        put(&root.proc(""), &moved);
        scanner.scan_but(now(1001 + 10 * at), &redactor(), &quiet).unwrap();
        let view = scanner.process(41).unwrap();
        assert!(view.cpu_percent.unwrap_or_default() <= 100.0, "{:?}", view.cpu_percent);
        unit = view.unit().map(str::to_owned);
    }
    assert_eq!(unit.as_deref(), Some("other.service"));
}

//! Scans of real directories: content, privacy, links, special files, and what is read again.

use super::*;
use crate::packages::Packages;
use model::entity::Unit;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

struct Machine {
    directory: tempfile::TempDir,
    tracker: Tracker,
    patterns: Vec<Pattern>,
}

impl Machine {
    fn new(patterns: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tracker = Tracker::new(Root::at(directory.path()), Redactor::new([7; 32], Vec::new()));
        let patterns = patterns.iter().map(|pattern| pattern.parse().unwrap()).collect();
        Self { directory, tracker, patterns }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, bytes: impl AsRef<[u8]>, mode: u32) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn set(&self, units: &[Unit]) -> TrackedSet {
        let root = Root::at(self.directory.path());
        let mut packages = Packages::new(root.clone());
        packages.refresh().unwrap();
        TrackedSet::build(&root, units, &mut packages, &self.patterns)
    }

    fn scan(&mut self) -> Scan {
        let set = self.set(&[]);
        self.tracker.scan(&set, &Accounts::default())
    }

    /// Each file as `PATH ROLE WHY-OR-content`.
    fn show(&mut self) -> String {
        let scan = self.scan();
        let lines = scan.files.iter().map(|file| {
            let what = file.withheld.clone().or_else(|| file.link.clone());
            let what = what.unwrap_or_else(|| "content".to_owned());
            format!("{} {} {what}\n", file.path, file.role)
        });
        lines.collect()
    }
}

#[test]
fn what_is_tracked_whole_is_told_and_kept() {
    let mut machine = Machine::new(&["/etc/app", "/etc/one.conf", "/etc/some/*.conf"]);
    machine.write("/etc/app/conf.d/a.conf", "", 0o644);
    machine.write("/etc/some/b.conf", "", 0o644);
    machine.write("/etc/some/c.txt", "", 0o644);
    let whole = |set: &TrackedSet| set.whole().map(str::to_owned).collect::<Vec<_>>();
    let before = machine.set(&[]);
    assert_eq!(whole(&before), ["/etc/app"]);
    assert_eq!(machine.scan().missing, ["/etc/one.conf"]);
    // What nobody asks for any more goes on, with what came to be there.
    std::fs::remove_file(machine.path("/etc/app/conf.d/a.conf")).unwrap();
    machine.write("/etc/app/new.conf", "", 0o644);
    machine.patterns.clear();
    let root = Root::at(machine.directory.path());
    let mut packages = Packages::new(root.clone());
    packages.refresh().unwrap();
    let mut after = machine.set(&[]);
    after.keep_trees(&root, &before, &mut packages);
    assert_eq!(whole(&after), ["/etc/app"]);
    assert!(after.paths().any(|(path, _)| path == "/etc/app/new.conf"));
    // One of which something is left out is not whole, and those in it are.
    let deep = format!("/etc/app/deep{}", "/d".repeat(9));
    machine.write(&format!("{deep}/x.conf"), "", 0o644);
    machine.patterns = vec!["/etc/app".parse().unwrap()];
    assert_eq!(whole(&machine.set(&[])), ["/etc/app/conf.d"]);
    std::fs::remove_dir_all(machine.path("/etc/app")).unwrap();
    let mut after = machine.set(&[]);
    after.keep_trees(&root, &before, &mut packages);
    assert_eq!(whole(&after), Vec::<String>::new());
}

#[test]
fn what_a_file_holds_is_told_of_bytes_that_are_known() {
    let machine = Machine::new(&[]);
    machine.write("/etc/a", "password=hunter2\n", 0o644);
    symlink("a", machine.path("/etc/link")).unwrap();
    let root = Root::at(machine.directory.path());
    let is_it = |path: &str, bytes: &str| holds(&root, path, ContentId::of(bytes.as_bytes()));
    assert!(is_it("/etc/a", "password=hunter2\n"));
    assert!(!is_it("/etc/a", "password=redacted:0123456789abcdef\n"));
    assert!(!is_it("/etc/link", "password=hunter2\n") && !is_it("/etc/none", ""));
    assert!(!is_it("/etc", ""));
}

#[test]
fn what_may_leave_the_machine() {
    let mut machine = Machine::new(&["/etc/app", "/etc/shadow", "/etc/missing"]);
    machine.write("/etc/app/a.conf", "listen 80\n", 0o644);
    machine.write("/etc/app/b.conf", "listen 80\n", 0o640);
    machine.write("/etc/app/c.bin", b"a\0b", 0o644);
    machine.write("/etc/app/d.latin1", b"caf\xe9", 0o644);
    let key = "-----BEGIN RSA PRIVATE KEY-----\nx\n-----END RSA PRIVATE KEY-----\n";
    machine.write("/etc/app/e.pem", key, 0o644);
    machine.write("/etc/app/f.log", vec![b'x'; 1_100_000], 0o644);
    machine.write("/etc/app/sub/g.conf", "", 0o600);
    machine.write("/etc/shadow", "root:$6$x::::::\n", 0o644);
    symlink("/etc/shadow", machine.path("/etc/app/h.link")).unwrap();
    symlink("..", machine.path("/etc/app/i.loop")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        machine.path("/etc/app/j.fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    expect_test::expect![[r"
        /etc/app/a.conf chosen content
        /etc/app/b.conf chosen private
        /etc/app/c.bin chosen binary
        /etc/app/d.latin1 chosen binary
        /etc/app/e.pem chosen private
        /etc/app/f.log chosen too large
        /etc/app/h.link chosen /etc/shadow
        /etc/app/i.loop chosen ..
        /etc/app/j.fifo chosen not a regular file
        /etc/app/sub/g.conf chosen private
        /etc/shadow chosen private
    "]]
    .assert_eq(&machine.show());
}

#[test]
fn contents_are_redacted_and_handed_out_once() {
    let mut machine = Machine::new(&["/etc/app"]);
    machine.write("/etc/app/a.conf", "port 80\npassword hunter2\n", 0o644);
    machine.write("/etc/app/b.conf", "port 80\npassword hunter2\n", 0o644);
    let scan = machine.scan();
    assert_eq!((scan.files.len(), scan.contents.len()), (2, 1), "the same content once");
    let (id, bytes) = scan.contents.first().unwrap();
    let text = std::str::from_utf8(bytes).unwrap();
    assert!(text.starts_with("port 80\npassword redacted:"), "{text}");
    assert_eq!(ContentId::of(bytes), *id);
    assert_eq!(scan.files[0].content.as_deref(), Some(id.to_string().as_str()));
    assert_eq!(scan.files[0].mode.as_deref(), Some("0644"));
    assert!(machine.scan().contents.is_empty());
    assert_eq!(machine.tracker.content(*id).as_ref(), Some(bytes));
    assert_eq!(machine.tracker.content(ContentId::of(b"else")), None);
    // A rotated secret shows, although nobody sees it.
    machine.write("/etc/app/a.conf", "port 80\npassword hunter3\n", 0o644);
    let rotated = machine.scan();
    assert_eq!(rotated.contents.len(), 1);
    assert_ne!(rotated.files[0].fingerprint, scan.files[0].fingerprint);
    assert_eq!(rotated.files[1], scan.files[1]);
}

#[test]
fn values_of_environments_stay_on_the_machine() {
    let mut machine = Machine::new(&["/etc/default"]);
    let unit_file = "/etc/systemd/system/app.service";
    machine.write(unit_file, "[Service]\nEnvironment=DSN=hunter2 PORT=80\n", 0o644);
    machine.write("/etc/default/app", "DSN=hunter2\nPORT=80\n", 0o644);
    let unit = Unit {
        id: "app.service".into(),
        load_state: "loaded".into(),
        fragment_path: Some(unit_file.into()),
        environment_files: vec!["/etc/default/app".into()],
        ..Unit::default()
    };
    let mark = Redactor::new([7; 32], Vec::new()).mark("hunter2");
    let root = Root::at(machine.directory.path());
    let mut texts = |set: &TrackedSet| -> Vec<String> {
        let scan = machine.tracker.scan(set, &Accounts::default());
        scan.contents.into_iter().map(|(_, bytes)| String::from_utf8(bytes).unwrap()).collect()
    };
    let mut packages = Packages::new(root.clone());
    packages.refresh().unwrap();
    let chosen = ["/etc/default".parse().unwrap()];
    let mut build = |units: &[Unit]| TrackedSet::build(&root, units, &mut packages, &chosen);
    // A chosen file, until a unit is known that takes its environment from it.
    let (before, after) = (build(&[]), build(&[unit]));
    assert_eq!(texts(&before), ["DSN=hunter2\nPORT=80\n"]);
    let hidden = format!("DSN={mark}\nPORT=80\n");
    assert_eq!(texts(&after), [hidden, format!("[Service]\nEnvironment=DSN={mark} PORT=80\n")]);
    // It stays one when the unit goes.
    let mut later = build(&[]);
    let mut packages = Packages::new(root.clone());
    later.keep(&root, after.paths(), &mut packages);
    let role = later.paths().find(|(path, _)| *path == "/etc/default/app");
    assert_eq!(role, Some(("/etc/default/app", Role::Environment)));
    assert!(texts(&later).is_empty());
}

#[test]
fn a_change_within_one_tick_of_the_clock_is_seen() {
    let mut machine = Machine::new(&["/etc/app"]);
    for round in 0..200 {
        machine.write("/etc/app/a.conf", format!("{round:03}"), 0o644);
        let scan = machine.scan();
        let expected = ContentId::of(format!("{round:03}").as_bytes()).to_string();
        assert_eq!(scan.files[0].content.as_ref(), Some(&expected), "round {round}");
    }
}

#[test]
fn units_and_the_configuration_of_what_runs() {
    let mut machine = Machine::new(&["/srv/*/app.conf"]);
    machine.write("/lib/systemd/system/nginx.service", "[Service]\n", 0o644);
    machine.write("/etc/systemd/system/nginx.service.d/x.conf", "[Service]\n", 0o644);
    machine.write("/etc/nginx/sites-enabled/a", "server {}\n", 0o644);
    machine.write("/etc/nginx/nginx.conf", "x\n", 0o644);
    machine.write("/etc/nginx.d/b", "x\n", 0o644);
    machine.write("/etc/nginxes.d/c", "x\n", 0o644);
    machine.write("/etc/default/nginx", "A=1\n", 0o644);
    machine.write("/srv/one/app.conf", "1\n", 0o644);
    machine.write("/srv/two/app.conf", "2\n", 0o644);
    let status = include_str!("../../tests/fixtures/dpkg/status");
    machine.write("/var/lib/dpkg/status", status, 0o644);
    let list = "/usr/lib/systemd/system/nginx.service\n/etc/nginx/nginx.conf\n";
    machine.write("/var/lib/dpkg/info/nginx-common.list", list, 0o644);
    let unit = Unit {
        id: "nginx.service".into(),
        load_state: "loaded".into(),
        active_state: "active".into(),
        fragment_path: Some("/lib/systemd/system/nginx.service".into()),
        drop_ins: vec!["/etc/systemd/system/nginx.service.d/x.conf".into(), "/run/x".into()],
        environment_files: vec!["-/etc/default/ngin?".into(), "../../etc/shadow".into()],
        ..Unit::default()
    };
    let set = machine.set(&[unit]);
    let scan = machine.tracker.scan(&set, &Accounts::default());
    let shown: String = scan
        .files
        .iter()
        .map(|f| format!("{} {} {}\n", f.path, f.role, f.package.as_deref().unwrap_or("-")))
        .collect();
    expect_test::expect![[r"
        /etc/default/nginx environment -
        /etc/nginx.d/b config -
        /etc/nginx/nginx.conf config nginx-common
        /etc/nginx/sites-enabled/a config -
        /etc/systemd/system/nginx.service.d/x.conf dropin -
        /lib/systemd/system/nginx.service unit nginx-common
        /srv/one/app.conf chosen -
        /srv/two/app.conf chosen -
    "]]
    .assert_eq(&shown);
    let wanted = set.watched(&Root::at("/"));
    assert_eq!(wanted.get(Path::new("/srv")), Some(&BTreeSet::new()), "a new match counts");
    assert_eq!(wanted.get(Path::new("/lib/systemd/system")).map(BTreeSet::len), Some(1));
}

#[test]
fn a_huge_directory_is_cut_and_says_so() {
    let machine = Machine::new(&["/etc/many"]);
    std::fs::create_dir_all(machine.path("/etc/many")).unwrap();
    for number in 0..1010 {
        std::fs::write(machine.path(&format!("/etc/many/{number}")), "").unwrap();
    }
    let set = machine.set(&[]);
    assert_eq!((set.len(), set.left_out() > 0), (1000, true));
}

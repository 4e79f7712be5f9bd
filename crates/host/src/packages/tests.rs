//! dpkg, apk and rpm databases: captured, truncated, hostile and changing ones.

use super::*;
use proptest::prelude::*;

const STATUS: &str = include_str!("../../tests/fixtures/dpkg/status");
const INSTALLED: &str = include_str!("../../tests/fixtures/apk/installed");

fn summary(database: &Database) -> String {
    let line = |package: &Package| {
        let Package { name, version, architecture, state, .. } = package;
        let architecture = architecture.as_deref().unwrap_or("-");
        format!("{name} {version} {architecture} {}\n", state.as_deref().unwrap_or("-"))
    };
    let files = database.configuration.iter();
    let files = files.map(|(name, paths)| format!("{name}: {}\n", paths.join(" ")));
    database.packages.values().map(line).chain(files).collect()
}

#[test]
fn dpkg_status() {
    expect_test::expect![[r"
        cron 3.0pl1-162 amd64 config-files
        dpkg 1.21.22 amd64 -
        libc6 2.36-9+deb12u13 amd64 hold
        libc6:i386 2.36-9+deb12u13 i386 -
        nginx 1.22.1-9+deb12u6 amd64 half-configured
        nginx-common 1.22.1-9+deb12u6 all -
        dpkg: /etc/alternatives/README /etc/cron.daily/dpkg
        nginx-common: /etc/default/nginx /etc/nginx/a file.conf /etc/nginx/nginx.conf /etc/old.conf
    "]]
    .assert_eq(&summary(&dpkg::parse(STATUS.as_bytes())));
}

#[test]
fn apk_installed() {
    expect_test::expect![[r"
        busybox 1.36.1-r29 x86_64 -
        musl 1.2.5-r0 x86_64 -
        busybox: /etc/securetty /etc/udhcpd.conf
    "]]
    .assert_eq(&summary(&apk::parse(INSTALLED.as_bytes())));
}

#[test]
fn rpm_answer() {
    let answer = "bash\t0:5.2.26-3.fc40\tx86_64\nkernel\t0:6.8.5-301\tx86_64\n\
        kernel\t0:6.9.1-200\tx86_64\nglibc\t0:2.39-6\tx86_64\nglibc\t0:2.39-6\ti686\n\
        gpg-pubkey\t0:a15b79cc-63d04c2c\t(none)\nvim\t2:9.1.1-1\tx86_64\nbroken\n";
    expect_test::expect![[r"
        bash 5.2.26-3.fc40 x86_64 -
        glibc 2.39-6 x86_64 -
        glibc:i686 2.39-6 i686 -
        kernel 6.8.5-301 x86_64 -
        kernel-6.9.1-200 6.9.1-200 x86_64 -
        vim 2:9.1.1-1 x86_64 -
    "]]
    .assert_eq(&summary(&rpm::parse(answer.as_bytes())));
}

#[test]
fn a_truncated_status_keeps_what_is_whole() {
    for end in 0..STATUS.len() {
        let cut = STATUS.as_bytes().get(..end).unwrap();
        let database = dpkg::parse(cut);
        assert!(database.packages.len() <= 7);
    }
}

/// A machine with rpm, and with what answers in its place.
fn rpm_machine() -> (tempfile::TempDir, Packages, impl Fn(&str)) {
    let directory = tempfile::tempdir().unwrap();
    let (path, program) = (directory.path().to_owned(), directory.path().join("rpm.sh"));
    std::fs::create_dir_all(path.join("var/lib/rpm")).unwrap();
    let mut packages = Packages::new(Root::at(directory.path()));
    packages.rpm = Rpm {
        command: vec!["sh".into(), program.clone().into()],
        deadline: Duration::from_secs(30),
        owners_deadline: Duration::from_secs(30),
    };
    // What it answers; the database is another one then.
    let answer = move |script: &str| {
        std::fs::write(&program, script).unwrap();
        let database = path.join("var/lib/rpm/rpmdb.sqlite");
        let before = std::fs::read(&database).unwrap_or_default();
        std::fs::write(&database, [before.as_slice(), b"x"].concat()).unwrap();
    };
    (directory, packages, answer)
}

const LISTS: &str = "case \"$*\" in\n\
    *FILENAMES*) printf 'c\\tnginx\\t/etc/nginx/nginx.conf\\n-\\tnginx\\t/usr/sbin/nginx\\n' ;;\n\
    *) printf 'nginx\\t0:1.2-3\\tx86_64\\n' ;;\nesac\n";

#[test]
fn a_program_that_hangs_leaves_what_it_told_before_and_is_not_asked_at_once_again() {
    let (_directory, mut packages, answer) = rpm_machine();
    answer(LISTS);
    assert!(packages.refresh().unwrap());
    assert_eq!(packages.configuration("nginx"), ["/etc/nginx/nginx.conf"]);
    let paths = ["/usr/sbin/nginx", "/opt/own"];
    assert_eq!(packages.owners(paths).len(), 1);
    assert_eq!(packages.without_owner(paths), ["/opt/own"]);
    assert_eq!(packages.owners_fault(), None);
    // The database changes, and its program does not answer any more who owns what.
    answer(&LISTS.replace("1.2-3", "1.2-4"));
    assert!(packages.refresh().unwrap());
    answer("exec sleep 600");
    packages.rpm.owners_deadline = Duration::from_millis(200);
    assert_eq!(packages.owner("/opt/new"), None);
    assert_eq!(packages.owners_fault(), Some("rpm did not answer within 0 s"));
    assert_eq!(packages.owner("/usr/sbin/nginx").as_deref(), Some("nginx"));
    // Not known is not nobody's.
    assert_eq!(packages.without_owner(["/opt/own", "/opt/new"]), ["/opt/own"]);
    // Nobody who waits asks it again; a reading does, which may take longer.
    answer(LISTS);
    packages.stamp = Some(packages.stamp_now());
    assert_eq!(packages.owner("/etc/nginx/nginx.conf"), None);
    assert!(packages.refresh().unwrap());
    assert_eq!(packages.owners_fault(), None);
    assert_eq!(packages.owner("/etc/nginx/nginx.conf").as_deref(), Some("nginx"));
    assert!(!packages.refresh().unwrap());
}

#[test]
fn owners_that_are_not_told_are_asked_for_ever_later() {
    let (_directory, mut packages, answer) = rpm_machine();
    answer(LISTS);
    assert!(packages.refresh().unwrap());
    answer("exit 1");
    packages.stamp = Some(packages.stamp_now());
    assert_eq!(packages.owner("/opt/own"), None);
    for minutes in [1, 2, 4, 8, 15, 15] {
        let reading = packages.due().expect("is asked again");
        assert!(!packages.take(reading.read().unwrap()));
        assert!(packages.due().is_none(), "rests");
        let rest = packages.rest.as_mut().unwrap();
        assert_eq!(rest.1, Duration::from_secs(60 * minutes));
        rest.0 -= rest.1;
    }
    answer(LISTS);
    packages.stamp = Some(packages.stamp_now());
    assert!(packages.refresh().unwrap());
    assert_eq!((packages.owners_fault(), packages.rest), (None, None));
    assert_eq!(packages.without_owner(["/opt/own"]), ["/opt/own"]);
}

#[test]
fn what_was_told_before_counts_until_the_database_answers() {
    let (_directory, mut packages, answer) = rpm_machine();
    packages.remember([
        ("/etc/nginx/nginx.conf".to_owned(), Some("nginx-old".to_owned())),
        ("/usr/sbin/nginx".to_owned(), Some("nginx".to_owned())),
    ]);
    answer("exit 1");
    assert!(packages.refresh().is_err());
    assert_eq!(packages.owner("/etc/nginx/nginx.conf").as_deref(), Some("nginx-old"));
    // The reading of the database tells them on its way, in either form of a path.
    answer(LISTS);
    assert!(packages.refresh().unwrap());
    answer("exit 1");
    packages.stamp = Some(packages.stamp_now());
    assert_eq!(packages.owner("/etc/nginx/nginx.conf").as_deref(), Some("nginx"));
    assert_eq!(packages.owner("/usr/sbin/nginx").as_deref(), Some("nginx"));
    assert_eq!(packages.owners_fault(), None);
}

#[test]
fn all_that_rpm_tells_has_one_deadline() {
    let (_directory, mut packages, answer) = rpm_machine();
    answer(&LISTS.replace("*FILENAMES*)", "*FILENAMES*) exec sleep 600;"));
    packages.rpm.deadline = Duration::from_millis(200);
    assert!(matches!(packages.refresh(), Err(Error::Deadline { .. })));
    assert_eq!(packages.list().count(), 0);
}

/// A machine with dpkg, `nginx-common` owning a unit by its unmerged path.
fn machine() -> (tempfile::TempDir, Packages) {
    let directory = tempfile::tempdir().unwrap();
    let info = directory.path().join("var/lib/dpkg/info");
    std::fs::create_dir_all(&info).unwrap();
    std::fs::write(directory.path().join("var/lib/dpkg/status"), STATUS).unwrap();
    let list = "/.\n/lib/systemd/system/nginx.service\n/etc/nginx/nginx.conf\n";
    std::fs::write(info.join("nginx-common.list"), list).unwrap();
    std::fs::write(info.join("libc6:amd64.list"), "/lib/ld.so\n").unwrap();
    std::fs::write(info.join("broken.list"), b"\xff\xfe\n/x\n").unwrap();
    let packages = Packages::new(Root::at(directory.path()));
    (directory, packages)
}

#[test]
fn owners_are_found_in_either_form_of_a_path() {
    let (_directory, mut packages) = machine();
    assert!(packages.refresh().unwrap());
    let owner = |packages: &mut Packages, path: &str| packages.owner(path);
    let unit = "/usr/lib/systemd/system/nginx.service";
    assert_eq!(owner(&mut packages, unit).as_deref(), Some("nginx-common"));
    assert_eq!(owner(&mut packages, "/usr/lib/ld.so").as_deref(), Some("libc6"));
    assert_eq!(owner(&mut packages, "/etc/nowhere"), None);
    assert_eq!(packages.configuration("nginx-common").len(), 4);
}

#[test]
fn only_a_changed_database_is_read_again() {
    let (directory, mut packages) = machine();
    assert!(packages.refresh().unwrap());
    assert!(!packages.refresh().unwrap());
    let status = directory.path().join("var/lib/dpkg/status");
    std::fs::write(&status, STATUS.replace("1.22.1-9+deb12u6", "1.22.2")).unwrap();
    assert!(packages.refresh().unwrap());
    assert_eq!(packages.get("nginx").unwrap().version, "1.22.2");
    assert_eq!(packages.watched().len(), 1);
    // Unreadable: an error, and what was known stays.
    std::fs::remove_file(&status).unwrap();
    std::fs::create_dir(&status).unwrap();
    assert_eq!(packages.list().count(), 6);
}

#[test]
fn a_machine_without_packages() {
    let directory = tempfile::tempdir().unwrap();
    let mut packages = Packages::new(Root::at(directory.path()));
    assert!(packages.refresh().unwrap());
    assert!(!packages.refresh().unwrap());
    assert_eq!(packages.list().count(), 0);
    assert_eq!(packages.owner("/bin/sh"), None);
}

proptest! {
    #[test]
    fn anything_goes_in(
        bytes: Vec<u8>,
        text in "((Package|Status|Version|Conffiles|P|V|F|R): ?[ -~]{0,9}\n|\n| [ -~]{0,9}\n|\t){0,20}",
    ) {
        for input in [bytes.as_slice(), text.as_bytes()] {
            dpkg::parse(input);
            apk::parse(input);
            rpm::parse(input);
        }
    }
}

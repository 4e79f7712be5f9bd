use super::*;
use api::answer::{Around, changes};
use api::wire::Gap;
use expect_test::{Expect, expect};
use model::{Fields, HostId, Patch, Time};

pub(crate) fn fields(json: &str) -> Fields {
    serde_json::from_str(json).unwrap()
}

/// A change written as `SUBJECT|WAS|NOW`, an empty side being none.
pub(crate) fn change(line: &str) -> Change {
    let mut parts = line.splitn(3, '|');
    let subject: Subject = parts.next().unwrap().parse().unwrap();
    let op = match (parts.next().unwrap(), parts.next().unwrap()) {
        ("", now) => Op::Added(fields(now)),
        (was, "") => Op::Removed(fields(was)),
        (was, now) => Op::Edited { was: fields(was), now: fields(now) },
    };
    changes(Patch([(subject, op)].into()), |_| false).remove(0)
}

/// 2026-11-20T09:00:00Z and so many seconds.
pub(crate) fn at(seconds: i64) -> Time {
    Time::from_seconds(1_795_165_200 + seconds)
}

pub(crate) fn entry(version: u64, lines: &[&str]) -> Entry {
    let mut changes: Vec<Change> = lines.iter().map(|line| change(line)).collect();
    for change in &mut changes {
        change.first_seen = version == 1 && matches!(change.op, Op::Added(_));
    }
    Entry {
        host: HostId::new("web01").unwrap(),
        version: Version(version),
        at: at(0),
        host_time: None,
        received_at: at(1),
        significance: Significance::Major,
        total_changes: changes.len(),
        changes,
        around: Vec::new(),
        gap: None,
        label: None,
    }
}

fn check(entry: &Entry, focus: &[&str], expected: &Expect) {
    let focus: Vec<Subject> = focus.iter().map(|subject| subject.parse().unwrap()).collect();
    let view = View::of_tests();
    let contents = Contents::of(&["a\nb\n", "a\nc\n"]);
    let filtered = !focus.is_empty();
    let lens = Lens { view: &view, contents: &contents, focus: &focus, filtered, with_host: false };
    expected.assert_eq(&render(entry, &lens));
}

const FAILED: &str = r#"unit:nginx.service|{"active_state":"active","sub_state":"running","main_pid":812,"result":"success","since":"2026-11-18T07:12:40Z"}|{"active_state":"failed","sub_state":"failed","result":"exit-code","restarts":3,"since":"2026-11-20T09:00:00Z"}"#;

#[test]
fn a_failure_and_what_happened_around_it() {
    let mut entry =
        entry(412, &[FAILED, r#"process:nginx#1|{"arguments":["nginx"],"pids":[812]}|"#]);
    let around = |seconds, version, line: &str| Around {
        version: Version(version),
        at: at(seconds),
        change: change(line),
    };
    entry.around = vec![
        around(-14, 410, r#"package:nginx|{"version":"1.22.1-9"}|{"version":"1.24.0-1"}"#),
        around(
            -13,
            411,
            r#"file:/etc/nginx/nginx.conf|{"fingerprint":"a","size":1200}|{"fingerprint":"b","size":1300}"#,
        ),
        around(
            3,
            413,
            r#"unit:app.service|{"active_state":"active","sub_state":"running"}|{"active_state":"inactive","sub_state":"dead"}"#,
        ),
    ];
    for n in 0..6 {
        let process = format!(r#"process:p{n}#1||{{"pids":[1]}}"#);
        let package = format!(r#"package:lib{n}|{{"version":"1"}}|{{"version":"2"}}"#);
        entry.around.extend([around(n, 413, &process), around(-n, 411, &package)]);
    }
    check(
        &entry,
        &["unit:nginx.service"],
        &expect![[r#"
            2026-11-20T09:00:00Z  15 min ago  @412  active (running) → failed, exit-code
                main_pid  812 → none
                restarts  none → 3
                process:nginx#1  ended: nginx, pid 812
                also  13 s before  file:/etc/nginx/nginx.conf  edited (1.1 KiB → 1.2 KiB)
                      14 s before  package:nginx  1.22.1-9 → 1.24.0-1
                      same second  6 packages: lib0 1 → 2, lib1 1 → 2, lib2 1 → 2, lib3 1 → 2 and 2 more
                      3 s after    unit:app.service  active (running) → inactive (dead)
                      same second  6 processes: p0#1, p1#1, p2#1, p3#1 and 2 more
        "#]],
    );
}

#[test]
fn the_first_entry_shows_the_whole_picture() {
    let entry = entry(
        1,
        &[
            r#"unit:nginx.service||{"description":"A web server","load_state":"loaded","active_state":"active","sub_state":"running","since":"2026-11-18T07:12:40Z","main_pid":812,"enablement":"enabled","fragment_path":"/lib/systemd/system/nginx.service","drop_ins":["/etc/systemd/system/nginx.service.d/limits.conf"],"exec_start":[["/usr/sbin/nginx","-g","daemon on; master_process on;"]],"requires":["sysinit.target","system.slice","redis.service"],"wants":["network-online.target"],"restart":"on-failure"}"#,
            r#"package:nginx||{"version":"1.22.1-9","manager":"dpkg"}"#,
            r#"file:/lib/systemd/system/nginx.service||{"role":"unit","size":400}"#,
            r#"file:/etc/nginx/nginx.conf||{"role":"config","size":400}"#,
            r#"file:/etc/nginx/mime.types||{"role":"config","size":400}"#,
            r#"socket:tcp 0.0.0.0:80||{"protocol":"tcp","port":80,"process":"nginx"}"#,
            r#"dependency:nginx.service -> app.service||{"from":"nginx.service","to":"app.service","observed":["tcp 127.0.0.1:9000"]}"#,
            r#"process:nginx#1||{"arguments":["nginx: master process /usr/sbin/nginx"],"pids":[812],"user":"root"}"#,
            r#"process:nginx#2||{"arguments":["nginx: worker process"],"pids":[813,814,815,816],"user":"www-data"}"#,
        ],
    );
    check(
        &entry,
        &["unit:nginx.service"],
        &expect![[r#"
            2026-11-20T09:00:00Z  15 min ago  @1  first seen: active (running) since 2026-11-18T07:12:40Z, pid 812, enabled, /lib/systemd/system/nginx.service
                description  A web server
                runs         /usr/sbin/nginx -g 'daemon on; master_process on;'
                restart      on-failure
                drop-ins     /etc/systemd/system/nginx.service.d/limits.conf
                needs        redis.service
                wants        network-online.target
                package      nginx 1.22.1-9
                files        /etc/nginx/mime.types, /etc/nginx/nginx.conf
                listens on   tcp 0.0.0.0:80
                talks to     app.service (tcp 127.0.0.1:9000)
                process      nginx: master process /usr/sbin/nginx, pid 812, user root
                process      nginx: worker process, pid 813 and 3 more, user www-data
        "#]],
    );
    check(
        &entry,
        &[],
        &expect![[r#"
        2026-11-20T09:00:00Z  15 min ago  @1  first seen: 1 unit, 2 processes, 1 package, 3 files, 1 socket, 1 dependency
    "#]],
    );
    check(
        &entry,
        &["package:nginx"],
        &expect![[r#"
            2026-11-20T09:00:00Z  15 min ago  @1  first seen: 1.22.1-9
                manager  dpkg
                version  1.22.1-9
                unit:nginx.service  active (running) since 2026-11-18T07:12:40Z, pid 812, enabled, /lib/systemd/system/nginx.service
                file:/etc/nginx/mime.types  400 B
                file:/etc/nginx/nginx.conf  400 B
                file:/lib/systemd/system/nginx.service  400 B
                socket:tcp 0.0.0.0:80  nginx
                process:nginx#1  nginx: master process /usr/sbin/nginx, pid 812, user root
                process:nginx#2  nginx: worker process, pid 813 and 3 more, user www-data
                dependency:nginx.service -> app.service  seen on tcp 127.0.0.1:9000
        "#]],
    );
}

#[test]
fn a_file_shows_its_lines() {
    let id = |text: &str| model::ContentId::of(text.as_bytes());
    let line = format!(
        r#"file:/etc/x.conf|{{"content":"{}","size":4}}|{{"content":"{}","size":4}}"#,
        id("a\nb\n"),
        id("a\nc\n")
    );
    check(
        &entry(3, &[&line]),
        &["file:/etc/x.conf"],
        &expect![[r#"
        2026-11-20T09:00:00Z  15 min ago  @3  edited
            @@ -1,2 +1,2 @@
             a
            -b
            +c
    "#]],
    );
    check(
        &entry(3, &[FAILED, &line]),
        &["unit:nginx.service"],
        &expect![[r#"
        2026-11-20T09:00:00Z  15 min ago  @3  active (running) → failed, exit-code
            main_pid  812 → none
            restarts  none → 3
            file:/etc/x.conf  edited
                @@ -1,2 +1,2 @@
                 a
                -b
                +c
    "#]],
    );
}

#[test]
fn everything_is_bounded() {
    let lines: Vec<String> = (0..40)
        .map(|n| format!(r#"package:lib{n:02}|{{"version":"1"}}|{{"version":"2"}}"#))
        .collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut entry = entry(9, &lines);
    entry.total_changes = 400;
    entry.gap = Some(Gap { since: at(-3600), merged: 12 });
    entry.host_time = Some(Time(0));
    entry.label = Some("base_state".into());
    check(
        &entry,
        &[],
        &expect![[r#"
        2026-11-20T09:00:00Z  15 min ago  @9  [base_state]  package:lib00  1 → 2
            package:lib01  1 → 2
            package:lib02  1 → 2
            package:lib03  1 → 2
            package:lib04  1 → 2
            package:lib05  1 → 2
            package:lib06  1 → 2
            package:lib07  1 → 2
            package:lib08  1 → 2
            package:lib09  1 → 2
            package:lib10  1 → 2
            and 389 more changes: 29 packages, 360 not listed
            a gap: stands for 12 changes since 2026-11-20T08:00:00Z that could not be kept apart
            the host's clock said 1970-01-01T00:00:00Z, which was not believed
    "#]],
    );
}

#[test]
fn hostile_texts_stay_texts() {
    let mut entry = entry(
        5,
        &[
            r#"unit:x.service|{"description":"a"}|{"description":"\u001b]0;owned\u0007\n@999  all is well\u202e"}"#,
        ],
    );
    entry.label = Some("\x1b[2J".into());
    check(
        &entry,
        &["unit:x.service"],
        &expect![[r#"
        2026-11-20T09:00:00Z  15 min ago  @5  [\x1b[2J]  description a → \x1b]0;owned\x07\n@999  all is well\u{202e}
    "#]],
    );
}

#[test]
fn colours() {
    let view = View::of_tests().colored().at(at(60));
    let lens = Lens {
        view: &view,
        contents: &Contents::default(),
        focus: &[],
        filtered: false,
        with_host: true,
    };
    let text = render(&entry(412, &[FAILED]), &lens);
    expect![[r#"
        ESC[33m2026-11-20T09:00:00ZESC[0m  ESC[2m60 s agoESC[0m  ESC[36mweb01@412ESC[0m  ESC[1munit:nginx.serviceESC[0m  ESC[31mactive (running) → failed, exit-codeESC[0m
            ESC[2mmain_pidESC[0m  812 → none
            ESC[2mrestartsESC[0m  none → 3
    "#]].assert_eq(&text.replace('\x1b', "ESC"));
}

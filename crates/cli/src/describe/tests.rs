use super::*;
use expect_test::{Expect, expect};

fn fields(json: &str) -> Fields {
    serde_json::from_str(json).unwrap()
}

fn check(subject: &str, was: &str, now: &str, expected: &Expect) {
    let op = match (was, now) {
        ("", now) => Op::Added(fields(now)),
        (was, "") => Op::Removed(fields(was)),
        (was, now) => Op::Edited { was: fields(was), now: fields(now) },
    };
    let said = describe(&subject.parse().unwrap(), &op, &View::of_tests());
    let told: Vec<&str> = said.told.iter().map(String::as_str).collect();
    expected.assert_eq(&format!("{} | {:?} | {}", said.sentence(), said.tone, told.join(" ")));
}

#[test]
fn units() {
    check(
        "unit:nginx.service",
        "",
        r#"{"active_state":"active","sub_state":"running","since":"2026-11-18T07:12:40Z","main_pid":812,"enablement":"enabled","fragment_path":"/lib/systemd/system/nginx.service","result":"success","load_state":"loaded"}"#,
        &expect![
            "appeared: active (running) since 2026-11-18T07:12:40Z, pid 812, enabled, /lib/systemd/system/nginx.service | Good | "
        ],
    );
    check(
        "unit:nginx.service",
        r#"{"active_state":"active","sub_state":"running","main_pid":812,"result":"success","since":"2026-11-18T07:12:40Z"}"#,
        r#"{"active_state":"failed","sub_state":"failed","result":"exit-code","since":"2026-11-20T09:00:00Z"}"#,
        &expect![
            "active (running) → failed, exit-code | Bad | active_state result since sub_state"
        ],
    );
    check(
        "unit:a.service",
        r#"{"main_pid":812}"#,
        r#"{"main_pid":901}"#,
        &expect!["restarted, pid 812 → 901 | Neutral | main_pid since"],
    );
    check(
        "unit:a.service",
        r#"{"sub_state":"running"}"#,
        r#"{"sub_state":"exited"}"#,
        &expect!["running → exited | Neutral | active_state since sub_state"],
    );
    check(
        "unit:a.service",
        r#"{"enablement":"enabled"}"#,
        r#"{"enablement":"disabled"}"#,
        &expect!["enabled → disabled | Neutral | enablement"],
    );
    check(
        "unit:a.service",
        r#"{"restarts":1}"#,
        r#"{"restarts":2}"#,
        &expect!["restarts 1 → 2 | Neutral | restarts"],
    );
    check(
        "unit:a.service",
        r#"{"a":1,"b":2}"#,
        r#"{"a":2,"c":1,"d":1,"e":1,"f":1}"#,
        &expect!["a, b, c, d and 2 more changed | Neutral | "],
    );
    check(
        "unit:a.service",
        r#"{"active_state":"inactive","sub_state":"dead","load_state":"masked"}"#,
        "",
        &expect!["gone: inactive (dead), masked | Neutral | "],
    );
    check("unit:a.service", r#"{"load_state":"loaded"}"#, "", &expect!["gone | Neutral | "]);
    check(
        "unit:a.service",
        r#"{"load_state":"masked"}"#,
        "",
        &expect!["gone: masked | Neutral | "],
    );
    check(
        "unit:a.service",
        "",
        r#"{"main_pid":7,"since":"2026-11-18T07:12:40Z"}"#,
        &expect!["appeared: pid 7 | Neutral | "],
    );
}

#[test]
fn other_things() {
    check(
        "package:nginx",
        r#"{"version":"1.22.1-9"}"#,
        r#"{"version":"1.24.0-1"}"#,
        &expect!["1.22.1-9 → 1.24.0-1 | Neutral | version"],
    );
    check(
        "package:nginx",
        "",
        r#"{"version":"1.24.0-1","manager":"dpkg"}"#,
        &expect!["installed: 1.24.0-1 | Neutral | "],
    );
    check(
        "package:nginx",
        r#"{"version":"1.24.0-1"}"#,
        "",
        &expect!["uninstalled: 1.24.0-1 | Neutral | "],
    );
    check(
        "file:/etc/nginx/nginx.conf",
        r#"{"content":"a","fingerprint":"1","size":1200,"mode":"0644"}"#,
        r#"{"content":"b","fingerprint":"2","size":1300,"mode":"0600"}"#,
        &expect![
            "edited (1.1 KiB → 1.2 KiB), mode 0644 → 0600 | Neutral | content fingerprint mode modified_at size withheld"
        ],
    );
    check(
        "socket:tcp 0.0.0.0:80",
        "",
        r#"{"protocol":"tcp","address":"0.0.0.0","port":80,"process":"nginx","unit":"nginx.service"}"#,
        &expect!["listens: nginx, of nginx.service | Neutral | "],
    );
    check(
        "process:nginx#1",
        r#"{"pids":[812]}"#,
        r#"{"pids":[901]}"#,
        &expect!["restarted, pid 812 → 901 | Neutral | pids started_at"],
    );
    check(
        "process:nginx#1",
        r#"{"pids":[1,2]}"#,
        r#"{"pids":[1,2,3,4]}"#,
        &expect!["2 → 4 processes, pids +3 +4 | Neutral | pids started_at"],
    );
}

#[test]
fn larger_things() {
    check(
        "container:db",
        r#"{"state":"running","started_at":"2026-11-20T08:00:00Z"}"#,
        r#"{"state":"exited","exit_code":137}"#,
        &expect!["running → exited (137) | Bad | exit_code started_at state"],
    );
    check(
        "container:db",
        r#"{"image":"mysql:8","image_digest":"a","container_id":"1"}"#,
        r#"{"image":"mysql:9","image_digest":"b","container_id":"2"}"#,
        &expect![
            "recreated, image mysql:8 → mysql:9 | Neutral | container_id created_at image image_digest image_id"
        ],
    );
    check(
        "platform:host",
        r#"{"boot_id":"a","kernel":"6.1"}"#,
        r#"{"boot_id":"b","kernel":"6.5"}"#,
        &expect!["rebooted, kernel 6.1 → 6.5 | Neutral | boot_id booted_at kernel"],
    );
    check(
        "collector:docker",
        "{}",
        r#"{"fault":"connection refused","fault_since":"2026-11-20T09:00:00Z"}"#,
        &expect!["can't see: connection refused | Bad | fault fault_since"],
    );
    check(
        "collector:docker",
        r#"{"fault":"connection refused","fault_since":"2026-11-20T09:00:00Z"}"#,
        "{}",
        &expect!["sees again | Good | fault fault_since"],
    );
    check(
        "novelty:x",
        "",
        r#"{"a":1,"b":"two","c":[1],"d":true}"#,
        &expect!["appeared: a 1, b two, d true | Neutral | "],
    );
}

#[test]
fn hostile_values_are_plain() {
    check(
        "package:x",
        r#"{"version":"1\u001b[2J"}"#,
        r#"{"version":"2\n\u202e"}"#,
        &expect![[r#"1\x1b[2J → 2\n\u{202e} | Neutral | version"#]],
    );
    check(
        "process:x#1",
        "",
        r#"{"arguments":["a","\u001b]0;owned\u0007\n"],"pids":[1]}"#,
        &expect![[r#"started: a '\x1b]0;owned\x07\n', pid 1 | Neutral | "#]],
    );
}

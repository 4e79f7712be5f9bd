//! Plans of made-up hosts: what is in them, and that carrying them out leaves nothing to do.

mod machine;
mod properties;

use super::*;
use crate::entity;
use crate::spec::{Body, Extra, ExtraKind, Extras, FilePath, PREFIX, Source};
use crate::{Fields, Item, Time};
use expect_test::{Expect, expect};
use machine::carry_out;

/// One item a line: subject, then its fields as JSON.
fn facts(text: &str) -> Facts {
    let item = |line: &str| {
        let (subject, fields) = line.trim().split_once(' ').unwrap_or((line.trim(), "{}"));
        let fields: Fields = serde_json::from_str(fields).unwrap();
        (subject.parse().unwrap(), Item::new(&fields))
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(item).collect()
}

fn spec_of(host: &Facts) -> Spec {
    Spec::of(host, &Extras::default(), None)
}

fn show(plan: &Plan) -> String {
    let mut text = String::new();
    for (at, step) in plan.steps().iter().enumerate() {
        text += &format!("{at} {} ({})", step.action, step.why);
        if !step.needs.is_empty() {
            text += &format!(" needs {:?}", step.needs);
        }
        if !step.after.is_empty() {
            text += &format!(" after {:?}", step.after);
        }
        text.push('\n');
    }
    for gap in plan.gaps() {
        text += &format!("gap {} [{}] {}\n", gap.subject, gap.cause.as_str(), gap.what);
    }
    text
}

/// What the plan says; that it has a way over the wire; that it leaves nothing to do.
fn check(host: &str, twin: &str, expected: &Expect) {
    let (host, twin) = (facts(host), facts(twin));
    let spec = spec_of(&host);
    let made = plan(&spec, &twin, &Own::default());
    expected.assert_eq(&show(&made));
    leaves_nothing(&host, &spec, &twin, &Own::default());
}

fn leaves_nothing(host: &Facts, spec: &Spec, twin: &Facts, own: &Own) {
    let made = plan(spec, twin, own);
    let json = serde_json::to_string(&made).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), made);
    let after = carry_out(&made, host, twin);
    let again = plan(spec, &after, own);
    assert!(again.is_empty(), "after\n{}there is still\n{}", show(&made), show(&again));
    assert!(plan(&spec_of(host), host, own).is_empty());
}

const UNIT: &str = r#"{"active_state":"active","enablement":"enabled","load_state":"loaded","fragment_path":"/lib/systemd/system/nginx.service","exec_reload":[["/usr/sbin/nginx","-s","reload"]],"since":"2026-11-20T09:00:00Z","changed_at":"2026-11-20T09:00:00Z"}"#;
const FRAGMENT: &str = r#"file:/lib/systemd/system/nginx.service {"role":"unit","package":"nginx","mode":"0644","owner":"root","group":"root","content":"0000000000000000000000000000000000000000000000000000000000000001","modified_at":"2026-11-20T08:00:00Z"}"#;

fn nginx(content: u8, modified: &str) -> String {
    format!(
        r#"file:/etc/nginx/nginx.conf {{"role":"config","package":"nginx","mode":"0644","owner":"root","group":"root","content":"{content:064x}","modified_at":"2026-11-20T{modified}Z"}}"#
    )
}

#[test]
fn a_stopped_unit() {
    let stopped = UNIT.replace(r#""active""#, r#""inactive""#);
    check(
        &format!("{FRAGMENT}\nunit:nginx.service {stopped}"),
        &format!("{FRAGMENT}\nunit:nginx.service {UNIT}"),
        &expect![[r#"
            0 stop nginx.service (the host's does not run)
        "#]],
    );
}

#[test]
fn what_fails_again_and_again_does_not_run() {
    let unit = |state: &str, sub: &str| {
        let state = format!(r#""active_state":"{state}","sub_state":"{sub}""#);
        let unit = UNIT.replace(r#""active_state":"active""#, &state);
        format!("{FRAGMENT}\nunit:nginx.service {unit}")
    };
    let (runs, stopped) = (unit("active", "running"), unit("inactive", "dead"));
    for sub in ["auto-restart", "auto-restart-queued"] {
        let twin = unit("activating", sub);
        check(
            &runs,
            &twin,
            &expect![[r#"
                0 restart nginx.service (the host's runs, and the twin's fails again and again)
            "#]],
        );
        check(
            &stopped,
            &twin,
            &expect![[r#"
                0 stop nginx.service (the host's does not run)
            "#]],
        );
        assert_eq!(on_its_way(&spec_of(&facts(&runs)), &facts(&twin)), None);
        // So does the host's: nothing to follow.
        check(&twin, &twin, &expect![""]);
    }
    for (state, sub) in [("activating", "start"), ("deactivating", "stop-sigterm")] {
        let (host, twin) = (facts(&runs), facts(&unit(state, sub)));
        let spec = spec_of(&host);
        let made = plan(&spec, &twin, &Own::default());
        expect![[r#"
            gap unit:nginx.service [unseen] it is still on its way there in the twin
        "#]]
        .assert_eq(&show(&made));
        assert!(Fidelity::now(&spec, &made).per_mille() < 1000);
        let name = on_its_way(&spec, &twin).map(ToString::to_string);
        assert_eq!(name.as_deref(), Some("nginx.service"));
    }
    let host = facts(&runs);
    assert_eq!(on_its_way(&spec_of(&host), &host), None);
}

#[test]
fn configuration_is_reloaded_or_restarted_or_neither() {
    let host = |unit: &str, modified: &str| {
        format!("{FRAGMENT}\n{}\nunit:nginx.service {unit}", nginx(2, modified))
    };
    let twin =
        |unit: &str| format!("{FRAGMENT}\n{}\nunit:nginx.service {unit}", nginx(1, "08:00:00"));
    check(
        &host(UNIT, "10:00:00"),
        &twin(UNIT),
        &expect![[r#"
        0 write /etc/nginx/nginx.conf (its content is another on the host)
        1 reload nginx.service (its configuration changed) needs [0]
    "#]],
    );
    // One that can't reload, and that the host has not restarted since: nor is the twin's.
    let plain = UNIT.replace(r#""exec_reload":[["/usr/sbin/nginx","-s","reload"]],"#, "");
    check(
        &host(&plain, "10:00:00"),
        &twin(&plain),
        &expect![[r#"
        0 write /etc/nginx/nginx.conf (its content is another on the host)
    "#]],
    );
    // The host has.
    check(
        &host(&plain, "08:30:00"),
        &twin(&plain),
        &expect![[r#"
        0 write /etc/nginx/nginx.conf (its content is another on the host)
        1 restart nginx.service (its configuration changed, and the host's was started since) needs [0]
    "#]],
    );
    // The file is written already, and the twin's was not restarted: a restart that failed.
    let written = format!("{FRAGMENT}\n{}\nunit:nginx.service {plain}", nginx(2, "09:30:00"));
    check(
        &host(&plain, "08:30:00"),
        &written,
        &expect![[r#"
        0 restart nginx.service (its configuration changed, and the host's was started since)
    "#]],
    );
}

#[test]
fn a_new_machine_in_its_order() {
    check(
        r#"
        platform:host {"hostname":"web01","distribution":"debian","distribution_version":"12","time_zone":"Europe/Warsaw"}
        group:app {"gid":997}
        group:www {"gid":1001,"members":["alice","app"]}
        user:app {"uid":997,"gid":997,"home":"/srv","shell":"/bin/false"}
        user:alice {"uid":1000,"gid":1001,"home":"/home/alice","shell":"/bin/bash"}
        package:redis {"version":"7.0","manager":"dpkg"}
        package:linux-image-amd64 {"version":"6.1","manager":"dpkg"}
        file:/etc/systemd/system/app.service {"role":"unit","mode":"0644","owner":"root","group":"root","content":"0000000000000000000000000000000000000000000000000000000000000003"}
        file:/etc/systemd/system/app.service.d/x.conf {"role":"dropin","mode":"0600","owner":"root","group":"root","withheld":"private","fingerprint":"aa"}
        file:/etc/redis/redis.conf {"role":"config","package":"redis","mode":"0640","owner":"app","group":"app","content":"0000000000000000000000000000000000000000000000000000000000000004"}
        file:/lib/systemd/system/redis.service {"role":"unit","package":"redis","mode":"0644","owner":"root","group":"root","content":"0000000000000000000000000000000000000000000000000000000000000005"}
        unit:redis.service {"active_state":"active","enablement":"enabled","load_state":"loaded","fragment_path":"/lib/systemd/system/redis.service"}
        unit:app.service {"active_state":"active","enablement":"enabled","load_state":"loaded","fragment_path":"/etc/systemd/system/app.service","drop_ins":["/etc/systemd/system/app.service.d/x.conf"],"user":"app","requires":["redis.service"],"after":["redis.service"]}
        unit:ssh.service {"active_state":"inactive","enablement":"disabled","load_state":"loaded","fragment_path":"/lib/systemd/system/ssh.service"}
        unit:alice/notes.service {"active_state":"active","fragment_path":"/home/alice/.config/systemd/user/notes.service"}
        gpu:0000:01:00.0 {"vendor":"nvidia"}
        "#,
        r#"
        platform:host {"hostname":"base","distribution":"debian","distribution_version":"12","time_zone":"UTC"}
        user:bob {"uid":1000,"gid":1000,"home":"/home/bob","shell":"/bin/bash"}
        group:bob {"gid":1000}
        package:vim {"version":"9","manager":"dpkg"}
        package:linux-image-amd64 {"version":"6.0","manager":"dpkg"}
        file:/etc/systemd/system/old.service {"role":"unit","mode":"0644","owner":"root","group":"root","content":"0000000000000000000000000000000000000000000000000000000000000006"}
        unit:old.service {"active_state":"active","enablement":"enabled","load_state":"loaded","fragment_path":"/etc/systemd/system/old.service"}
        unit:ssh.service {"active_state":"active","enablement":"enabled","load_state":"loaded","fragment_path":"/lib/systemd/system/ssh.service"}
        "#,
        &expect![[r#"
            0 set the host name to web01 (the host is called so)
            1 link /etc/localtime to /usr/share/zoneinfo/Europe/Warsaw (the host is in this time zone)
            2 have group app as 997 (the host has this group)
            3 have group www as 1001 (the host has this group)
            4 have user app as 997 (the host has this user) needs [2]
            5 install redis 7.0 (the host has this package) after [2, 4]
            6 remove package vim (the host does not have this package)
            7 write /etc/redis/redis.conf (the host has this file) needs [2, 4, 5]
            8 write /etc/systemd/system/app.service (the host has this file)
            9 stop old.service (the host does not have this unit)
            10 remove user bob (the host has no such user) after [9]
            11 remove group bob (the host has no such group) after [10]
            12 have user alice as 1000 (the host has this user) needs [3, 10]
            13 set the members of group www (others are in this group on the host) needs [3, 4, 12]
            14 disable old.service (the host does not have this unit)
            15 remove /etc/systemd/system/old.service (the host does not have this file) needs [9, 14]
            16 reload systemd (files of units changed) after [8, 15]
            17 enable app.service (the host's is enabled) needs [4, 8, 16]
            18 enable redis.service (the host's is enabled) needs [5, 16]
            19 start redis.service (the host's runs) needs [5, 7, 16, 18]
            20 start app.service (the host's runs) needs [4, 8, 16, 17, 19]
            gap file:/etc/systemd/system/app.service.d/x.conf [secret] what is secret in it does not leave the host
            gap gpu:0000:01:00.0 [hardware] a twin has no graphics processor
            gap package:linux-image-amd64 [own] a twin has its own of what it boots from and is reached by
            gap unit:alice/notes.service [user_manager] units of users' own managers are not followed
            gap unit:ssh.service [own] a twin is reached by it or needs it, and has its own
        "#]],
    );
}

#[test]
fn what_another_unit_starts_along_is_stopped_after_that() {
    let unit = |name: &str, state: &str, more: &str| {
        format!(
            r#"unit:{name}.service {{"active_state":"{state}","enablement":"disabled","load_state":"loaded","fragment_path":"/lib/systemd/system/{name}.service"{more}}}"#
        )
    };
    let wants = r#","wants":["app.service"]"#;
    check(
        &[unit("app", "inactive", ""), unit("nginx", "active", wants)].join("\n"),
        &[unit("app", "active", ""), unit("nginx", "inactive", wants)].join("\n"),
        &expect![[r#"
            0 start nginx.service (the host's runs)
            1 stop app.service (the host's does not run) after [0]
        "#]],
    );
}

#[test]
fn what_runs_on_without_its_file_is_ended_where_the_host_has_none() {
    let orphan = r#"unit:made.service {"active_state":"active","load_state":"not-found"}"#;
    check("", orphan, &expect![""]);
    check(orphan, orphan, &expect![[""]]);
    check(
        orphan,
        "",
        &expect![[r#"
        gap unit:made.service [transient] its file was removed while it ran, and nothing can start it like that
    "#]],
    );
    // The host's file is gone by now, and its systemd has not read that yet.
    let enabled = r#"unit:made.service {"active_state":"active","load_state":"loaded","enablement":"enabled","fragment_path":"/etc/systemd/system/made.service"}"#;
    check(
        enabled,
        orphan,
        &expect![[r#"
            gap unit:made.service [transient] its file was removed, and nothing can enable or disable it like that
        "#]],
    );
}

#[test]
fn what_can_not_run_in_the_twin_is_told_and_not_started() {
    let unit = r#"file:/etc/systemd/system/app.service {"role":"unit","mode":"0644","owner":"root","group":"root","content":"0000000000000000000000000000000000000000000000000000000000000003"}
        unit:app.service {"active_state":"active","load_state":"loaded","fragment_path":"/etc/systemd/system/app.service","exec_start":[["/usr/local/bin/app","-v"]]}"#;
    let program = r#"file:/usr/local/bin/app {"role":"program","withheld":"binary","mode":"0755"}"#;
    let host = [unit, program].join("\n");
    let stopped = unit.replace(r#""active""#, r#""inactive""#);
    check(
        &host,
        "",
        &expect![[r#"
            0 write /etc/systemd/system/app.service (the host has this file)
            1 reload systemd (files of units changed) after [0]
            gap file:/usr/local/bin/app [unpackaged] a unit runs it, no package brings it, and it is binary
            gap unit:app.service [unpackaged] what it runs can't be brought into the twin: /usr/local/bin/app
        "#]],
    );
    // Somebody put it there by hand.
    check(
        &host,
        &[&*stopped, program].join("\n"),
        &expect![[r#"
            0 start app.service (the host's runs)
            gap file:/usr/local/bin/app [unpackaged] a unit runs it, no package brings it, and it is binary
        "#]],
    );
    let unmet = Own::default().without_units(["app.service".parse().unwrap()].into());
    let show = |twin: &str| show(&plan(&spec_of(&facts(unit)), &facts(twin), &unmet));
    expect![[r#"
        gap unit:app.service [hardware] the twin is no machine on which it starts: its conditions are not met
    "#]]
    .assert_eq(&show(&stopped));
    // With something new there it may be one.
    expect![[r#"
        0 write /etc/systemd/system/app.service (the host has this file)
        1 reload systemd (files of units changed) after [0]
        2 start app.service (the host's runs) needs [0, 1]
    "#]]
    .assert_eq(&show(""));
    assert_eq!(show(unit), "");
}

#[test]
fn an_instance_that_nothing_has_loaded_is_not_disabled() {
    let template = r#"file:/etc/systemd/system/a@.service {"role":"unit","mode":"0644","owner":"root","group":"root","content":"0000000000000000000000000000000000000000000000000000000000000003"}"#;
    let failed = r#"unit:a@1.service {"active_state":"failed","enablement":"disabled","load_state":"loaded","fragment_path":"/etc/systemd/system/a@.service"}"#;
    check(&[template, failed].join("\n"), template, &expect![""]);
}

#[test]
fn a_file_of_another_that_a_command_names_counts_for_it() {
    let unit = |since: &str| {
        format!(
            r#"unit:worker.service {{"active_state":"active","load_state":"loaded","fragment_path":"/etc/systemd/system/worker.service","exec_start":[["/opt/w","-c","/etc/other/app.conf"]],"since":"2026-11-20T{since}Z"}}"#
        )
    };
    let config = |content: u8, modified: &str| {
        format!(
            r#"file:/etc/other/app.conf {{"role":"config","mode":"0644","owner":"root","group":"root","content":"{content:064x}","modified_at":"2026-11-20T{modified}Z"}}"#
        )
    };
    check(
        &[config(2, "10:00:00"), unit("11:00:00")].join("\n"),
        &[config(1, "08:00:00"), unit("09:00:00")].join("\n"),
        &expect![[r#"
            0 write /etc/other/app.conf (its content is another on the host)
            1 restart worker.service (its configuration changed, and the host's was started since) needs [0]
        "#]],
    );
}

#[test]
fn a_container_whose_command_is_not_known_is_not_made() {
    let web = r#"container:web {"image":"lab/busybox:1","state":"running","command":["serve","--token=redacted:0123456789abcdef"],"networks":["bridge"]}"#;
    check(
        web,
        "",
        &expect![[r#"
            gap container:web [secret] a secret is in its command
        "#]],
    );
}

#[test]
fn instances_of_the_hosts_templates_are_those_that_it_has() {
    let template = |path: &str| {
        format!(
            r#"file:{path} {{"role":"unit","mode":"0644","owner":"root","group":"root","content":"0000000000000000000000000000000000000000000000000000000000000003"}}"#
        )
    };
    let instance = |name: &str, path: &str| {
        format!(
            r#"unit:{name}.service {{"active_state":"active","load_state":"loaded","fragment_path":"{path}"}}"#
        )
    };
    let (placed, brought) = ("/etc/systemd/system/a@.service", "/lib/systemd/system/b@.service");
    let templates = [template(placed), template(brought)].join("\n");
    let (one, two) = (instance("a@1", placed), instance("a@2", placed));
    let own = instance("b@1", brought);
    let enabled = own.replace(r#""active""#, r#""inactive","enablement":"enabled""#);
    let host = [&*templates, &one].join("\n");
    check(
        &host,
        &[&*host, &enabled].join("\n"),
        &expect![[r#"
            0 disable b@1.service (the host does not have this unit)
        "#]],
    );
    check(
        &[&*templates, &one].join("\n"),
        &[&*templates, &one, &two, &own].join("\n"),
        &expect![[r#"
        0 stop a@2.service (the host does not have this unit)
    "#]],
    );
}

#[test]
fn containers_are_made_anew_when_they_are_to_be_others() {
    let web = r#"container:web {"image":"lab/busybox:1","state":"running","command":["httpd"],"ports":["0.0.0.0:8080->80/tcp"],"environment":{"TOKEN":"redacted:0123456789abcdef","A":"1"},"networks":["bridge"]}"#;
    check(
        web,
        "",
        &expect![[r#"
        0 have image lab/busybox:1 (a container is made from it)
        1 create container web (the host has this container) needs [0]
        2 start container web (so is the host's) needs [1]
        gap container:web [secret] its environment has secrets, which are not known: TOKEN
    "#]],
    );
    check(
        web,
        &web.replace("8080", "8081"),
        &expect![[r#"
        0 have image lab/busybox:1 (a container is made from it)
        1 remove container web (the host's is another) needs [0]
        2 create container web (the host has this container) needs [0, 1]
        3 start container web (so is the host's) needs [2]
        gap container:web [secret] its environment has secrets, which are not known: TOKEN
    "#]],
    );
    check(
        &web.replace("running", "exited"),
        web,
        &expect![[r#"
        0 stop container web (so is the host's)
        gap container:web [secret] its environment has secrets, which are not known: TOKEN
    "#]],
    );
    check(
        &web.replace("redacted:0123456789abcdef", "redacted:ffffffffffffffff"),
        web,
        &expect![[r#"
            gap container:web [secret] its environment has secrets, which are not known: TOKEN
        "#]],
    );
    check(
        "container:other {\"image\":\"x\",\"state\":\"running\"}",
        web,
        &expect![[r#"
        0 have image x (a container is made from it)
        1 create container other (the host has this container) needs [0]
        2 start container other (so is the host's) needs [1]
        3 remove container web (the host does not have this container)
    "#]],
    );
}

#[test]
fn containers_are_made_anew_when_their_image_is_another_one_of_the_name() {
    let web = |image: &str| {
        format!(r#"container:web {{"image":"a:1","state":"running","image_id":"{image}"}}"#)
    };
    let twin = |own: &str, made_from: &str| {
        let label = format!(r#""labels":{{"safetytwin.made-from":"{made_from}"}}"#);
        format!(r#"container:web {{"image":"a:1","state":"running","image_id":"{own}",{label}}}"#)
    };
    check(
        &web("sha256:b"),
        &web("sha256:a"),
        &expect![[r#"
        0 have image a:1 as it is now (the host's container is made from another one of this name)
        1 remove container web (the host's is another) needs [0]
        2 create container web (the host has this container) needs [0, 1]
        3 start container web (so is the host's) needs [2]
    "#]],
    );
    // Another engine's name for the same image; and one that does not tell.
    check(&web("sha256:b"), &twin("sha256:x", "sha256:b"), &expect![""]);
    check(r#"container:web {"image":"a:1","state":"running"}"#, &web("x"), &expect![""]);
    // One name, two images: the newer one's comes.
    let of = |name: &str, id: &str, day: u8| {
        let made = format!("2024-07-0{day}T00:00:00Z");
        format!(
            r#"container:{name} {{"image":"a:1","state":"exited","image_id":"{id}","created_at":"{made}"}}"#
        )
    };
    let host = [of("one", "sha256:a", 1), of("two", "sha256:b", 2)].join("\n");
    check(
        &host,
        &host,
        &expect![[r#"
        gap container:one [gone] its image is not the one that has the name since two was made
    "#]],
    );
}

#[test]
fn a_stray_process_comes_and_goes() {
    let host = r#"
        unit:a.service {"active_state":"inactive","load_state":"loaded"}
        file:/etc/systemd/system/a.service {"role":"unit","mode":"0644","owner":"root","group":"root","content":"0000000000000000000000000000000000000000000000000000000000000001"}
        process:stray#1 {"name":"stray","executable":"/usr/bin/stray","arguments":["stray","1000"],"pids":[42]}
        "#;
    let without = facts(host).into_iter_without("process:stray#1");
    let spec = spec_of(&facts(host));
    let made = plan(&spec, &without, &Own::default());
    expect![[r#"
        0 write /etc/systemd/system/digital_twin_stray_42.service (a process that no unit owns runs so on the host)
        1 reload systemd (files of units changed) after [0]
        2 enable digital_twin_stray_42.service (it is to come back at boot) needs [0, 1]
        3 start digital_twin_stray_42.service (the process runs on the host) needs [0, 1]
    "#]].assert_eq(&show(&made));
    let twin = carry_out(&made, &facts(host), &without);
    assert!(plan(&spec, &twin, &Own::default()).is_empty());
    let gone = plan(&spec_of(&without), &twin, &Own::default());
    expect![[r#"
        0 stop digital_twin_stray_42.service (its process ended on the host)
        1 disable digital_twin_stray_42.service (its process ended on the host)
        2 remove /etc/systemd/system/digital_twin_stray_42.service (its process ended on the host) needs [0, 1]
        3 reload systemd (files of units changed) after [2]
    "#]].assert_eq(&show(&gone));
    assert!(
        plan(&spec_of(&without), &carry_out(&gone, &without, &twin), &Own::default()).is_empty()
    );
}

#[test]
fn files_that_the_host_removed_go() {
    let file = |path: &str, package: &str| {
        format!(
            r#"file:{path} {{"role":"config","mode":"0644","owner":"root","group":"root","content":"{:064x}"{package}}}"#,
            1
        )
    };
    let nginx = |version: &str| {
        format!("package:nginx {{\"version\":\"{version}\",\"manager\":\"dpkg\"}}\nunit:a.service")
    };
    let files = [
        file("/etc/nginx/conf.d/a.conf", ""),
        file("/etc/nginx/more/deep/b.conf", ""),
        file("/etc/nginx/fastcgi.conf", r#","package":"nginx""#),
        file("/etc/default/nginx", r#","package":"nginx""#),
        // Nobody looked there.
        file("/etc/nginx2/a.conf", ""),
        file("/etc/default/other", r#","package":"nginx""#),
        file("/lib/systemd/system/nginx.service", r#","package":"nginx""#),
    ];
    let host = |version: &str, looked: &str| {
        format!("{}\n{}\ncollector:files {looked}", nginx(version), file("/etc/x", ""))
    };
    let twin = format!("{}\n{}\n{}", nginx("1"), file("/etc/x", ""), files.join("\n"));
    let looked = r#"{"directories":["/etc/nginx"],"missing":["/etc/default/nginx"]}"#;
    check(
        &host("1", looked),
        &twin,
        &expect![[r#"
            0 remove /etc/default/nginx (the host does not have this file)
            1 remove /etc/nginx/conf.d/a.conf (the host does not have this file)
            2 remove /etc/nginx/fastcgi.conf (the host does not have this file)
            3 remove /etc/nginx/more/deep/b.conf (the host does not have this file)
        "#]],
    );
    // An older agent does not tell where it looked.
    check(&host("1", "{}"), &twin, &expect![""]);
    check(
        &host("1", r#"{"directories":["/etc/nginx"],"fault":"no"}"#),
        &twin,
        &expect![[r#"
        gap collector:files [unseen] it can't be looked at on the host, and what was seen last may be old
    "#]],
    );
    // Nor is anything of a package touched that is another there.
    let lacking = Own::default().without_packages();
    let spec = spec_of(&facts(&host("2", looked)));
    expect![[r#"
        0 remove /etc/nginx/conf.d/a.conf (the host does not have this file)
        1 remove /etc/nginx/more/deep/b.conf (the host does not have this file)
        gap file:/etc/default/nginx [own] the host does not have it, and its package is another in the twin
        gap file:/etc/nginx/fastcgi.conf [own] the host does not have it, and its package is another in the twin
        gap package:nginx [isolated] the twin reaches nothing to have it from
    "#]]
    .assert_eq(&show(&plan(&spec, &facts(&twin), &lacking)));
    // What reads them is told, where it can be.
    let unit = format!("{FRAGMENT}\nunit:nginx.service {UNIT}");
    let host = format!("{unit}\n{}\ncollector:files {looked}", file("/etc/x", ""));
    let twin = format!("{unit}\n{}\n{}", file("/etc/x", ""), files[0]);
    check(
        &host,
        &twin,
        &expect![[r#"
            0 remove /etc/nginx/conf.d/a.conf (the host does not have this file)
            1 reload nginx.service (its configuration changed) needs [0]
        "#]],
    );
    let paths: Vec<&str> = spec.paths().map(FilePath::as_str).collect();
    assert_eq!(paths, ["/etc/x", "/etc/nginx", "/etc/default/nginx"]);
}

#[test]
fn a_version_that_no_repository_has_is_no_step() {
    let nginx = |version: &str| {
        let file = r#"file:/etc/default/nginx {"role":"config","package":"nginx"}"#;
        format!("package:nginx {{\"version\":\"{version}\",\"manager\":\"dpkg\"}}\n{file}")
    };
    let (spec, twin) = (spec_of(&facts(&nginx("2"))), facts(&nginx("1")));
    let without = |version: &str| {
        let gone = ("nginx".parse().unwrap(), version.parse().unwrap());
        show(&plan(&spec, &twin, &Own::default().without_versions([gone].into())))
    };
    let like_that = without("2");
    assert!(like_that.contains("gap package:nginx [gone] no repository that the twin reaches"));
    assert!(!like_that.contains("install nginx"), "{like_that}");
    // What belongs to it is told so, too.
    let parts = r#"file:/lib/systemd/system/nginx.service {"role":"unit","package":"nginx","mode":"0644","owner":"root","group":"root","content":"0000000000000000000000000000000000000000000000000000000000000003"}
        unit:nginx.service {"active_state":"active","load_state":"loaded","fragment_path":"/lib/systemd/system/nginx.service","package":"nginx"}"#;
    let gone = ("nginx".parse().unwrap(), "2".parse().unwrap());
    let own = Own::default().without_versions([gone].into());
    expect![[r#"
        gap file:/etc/default/nginx [gone] it is of a package whose version no repository has that the twin reaches
        gap file:/lib/systemd/system/nginx.service [gone] it is of a package whose version no repository has that the twin reaches
        gap package:nginx [gone] no repository that the twin reaches has its version 2; it is asked for again
        gap unit:nginx.service [gone] it is of a package whose version no repository has that the twin reaches
    "#]]
    .assert_eq(&show(&plan(
        &spec_of(&facts(&format!("{}\n{parts}", nginx("2")))),
        &facts(""),
        &own,
    )));
    // Of another version that is not to be had nobody asks.
    assert_eq!(without("3"), show(&plan(&spec, &twin, &Own::default())));
    assert!(!without("3").contains("[gone]"));
}

#[test]
fn declared_extras_go_before_what_is_observed() {
    let host = facts(&format!(
        "{FRAGMENT}\nunit:nginx.service {UNIT}\npackage:vim {{\"version\":\"9\",\"manager\":\"dpkg\"}}"
    ));
    let extras = Extras {
        put: facts(r#"unit:nginx.service {"active_state":"inactive"}"#),
        gone: ["package:vim".parse().unwrap()].into(),
    };
    let made = plan(&Spec::of(&host, &extras, None), &host, &Own::default());
    expect![[r#"
        0 remove package vim (it was declared so for this twin)
        1 stop nginx.service (it was declared so for this twin)
    "#]]
    .assert_eq(&show(&made));
}

fn declared(host: &str, extras: &[(&str, &str, &str)]) -> Spec {
    let one = |(kind, name, json): &(&str, &str, &str)| {
        let kind: ExtraKind = kind.parse().unwrap();
        let extra = match *json {
            "gone" => Extra::Gone,
            json => Extra::There(serde_json::from_str(json).unwrap()),
        };
        let subject = kind.subject(name).unwrap();
        extra.check(kind, &subject).unwrap();
        (subject, extra)
    };
    Spec::of(&facts(host), &Extras::of(extras.iter().map(one)), None)
}

#[test]
fn what_is_declared_is_made() {
    let host = "unit:app.service {\"active_state\":\"active\"}\nfile:/etc/x".to_owned();
    let twin =
        facts(&format!("{host}\npackage:a\nuser:root {{\"uid\":0}}\ngroup:root {{\"gid\":0}}"));
    let extras = [
        ("service", "new", r#"{"exec_start":[["/bin/new","a b","$x%"]],"user":"root"}"#),
        ("service", "app", r#"{"environment":{"A":"$1 %2"}}"#),
        ("process", "stray", r#"{"executable":"/bin/stray","arguments":["stray"]}"#),
        ("container", "web", r#"{"image":"web:1"}"#),
        ("dependency", "app.service->new.service", "{}"),
    ];
    let spec = declared(&host, &extras);
    let text = |path: &str| match &spec.files.get(&path.parse().unwrap()).unwrap().body {
        Body::Plain { source: Source::Made(text), .. } => text.clone(),
        other => panic!("{other:?}"),
    };
    expect![[r##"
        # Written by SafetyTwin: declared for this twin.
        [Unit]
        Description=new.service

        [Service]
        ExecStart=
        ExecStart=@"/bin/new" "/bin/new" "a b" "$$x%%"
        User=root

        [Install]
        WantedBy=multi-user.target
    "##]]
    .assert_eq(&text("/etc/systemd/system/new.service"));
    expect![[r##"
        # Written by SafetyTwin: declared for this twin.
        [Service]
        Environment="A=$1 %%2"
    "##]]
    .assert_eq(&text("/etc/systemd/system/app.service.d/zz-declared.conf"));
    expect![[r#"
        # Written by SafetyTwin: declared for this twin.
        [Unit]
        Requires=new.service
        After=new.service
    "#]]
    .assert_eq(&text("/etc/systemd/system/app.service.d/zz-needs-new.service.conf"));
    expect![[r#"
        0 write /etc/systemd/system/app.service.d/zz-declared.conf (it was declared so for this twin)
        1 write /etc/systemd/system/app.service.d/zz-needs-new.service.conf (it was declared so for this twin)
        2 write /etc/systemd/system/new.service (it was declared so for this twin)
        3 write /etc/systemd/system/digital_twin_stray_0.service (it was declared so for this twin)
        4 reload systemd (files of units changed) after [0, 1, 2, 3]
        5 enable digital_twin_stray_0.service (it was declared so for this twin) needs [3, 4]
        6 start digital_twin_stray_0.service (it was declared so for this twin) needs [3, 4]
        7 start new.service (it was declared so for this twin) needs [2, 4]
        8 restart app.service (it was declared so for this twin) needs [0, 4, 7]
        9 have image web:1 (it was declared so for this twin)
        10 create container web (it was declared so for this twin) needs [9]
        11 start container web (it was declared so for this twin) needs [10]
        gap file:/etc/x [data] its content is not taken: not read
    "#]]
    .assert_eq(&show(&plan(&spec, &twin, &Own::default())));
    let gone = declared(
        &format!("{host}\ncontainer:web {{\"image\":\"i\"}}"),
        &[("container", "web", "gone")],
    );
    assert!(gone.containers.is_empty());
}

#[test]
fn a_unit_that_is_declared_away_goes_with_its_file() {
    let own = r#"{"active_state":"active","enablement":"enabled","load_state":"loaded","fragment_path":"/etc/systemd/system/own.service"}"#;
    let packaged = r#"{"active_state":"active","enablement":"enabled","load_state":"loaded","fragment_path":"/lib/systemd/system/pack.service"}"#;
    let host = format!(
        "unit:own.service {own}\nunit:pack.service {packaged}\n\
         file:/etc/systemd/system/own.service {{\"role\":\"unit\"}}\n\
         file:/lib/systemd/system/pack.service {{\"role\":\"unit\",\"package\":\"pack\"}}\n\
         package:pack {{\"version\":\"1\",\"manager\":\"dpkg\"}}\nuser:root {{\"uid\":0}}\ngroup:root {{\"gid\":0}}"
    );
    let spec = declared(&host, &[("service", "own", "gone"), ("service", "pack", "gone")]);
    expect![[r#"
        0 stop own.service (it was declared so for this twin)
        1 disable own.service (it was declared so for this twin)
        2 remove /etc/systemd/system/own.service (it was declared so for this twin) needs [0, 1]
        3 reload systemd (files of units changed) after [2]
        4 mask pack.service (it was declared so for this twin)
        5 stop pack.service (it was declared so for this twin) after [4]
        gap file:/lib/systemd/system/pack.service [data] its content is not taken: not read
        gap user:root [unseen] its number is not known, or is none
    "#]]
    .assert_eq(&show(&plan(&spec, &facts(&host), &Own::default())));
}

#[test]
fn what_could_not_be_looked_at_is_not_removed() {
    let host = facts(
        "collector:packages {\"fault\":\"no\"}\npackage:a {\"version\":\"1\",\"manager\":\"dpkg\"}",
    );
    let twin = facts(
        "package:a {\"version\":\"1\",\"manager\":\"dpkg\"}\npackage:b {\"version\":\"1\",\"manager\":\"dpkg\"}",
    );
    expect![[r#"
        gap collector:packages [unseen] it can't be looked at on the host, and what was seen last may be old
    "#]].assert_eq(&show(&plan(&spec_of(&host), &twin, &Own::default())));
    let host = facts("package:b {\"version\":\"1\",\"manager\":\"dpkg\"}");
    let twin = facts("collector:packages {\"fault\":\"no\"}");
    expect![[r#"
        gap collector:twin's package [unseen] the twin could not be looked at for it
    "#]]
    .assert_eq(&show(&plan(&spec_of(&host), &twin, &Own::default())));
    // What the image brought stays, too.
    let twin = facts(
        "package:b {\"version\":\"1\",\"manager\":\"dpkg\"}\npackage:c {\"version\":\"1\",\"manager\":\"dpkg\"}",
    );
    assert!(plan(&spec_of(&host), &twin, &Own::of(&twin)).is_empty());
    assert_eq!(plan(&spec_of(&host), &twin, &Own::default()).steps().len(), 1);
}

#[test]
fn a_user_s_manager_that_ends_hides_no_unit() {
    let host = facts(&format!("unit:nginx.service {UNIT}\n{FRAGMENT}"));
    let gone = r#"collector:user-units {"fault":"no manager answers"}"#;
    let twin = facts(&format!("{gone}\nunit:other.service {UNIT}\n{FRAGMENT}"));
    let made = show(&plan(&spec_of(&host), &twin, &Own::default()));
    assert!(made.contains("start nginx.service"), "{made}");
    assert!(!made.contains("could not be looked at"), "{made}");
}

#[test]
fn what_comes_from_elsewhere_is_told_where_nothing_comes() {
    let there = "{\"version\":\"1\",\"manager\":\"dpkg\"}";
    let host = format!(
        "package:nginx {there}\npackage:a {}\n{FRAGMENT}\n{}\nunit:nginx.service {UNIT}\n\
         container:c {{\"image\":\"i\",\"state\":\"running\"}}",
        there.replace('1', "2"),
        nginx(1, "08:00:00"),
    );
    let (host, twin) = (facts(&host), facts(&format!("package:a {there}\nunit:ssh.service")));
    let spec = spec_of(&host);
    let made = plan(&spec, &twin, &Own::default().without_packages().without_images());
    expect![[r#"
        gap container:c [isolated] its image can't come to the twin, which reaches nothing
        gap file:/etc/nginx/nginx.conf [isolated] it is of a package that can't come to the twin
        gap file:/lib/systemd/system/nginx.service [isolated] it is of a package that can't come to the twin
        gap package:a [isolated] the twin reaches nothing to have it from
        gap package:nginx [isolated] the twin reaches nothing to have it from
        gap unit:nginx.service [isolated] it is of a package that can't come to the twin
    "#]]
    .assert_eq(&show(&made));
    assert_eq!(Fidelity::now(&spec, &made).per_mille(), 0);
    let reached = plan(&spec, &twin, &Own::default());
    assert!(reached.steps().len() > 5 && reached.gaps().is_empty(), "{}", show(&reached));
    let (now, after) = (Fidelity::now(&spec, &reached), Fidelity::after(&spec, &reached));
    assert_eq!((now.per_mille(), after.per_mille()), (0, 1000));
}

#[test]
fn images_of_the_host_are_brought_but_for_those_that_do_not_come() {
    let host = facts(
        "container:a {\"image\":\"i\"}\ncontainer:b {\"image\":\"j:2\"}\n\
         container:c {\"image\":\"k@sha256:00\"}\ncontainer:d {\"image\":\"l\"}",
    );
    // It was made from that image before.
    let twin = facts("container:e {\"image\":\"l\"}");
    let lack = |what: &str| Lack { what: what.to_owned(), remedy: "wait".to_owned() };
    let but = [("j:2", lack("it is gone")), ("l", lack("it is gone, too"))];
    let but = but.map(|(image, lack)| (image.parse().unwrap(), lack)).into();
    let own = Own::of(&twin).with_images_of_host(but);
    expect![[r#"
        0 have image i (a container is made from it)
        1 create container a (the host has this container) needs [0]
        2 have image l (a container is made from it)
        3 create container d (the host has this container) needs [2]
        gap container:b [isolated] it is gone
        gap container:c [isolated] its image is named by a digest, by which a registry alone gives it
    "#]]
    .assert_eq(&show(&plan(&spec_of(&host), &twin, &own)));
}

#[test]
fn numbers_that_are_somebody_elses_are_left_to_them() {
    let account = |name: &str, number: u32| {
        format!(
            "group:{name} {{\"gid\":{number}}}\nuser:{name} {{\"uid\":{number},\"gid\":{number},\"home\":\"/home/{name}\",\"shell\":\"/bin/sh\"}}\n"
        )
    };
    let host = facts(&(account("alice", 1000) + &account("redis", 108)));
    let twin = facts(&(account("twin", 1000) + &account("cards", 108)));
    let own = Own::of(&twin);
    let made = plan(&spec_of(&host), &twin, &own);
    expect![[r#"
        0 have group alice as 1001 (the host has this group)
        1 have group redis as 999 (the host has this group)
        2 have user alice as 1001 (the host has this user) needs [0]
        3 have user redis as 999 (the host has this user) needs [1]
        gap group:alice [own] its number is somebody else's in the twin, so it gets another
        gap group:redis [own] its number is somebody else's in the twin, so it gets another
        gap user:alice [own] its number is somebody else's in the twin, so it gets another
        gap user:redis [own] its number is somebody else's in the twin, so it gets another
    "#]]
    .assert_eq(&show(&made));
    let Action::PutUser { user, .. } = &made.steps()[2].action else { unreachable!("a user") };
    assert_eq!((user.uid, user.gid), (1001, 1001));
    leaves_nothing(&host, &spec_of(&host), &twin, &own);
}

#[test]
fn a_thousand_steps() {
    let mut host = Facts::default();
    for n in 0..1000 {
        let path = format!("/etc/systemd/system/u{n}.service");
        host.put_entity(&entity::Unit {
            id: format!("u{n}.service"),
            active_state: "active".into(),
            load_state: "loaded".into(),
            enablement: Some("enabled".into()),
            fragment_path: Some(path.clone()),
            // A cycle, too: systemd takes those.
            after: vec![format!("u{}.service", (n + 1) % 1000)],
            requires: vec![format!("u{}.service", (n + 7) % 1000)],
            ..entity::Unit::default()
        });
        host.put_entity(&entity::File {
            path,
            role: "unit".into(),
            mode: Some("0644".into()),
            owner: Some("root".into()),
            group: Some("root".into()),
            content: Some(format!("{n:064x}")),
            ..entity::File::default()
        });
    }
    let begun = std::time::Instant::now();
    let made = plan(&spec_of(&host), &Facts::default(), &Own::default());
    assert_eq!(made.steps().len(), 3001);
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    leaves_nothing(&host, &spec_of(&host), &Facts::default(), &Own::default());
}

#[test]
fn plans_from_outside_are_checked() {
    let json = |needs: &str, unit: &str| {
        format!(
            r#"{{"steps":[{{"subject":"unit:a.service","action":{{"start":"{unit}"}},"why":"","needs":[{needs}]}}]}}"#
        )
    };
    assert!(serde_json::from_str::<Plan>(&json("", "a.service")).is_ok());
    for bad in
        [json("0", "a.service"), json("7", "a.service"), json("", "../x"), json("", "-x.service")]
    {
        assert!(serde_json::from_str::<Plan>(&bad).is_err(), "{bad}");
    }
}

trait Without {
    fn into_iter_without(self, subject: &str) -> Facts;
}

impl Without for Facts {
    fn into_iter_without(mut self, subject: &str) -> Facts {
        self.remove(&subject.parse().unwrap());
        self
    }
}

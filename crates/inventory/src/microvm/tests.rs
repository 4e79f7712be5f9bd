use super::*;
use expect_test::{Expect, expect};
use proptest::prelude::*;

fn node() -> HostId {
    HostId::new("n1").unwrap()
}

fn unit(id: &str, active: &str, sub: &str) -> Unit {
    Unit {
        id: id.to_owned(),
        active_state: active.to_owned(),
        sub_state: sub.to_owned(),
        load_state: "loaded".to_owned(),
        ..Unit::default()
    }
}

fn collector(name: &str, fault: Option<&str>) -> Collector {
    Collector { name: name.to_owned(), fault: fault.map(str::to_owned), ..Collector::default() }
}

fn facts(units: &[Unit]) -> Facts {
    let mut facts = Facts::default();
    facts.put_entity(&collector("units", None));
    for unit in units {
        facts.put_entity(unit);
    }
    facts
}

fn list(facts: &Facts) -> Listing {
    listing(&node(), facts, |_| None, Time::from_seconds(1000))
}

#[test]
fn which_units_are_vms() {
    let check = |unit: &str, expected: &str| {
        let told = match named(unit) {
            Ok(None) => "-".to_owned(),
            Ok(Some((owner, name))) => format!("{} {name}", owner.unwrap_or("*")),
            Err(reason) => format!("refused: {reason}"),
        };
        assert!(told.starts_with(expected), "{unit}: {told}");
    };
    check("microvm@web.service", "* web");
    check("microvm@my-web.service", "* my-web");
    check("microvm@a\\x2db.service", "* a-b");
    check("alice/microvm@web.service", "alice web");
    check("alice/microvm-web.service", "alice web");
    check("microvm@.service", "-");
    check("microvm-web.service", "-");
    check("microvm@web.socket", "-");
    check("microvms.target", "-");
    check("install-microvm-web.service", "-");
    for helper in HELPERS {
        check(&format!("microvm-{helper}@web.service"), "-");
        check(&format!("alice/microvm-{helper}@web.service"), "-");
        check(&format!("alice/microvm-{helper}@.service"), "-");
    }
    check("microvm@..%2f.service", "refused: \"..%2f\" is not the name of a VM");
    check("microvm@..\\x2f.service", "refused: \"../\" is not the name of a VM");
    check("microvm@a\\x00.service", "refused: \"a\\0\" is not");
    check("microvm@a\\xzz.service", "refused: its name is no text");
    check("microvm@a\\xff.service", "refused: its name is no text");
    check("microvm@a\\x.service", "refused: its name is no text");
    check("microvm@ünï.service", "refused: ");
    check(&format!("microvm@{}.service", "a".repeat(200)), "refused: ");
}

#[test]
fn states() {
    let check = |active: &str, sub: &str, expected: &str| {
        let condition = condition(&unit("microvm@a.service", active, sub), None, Time(0));
        assert_eq!(condition.in_words(), expected, "{active}/{sub}");
    };
    check("active", "running", "running");
    check("active", "exited", "running");
    check("reloading", "reload", "running");
    check("activating", "start", "starting");
    check("activating", "auto-restart", "failed (looping)");
    check("activating", "auto-restart-queued", "failed (looping)");
    check("deactivating", "stop-sigterm", "stopping");
    check("inactive", "dead", "stopped");
    check("failed", "failed", "failed");
    check("", "", "unknown");
    check("\x1b[2J", "x", "unknown");
}

#[test]
fn what_is_not_loaded_is_stopped() {
    let id = "alice/microvm-notes.service";
    let file = Unit { load_state: "not-loaded".to_owned(), ..unit(id, "", "") };
    let now = condition(&file, None, Time(0));
    assert_eq!((now.state, now.detail.as_str(), now.since), (VmState::Stopped, "not-loaded", None));
    // It was stopped, and systemd forgot it.
    let mut stopped = unit(id, "inactive", "dead");
    stopped.changed_at = Some(Time::from_seconds(7));
    let before = condition(&stopped, None, Time::from_seconds(8));
    assert_eq!(before.detail, "inactive/dead");
    let now = condition(&file, Some(&before), Time::from_seconds(9));
    assert_eq!((now.state, now.since), (VmState::Stopped, Some(Time::from_seconds(7))));
    assert!(!was_let_go(&now), "its file may vanish");
}

#[test]
fn what_was_let_go_is_marked() {
    let let_go = |active: &str| Unit {
        load_state: "not-loaded".to_owned(),
        result: Some("signal".to_owned()),
        ..unit("microvm@a.service", active, LET_GO)
    };
    let stopped = condition(&let_go(""), None, Time(0));
    assert_eq!((stopped.state, stopped.detail.as_str()), (VmState::Stopped, "let-go"));
    let failed = condition(&let_go("failed"), None, Time(0));
    assert_eq!((failed.state, failed.detail.as_str()), (VmState::Failed, "failed/let-go"));
    assert_eq!(failed.failure().unwrap(), "the VMM was killed by a signal");
    assert!(was_let_go(&stopped) && was_let_go(&failed));
    assert!(!was_let_go(&condition(&unit("microvm@a.service", "failed", "failed"), None, Time(0))));
}

#[test]
fn why_units_fail() {
    let check = |result: &str, code: Option<i64>, signal: Option<&str>, expected: &str| {
        let mut unit = unit("microvm@a.service", "failed", "failed");
        unit.result = Some(result.to_owned());
        (unit.exit_code, unit.exit_signal) = (code, signal.map(str::to_owned));
        let condition = condition(&unit, None, Time(0));
        assert_eq!(condition.failure().unwrap_or_default(), expected);
        assert_eq!(ran_out_of_memory(&condition), result == "oom-kill");
    };
    check("exit-code", Some(3), None, "the VMM ended with an error (exit-code 3)");
    check("exit-code", None, None, "the VMM ended with an error");
    check("signal", None, Some("KILL"), "the VMM was killed by a signal (SIGKILL)");
    check("core-dump", None, Some("SEGV"), "the VMM crashed (SIGSEGV)");
    check("oom-kill", None, Some("KILL"), "the VMM was killed because memory ran out");
    check("start-limit-hit", Some(1), None, "the unit was started too often (exit-code 1)");
    check("protocol", Some(1), None, "the unit failed: protocol");
    check("success", None, None, "");
}

/// `ACTIVE/SUB RESTARTS`, a second apart from each other; tells what becomes of each.
fn check_course(course: &str, expected: &Expect) {
    let mut before: Option<Condition> = None;
    let mut told = String::new();
    for step in course.split(", ") {
        let mut words = step.split(' ');
        let second: i64 = words.next().unwrap().parse().unwrap();
        let (active, sub) = words.next().unwrap().split_once('/').unwrap();
        let mut unit = unit("microvm@a.service", active, sub);
        unit.restarts = words.next().map(|number| number.parse().unwrap());
        unit.since = (active == "active")
            .then(|| Time::from_seconds(words.next().map_or(second, |s| s.parse().unwrap())));
        unit.result = (active == "failed" || sub == "auto-restart").then(|| "exit-code".to_owned());
        let now = condition(&unit, before.as_ref(), Time::from_seconds(second));
        let loops = now.loops().map(|loops| format!(" {loops}")).unwrap_or_default();
        let fault = now.fault.as_ref().map(|(_, text)| format!(" {text}")).unwrap_or_default();
        told.push_str(&format!("{step}: {}{loops}{fault}\n", now.in_words()));
        before = Some(now);
    }
    expected.assert_eq(&told);
}

#[test]
fn crash_loops() {
    check_course(
        "0 active/running 0, 9 activating/auto-restart 0, 10 activating/start 1, 11 active/running 1, 12 activating/auto-restart 1, 14 active/running 2, 15 activating/auto-restart 2, 16 active/running 3, 30 active/running 3 16, 50 active/running 3 16",
        &expect![[r#"
            0 active/running 0: running
            9 activating/auto-restart 0: failed (looping) 1 the VMM ended with an error
            10 activating/start 1: failed (looping) 1 the VMM ended with an error
            11 active/running 1: running 1 the VMM ended with an error
            12 activating/auto-restart 1: failed (looping) 1 the VMM ended with an error
            14 active/running 2: failed (looping) 2 the VMM ended with an error
            15 activating/auto-restart 2: failed (looping) 2 the VMM ended with an error
            16 active/running 3: failed (looping) 3 the VMM ended with an error
            30 active/running 3 16: failed (looping) 3 the VMM ended with an error
            50 active/running 3 16: running
        "#]],
    );
    // Too fast to be seen waiting, and then given up.
    check_course(
        "0 active/running 0, 1 active/running 3, 2 failed/failed 5",
        &expect![[r#"
            0 active/running 0: running
            1 active/running 3: failed (looping) 3
            2 failed/failed 5: failed the VMM ended with an error
        "#]],
    );
    // The node's clock is ahead: it has not run for a while when it is seen first, and later has.
    check_course(
        "0 active/running 0, 1 active/running 3 9000, 6 active/running 3 9000",
        &expect![[r#"
            0 active/running 0: running
            1 active/running 3 9000: failed (looping) 3
            6 active/running 3 9000: running
        "#]],
    );
    // Started on purpose, its count begins anew.
    check_course(
        "0 active/running 7, 100 inactive/dead 7, 200 activating/start 0, 201 active/running 0",
        &expect![[r#"
            0 active/running 7: running
            100 inactive/dead 7: stopped
            200 activating/start 0: starting
            201 active/running 0: running
        "#]],
    );
}

#[test]
fn a_listing() {
    let mut web = unit("microvm@web.service", "active", "running");
    let words = "/usr/bin/qemu-system-x86_64 -m 64 -smp 4".split(' ');
    web.exec_start = vec![words.map(str::to_owned).collect()];
    web.limits =
        [("MemoryMax".to_owned(), 1 << 30), ("CPUQuotaPerSecUSec".to_owned(), 1_500_000)].into();
    let mut facts = facts(&[
        web,
        unit("alice/microvm-db.service", "inactive", "dead"),
        unit("microvm@..%2fetc.service", "active", "running"),
        unit("nginx.service", "active", "running"),
    ]);
    facts.put_entity(&Process {
        id: "cloud-hyperviso#1".to_owned(),
        name: "cloud-hyperviso".to_owned(),
        executable: Some("/bin/cloud-hypervisor".to_owned()),
        arguments: ["--cpus", "boot=2", "--memory", "size=1G"].map(str::to_owned).into(),
        unit: Some("alice/microvm-db.service".to_owned()),
        ..Process::default()
    });
    let listing = list(&facts);
    let told: Vec<String> = listing
        .seen
        .iter()
        .map(|seen| format!("{} {:?} {:?}", seen.id, seen.labels, seen.limits))
        .collect();
    assert_eq!(
        told,
        [
            // Without limits of its unit what its guest was given counts.
            "alice:db@n1 {\"owner\": \"alice\", \"vmm\": \"cloud-hypervisor\"} Limits { memory_bytes: Some(1610612736), cpu_percent: Some(200) }",
            "web@n1 {\"vmm\": \"qemu\"} Limits { memory_bytes: Some(1073741824), cpu_percent: Some(150) }",
        ]
    );
    assert_eq!(listing.refused.len(), 1);
    assert_eq!(listing.nodes[&node()], Completeness::Complete);
}

#[test]
fn what_makes_a_listing_incomplete() {
    let check = |facts: &Facts, expected: &str| match &list(facts).nodes[&node()] {
        Completeness::Complete => assert_eq!("", expected),
        Completeness::Incomplete(reason) => assert_eq!(reason, expected),
        Completeness::Partial => panic!("a look at a node is whole"),
    };
    let one = unit("nginx.service", "active", "running");
    check(&facts(std::slice::from_ref(&one)), "");
    check(&facts(&[]), "not one unit is seen there");
    let mut told = Facts::default();
    told.put_entity(&one);
    check(&told, "no agent there lists all units");
    let mut hung = facts(std::slice::from_ref(&one));
    hung.put_entity(&collector("units", Some("D-Bus hangs")));
    check(&hung, "the node's units can't be seen: D-Bus hangs");
    let mut users = facts(&[one]);
    users.put_entity(&collector("user-units", Some("no look within 5 s")));
    check(&users, "the node's user-units can't be seen: no look within 5 s");
}

proptest! {
    #[test]
    fn any_unit_name(name in "(alice/)?microvm[@-]([a-z.%/-]|\\\\x[0-9a-f]{0,2}|ü){0,12}(.service)?") {
        if let Ok(Some((owner, name))) = named(&name) {
            let id = id(owner, &name, &node()).unwrap();
            prop_assert!(!id.as_str().contains('/') && !id.as_str().contains(".."));
        }
    }

    #[test]
    fn any_course(course in prop::collection::vec(("(active|activating|inactive|failed|x)", "(running|auto-restart|start|x)", -1..5_i64, 0..60_i64), 1..12)) {
        let mut before: Option<Condition> = None;
        let mut now = Time(0);
        for (active, sub, restarts, step) in course {
            let mut unit = unit("microvm@a.service", &active, &sub);
            unit.restarts = Some(restarts);
            unit.since = Some(now);
            now = now.plus(Duration::from_secs(u64::try_from(step).unwrap()));
            let after = condition(&unit, before.as_ref(), now);
            // Looked at again at once it is the same.
            prop_assert_eq!(&condition(&unit, Some(&after), now), &after);
            before = Some(after);
        }
    }
}

use super::*;
use crate::health::{Check, Health, Probe, Rule};
use crate::record::{Condition, Limits, Loop, Record};
use expect_test::{Expect, expect};
use model::HostId;
use model::vm::VmSource;
use std::collections::{BTreeMap, VecDeque};

fn vm(recovery: Option<Policy>) -> Vm {
    Vm {
        record: Record {
            id: "web@n1".parse().unwrap(),
            source: VmSource::Microvm,
            node: HostId::new("n1").unwrap(),
            name: "web".parse().unwrap(),
            reference: "microvm@web.service".to_owned(),
            labels: BTreeMap::new(),
            limits: Limits::default(),
            first_seen: Time(0),
            presence: Presence::Present,
            checks: BTreeMap::new(),
            recovery,
        },
        condition: Condition {
            state: VmState::Running,
            detail: String::new(),
            since: None,
            fault: None,
            restarts: 0,
            looping: None,
        },
        last_seen: Time(0),
        health: Health::default(),
        usage: None,
        tried: Tried::default(),
        transitions: VecDeque::new(),
    }
}

/// How a VM is from which second on, `10 failed`, `20 healthy`; what is done for it in each second
/// up to the last, `1000 end`.
fn check(policy: Option<Policy>, course: &str, expected: &Expect) {
    let mut vm = vm(policy);
    let mut told = String::new();
    let mut from = 0;
    for line in course.split(", ") {
        let (at, word) = line.split_once(' ').unwrap();
        let at: i64 = at.parse().unwrap();
        for second in from..at {
            let (step, tried) = step(&vm, Time::from_seconds(second));
            vm.tried = tried;
            match step {
                Step::Nothing => {}
                Step::Restart(number) => told.push_str(&format!("{second} restart {number}\n")),
                Step::GiveUp => told.push_str(&format!("{second} give up\n")),
            }
        }
        from = at;
        vm.condition.looping = None;
        vm.record.presence = Presence::Present;
        (vm.condition.state, vm.health.state) = match word {
            "healthy" => (VmState::Running, VmHealth::Healthy),
            "critical" => (VmState::Running, VmHealth::Critical),
            "unresponsive" => (VmState::Running, VmHealth::Unresponsive),
            "degraded" => (VmState::Running, VmHealth::Degraded),
            "stopped" => (VmState::Stopped, VmHealth::Unknown),
            _ => (VmState::Failed, VmHealth::Unhealthy),
        };
        vm.health.since = Time::from_seconds(at);
        match word {
            "looping" => vm.condition.looping = Some(Loop { since: Time(0), before: 0 }),
            "stale" => {
                let reason = "silent".to_owned();
                vm.record.presence = Presence::Stale { since: Time(0), reason, is_held: false };
            }
            _ => {}
        }
    }
    expected.assert_eq(&told);
}

#[test]
fn delays_double_and_end() {
    check(
        Some(Policy::default()),
        "0 healthy, 100 failed, 1000 end",
        &expect![[r#"
            105 restart 1
            115 restart 2
            135 restart 3
            175 give up
        "#]],
    );
    let capped =
        Policy { restarts: 6, delay: Duration::from_secs(10), cap: Duration::from_secs(30) };
    check(
        Some(capped),
        "0 unresponsive, 1000 end",
        &expect![[r#"
            10 restart 1
            30 restart 2
            60 restart 3
            90 restart 4
            120 restart 5
            150 restart 6
            180 give up
        "#]],
    );
}

#[test]
fn a_while_of_health_begins_anew() {
    check(
        Some(Policy::default()),
        "0 failed, 6 healthy, 20 critical, 40 healthy, 339 critical, 400 healthy, 701 failed, 710 end",
        &expect![[r#"
            5 restart 1
            30 restart 2
            359 restart 3
            399 give up
            706 restart 1
        "#]],
    );
}

#[test]
fn what_is_left_alone() {
    let nothing = expect![""];
    for course in [
        "0 stopped, 1000 end",
        "0 degraded, 1000 end",
        "0 looping, 1000 end",
        "0 stale, 1000 end",
        "0 failed, 4 healthy, 8 failed, 12 healthy, 1000 end",
    ] {
        check(Some(Policy::default()), course, &nothing);
    }
    check(None, "0 failed, 1000 end", &nothing);
}

#[test]
fn slow_checks_get_the_time_to_fail_again() {
    let mut vm = vm(Some(Policy::default()));
    let second = Duration::from_secs(1);
    let check = Check {
        probe: Probe::Guest { port: None },
        rule: Rule { failure_threshold: 5, ..Rule::default() },
        interval: 90 * second,
        timeout: 10 * second,
        initial_delay: 60 * second,
    };
    vm.record.checks.insert("agent".parse().unwrap(), check);
    vm.health.state = VmHealth::Healthy;
    let at = Time::from_seconds;
    vm.tried = Tried { restarts: 2, last: Some(at(1000)), ill_since: None };
    // 300 s, and 60 s and five times 100 s.
    assert_eq!(step(&vm, at(1859)), (Step::Nothing, vm.tried));
    assert_eq!(step(&vm, at(1860)), (Step::Nothing, Tried::default()));
}

#[test]
fn a_clock_that_was_put_back_holds_nothing_up() {
    let at = Time::from_seconds;
    let mut vm = vm(Some(Policy::default()));
    vm.condition.state = VmState::Failed;
    vm.tried = Tried { restarts: 1, last: Some(at(9000)), ill_since: Some(at(8000)) };
    let (first, tried) = step(&vm, at(100));
    assert_eq!((first, tried.last), (Step::Nothing, Some(at(100))));
    vm.tried = tried;
    assert_eq!(step(&vm, at(110)).0, Step::Restart(2));
}

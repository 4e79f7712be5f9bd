use super::*;
use crate::Loop;
use expect_test::{Expect, expect};

fn condition(state: VmState) -> Condition {
    Condition { state, detail: String::new(), since: None, fault: None, restarts: 0, looping: None }
}

fn shown(health: &Health) -> String {
    let score = health.score.map_or_else(|| "-".to_owned(), |score| format!("{score:.2}"));
    let cause = health.cause.as_ref().map(|cause| format!(" ({cause})"));
    format!("{} {score}{}", health.state, cause.unwrap_or_default())
}

/// Verdicts of checks in turn, `+name` or `-name`; a name is `LAYER`, with `!` where it is
/// critical and a figure for its weight. Tells each state that this leads to.
fn check(verdicts: &str, state: VmState, expected: &Expect) {
    let mut health = Health::default();
    let mut told: Vec<String> = Vec::new();
    for (second, verdict) in (1..).zip(verdicts.split(' ')) {
        let (sign, name) = verdict.split_at(1);
        let critical = name.ends_with('!');
        let name = name.trim_end_matches('!');
        let layer: Layer = name.trim_end_matches(|c: char| c.is_ascii_digit()).parse().unwrap();
        let weight = name.trim_start_matches(layer.as_str()).parse().unwrap_or(1);
        let rule = Rule { weight, critical, ..Rule::default() };
        let verdict =
            if sign == "+" { Verdict::Pass } else { Verdict::Fail("no answer".to_owned()) };
        let at = Time::from_seconds(second);
        health.judge(&name.parse().unwrap(), rule, (layer, &verdict), at);
        health.assess(&Presence::Present, &condition(state), at);
        let line = format!("{second}: {}", shown(&health));
        let said =
            told.last().and_then(|last| last.split_once(": ")).map(|(_, said)| said.to_owned());
        if said.as_deref() != line.split_once(": ").map(|(_, said)| said) {
            told.push(line);
        }
    }
    expected.assert_eq(&(told.join("\n") + "\n"));
}

#[test]
fn thresholds_work_in_both_directions() {
    check(
        "+service -service -service -service +service +service -service -service",
        VmState::Running,
        &expect![[r#"
            1: healthy 1.00
            4: unhealthy 0.00 (service: service: no answer)
            6: healthy 1.00
        "#]],
    );
    check(
        "-service -service +service -service -service",
        VmState::Running,
        &expect![[r#"
            1: healthy 1.00
        "#]],
    );
}

#[test]
fn scores_and_states() {
    check(
        "+unit9 -vmm -vmm -vmm",
        VmState::Running,
        &expect![[r#"
            1: healthy 1.00
            4: healthy 0.90 (vmm: vmm: no answer)
        "#]],
    );
    check(
        "+unit -vmm -vmm -vmm",
        VmState::Running,
        &expect![[r#"
            1: healthy 1.00
            4: degraded 0.50 (vmm: vmm: no answer)
        "#]],
    );
    check(
        "+unit9 -service! -service! -service! -service! -service! -service!",
        VmState::Running,
        &expect![[r#"
            1: healthy 1.00
            4: healthy 0.90 (service: service: no answer)
            7: critical 0.90 (service: service: no answer)
        "#]],
    );
    check(
        "+unit9 -guest -guest -guest",
        VmState::Running,
        &expect![[r#"
            1: healthy 1.00
            4: unresponsive 0.90 (guest: guest: no answer)
        "#]],
    );
    check(
        "-service",
        VmState::Stopped,
        &expect![[r#"
        1: unknown -
    "#]],
    );
}

#[test]
fn what_is_furthest_out_is_the_cause() {
    check(
        "-service -service -service -guest -guest -guest -vmm -vmm -vmm",
        VmState::Running,
        &expect![[r#"
            1: healthy 1.00
            3: unhealthy 0.00 (service: service: no answer)
            4: degraded 0.50 (service: service: no answer)
            6: unresponsive 0.00 (guest: guest: no answer)
            7: unresponsive 0.33 (guest: guest: no answer)
            9: unresponsive 0.00 (vmm: vmm: no answer)
        "#]],
    );
    let mut health = Health::default();
    let failed = Condition {
        fault: Some((Layer::Vmm, "the VMM was killed by a signal".to_owned())),
        looping: Some(Loop { since: Time(1), before: 1 }),
        restarts: 4,
        ..condition(VmState::Failed)
    };
    let (name, rule) = state_check();
    for second in 1..=2 {
        let verdict = state_verdict(&failed).unwrap();
        health.judge(&name, rule, (Layer::Unit, &verdict), Time::from_seconds(second));
        health.assess(&Presence::Present, &failed, Time::from_seconds(second));
        let state = if second == 1 { "unhealthy" } else { "critical" };
        let cause = "vmm: state: the VMM was killed by a signal; started anew 3 times";
        assert_eq!(shown(&health), format!("{state} 0.00 ({cause})"));
    }
    let stale = Presence::Stale {
        since: Time(1),
        reason: "nothing was heard of n1".to_owned(),
        is_held: false,
    };
    health.assess(&stale, &failed, Time(9));
    assert_eq!(shown(&health), "unknown - (node: nothing was heard of n1)");
    assert_eq!(health.since, Time(9));
}

#[test]
fn limits() {
    let used = |memory, cpu| Usage {
        memory_bytes: Some(memory),
        cpu_percent: Some(cpu),
        ..Usage::default()
    };
    let limits = Limits { memory_bytes: Some(100 << 20), cpu_percent: Some(200) };
    let told = |usage: &Usage, limits| -> Vec<String> {
        let verdicts = usage_verdicts(usage, limits, None).into_iter();
        verdicts.map(|(name, _, verdict)| format!("{name} {verdict:?}")).collect()
    };
    assert_eq!(told(&used(50 << 20, 100.0), limits), ["memory Pass", "cpu Pass"]);
    assert_eq!(
        told(&used(95 << 20, 180.0), limits),
        [
            "memory Fail(\"memory is near its limit: 95 MiB of 100 MiB\")",
            "cpu Fail(\"processor time is near its limit: 180 % of 200 %\")"
        ]
    );
    assert!(told(&used(95 << 20, 180.0), Limits::default()).is_empty(), "no limits, no verdicts");
    assert!(told(&Usage::default(), limits).is_empty(), "what was not measured is not judged");
}

#[test]
fn what_the_vmm_says() {
    let told = |vmm: VmmLoad| -> Vec<String> {
        let usage = Usage { vmm: Some(vmm), ..Usage::default() };
        let verdicts = usage_verdicts(&usage, Limits::default(), None).into_iter();
        verdicts.map(|(name, _, verdict)| format!("{name} {verdict:?}")).collect()
    };
    let runs = VmmLoad { runs: Some(true), ..VmmLoad::default() };
    assert_eq!(told(runs.clone()), ["vmm-socket Pass"]);
    assert_eq!(told(VmmLoad::default()), ["vmm-socket Pass"], "one that does not say");
    let hangs = VmmLoad { fault: Some("no answer".into()), ..runs.clone() };
    assert_eq!(told(hangs), ["vmm-socket Fail(\"no answer\")"]);
    let stopped = VmmLoad { runs: Some(false), status: Some("io-error".into()), ..runs };
    assert_eq!(told(stopped), ["vmm-socket Fail(\"its VMM has the guest stopped: io-error\")"]);
}

#[test]
fn what_the_kernel_and_the_journal_say() {
    let at = Time::from_seconds;
    let told = |usage: &Usage, since: Option<Time>| -> Vec<String> {
        let verdicts = usage_verdicts(usage, Limits::default(), since).into_iter();
        verdicts.map(|(name, _, verdict)| format!("{name} {verdict:?}")).collect()
    };
    let killed = |kills| Usage { oom_kills: Some(kills), ..Usage::default() };
    assert_eq!(told(&killed(0), None), ["oom Pass"]);
    let message = "memory ran out, and the kernel killed 2 of its processes";
    assert_eq!(told(&killed(2), None), [format!("oom Fail(\"{message}\")")]);
    let said = |critical, errors| {
        let last = (critical + errors > 0).then_some(at(1000));
        Usage { journal: Some(JournalErrors { critical, errors, last }), ..Usage::default() }
    };
    for quiet in [said(0, 0), said(0, 9)] {
        assert_eq!(told(&quiet, Some(at(500))), ["journal Pass"]);
    }
    let message = "in the journal of the last hour: 1 critical, 3 errors";
    assert_eq!(told(&said(1, 3), Some(at(500))), [format!("journal Fail(\"{message}\")")]);
    let message = "in the journal of the last hour: 10 errors";
    assert_eq!(told(&said(0, 10), None), [format!("journal Fail(\"{message}\")")]);
    assert_eq!(told(&said(1, 30), Some(at(1001))), ["journal Pass"], "said by the run before");
    for name in OWN_CHECKS {
        assert!(name.parse::<CheckName>().is_ok(), "{name}");
    }
}

#[test]
fn what_the_node_could_not_find_out_is_not_the_vms() {
    let mut health = Health::default();
    let name: CheckName = "agent".parse().unwrap();
    let rule = Rule { critical: true, ..Rule::default() };
    let mut at = Time(0);
    let mut judge = |layer, count, message: &str| {
        for _ in 0..count {
            at = at.plus(RHYTHM);
            health.judge(&name, rule, (layer, &Verdict::Fail(message.to_owned())), at);
            health.assess(&Presence::Present, &condition(VmState::Running), at);
        }
        shown(&health)
    };
    assert_eq!(judge(Layer::Guest, 1, "no answer"), "healthy 1.00");
    let silent = "unhealthy 0.00 (node: agent: no twin-node)";
    assert_eq!(judge(Layer::Node, 100, "no twin-node"), silent);
    // It is back, and one failure more is none yet.
    assert_eq!(judge(Layer::Guest, 1, "no answer"), silent);
    let unresponsive = "unresponsive 0.00 (guest: agent: no answer)";
    assert_eq!(judge(Layer::Guest, 1, "no answer"), unresponsive);
    assert_eq!(judge(Layer::Guest, 2, "no answer"), unresponsive);
    let critical = "critical 0.00 (guest: agent: no answer)";
    assert_eq!(judge(Layer::Guest, 1, "no answer"), critical);
    // What was known of it is doubtful, and still so when the node is back.
    assert_eq!(judge(Layer::Node, 1, "no twin-node"), silent);
    assert_eq!(judge(Layer::Guest, 1, "no answer"), critical);
}

#[test]
fn use_and_the_journal_are_the_last_cause() {
    let mut health = Health::default();
    let rule = Rule { failure_threshold: 1, ..Rule::default() };
    let failed = Verdict::Fail("so".to_owned());
    for (layer, name, cause) in [
        (Layer::Vmm, "journal", "vmm: journal: so"),
        (Layer::Service, "http", "service: http: so"),
        (Layer::Guest, "agent", "guest: agent: so"),
        (Layer::Vmm, "memory", "guest: agent: so"),
        (Layer::Vmm, "vmm-socket", "vmm: vmm-socket: so"),
    ] {
        health.judge(&name.parse().unwrap(), rule, (layer, &failed), Time(1));
        health.assess(&Presence::Present, &condition(VmState::Running), Time(1));
        assert_eq!(health.cause.as_ref().unwrap().to_string(), cause);
    }
}

#[test]
fn errors_of_the_run_before_do_not_come_back() {
    let at = Time::from_seconds;
    let mut known: Option<Usage> = None;
    let mut judge = |second: i64, started: i64, (errors, last): (u64, i64)| {
        let journal = JournalErrors { critical: 0, errors, last: Some(at(last)) };
        let mut usage = Usage { at: at(second), journal: Some(journal), ..Usage::default() };
        usage.follow(known.as_ref(), Some(at(started)));
        let limits = Limits::default();
        let verdicts = usage_verdicts(&usage, limits, Some(at(started)));
        known = Some(usage);
        let (_, _, verdict) = verdicts.into_iter().next().unwrap();
        verdict == Verdict::Pass
    };
    assert!(!judge(1000, 500, (30, 990)));
    // Started anew, and then one error of this run.
    assert!(judge(1010, 1005, (30, 990)));
    assert!(judge(1020, 1005, (31, 1015)));
    // Those of before get old first.
    assert!(judge(3000, 1005, (25, 2990)));
    assert!(!judge(3100, 1005, (35, 3090)));
    // Said before it was first measured after the start.
    assert!(judge(3210, 3200, (36, 3205)));
    assert!(!judge(7000, 3200, (10, 6990)), "after an hour all are of this run");
}

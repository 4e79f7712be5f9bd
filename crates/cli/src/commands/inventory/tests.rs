use super::*;
use crate::entry::tests::at;
use crate::fake_server::{FakeServer, Reply};
use api::vm::{VmCheck, VmEventKind, VmNode, VmTransition};
use expect_test::expect;
use model::vm::{DecisionKind, Layer, VmSource};

fn vm(id: &str) -> Vm {
    let (name, node) = id.split_once('@').unwrap();
    Vm {
        id: id.parse().unwrap(),
        name: name.parse().unwrap(),
        source: VmSource::Microvm,
        node: node.parse().unwrap(),
        reference: format!("microvm@{name}.service"),
        state: VmState::Running,
        detail: "active/running".into(),
        loops: None,
        restarts: 0,
        fault: None,
        since: Some(at(0)),
        presence: Presence::Present,
        presence_since: None,
        presence_reason: None,
        health: VmHealth::Healthy,
        score: Some(1.0),
        cause: None,
        usage: Some(VmUsage {
            at: at(890),
            boot_ms: Some(4250),
            cpu_percent: Some(12.4),
            cpu_limit_percent: None,
            memory_bytes: Some(512 << 20),
            memory_peak_bytes: Some(700 << 20),
            memory_limit_bytes: Some(1 << 30),
            memory_pressure_percent: None,
            tasks: Some(4),
            read_bytes_per_second: Some(2048.0),
            written_bytes_per_second: None,
            disks: [("vda".to_owned(), traffic(Some(2048.0), None))].into(),
            interfaces: Some([("vm-web".to_owned(), traffic(Some(100.0), Some(3e6)))].into()),
            oom_kills: Some(0),
            journal: Some(VmJournal { critical: 0, errors: 3, last: Some(at(600)) }),
            vmm: Some(VmMonitor {
                at: Some(at(880)),
                status: Some("running".into()),
                vcpus: Some(2),
                memory_bytes: Some(1 << 30),
                balloon_memory_bytes: Some(768 << 20),
                guest_agent: Some(true),
                ..VmMonitor::default()
            }),
        }),
        labels: [("vmm".to_owned(), "qemu".to_owned())].into(),
        first_seen: at(-86_400),
        last_seen: at(896),
    }
}

fn traffic(into: Option<f64>, out: Option<f64>) -> VmTraffic {
    VmTraffic { in_bytes_per_second: into, out_bytes_per_second: out }
}

fn looping() -> Vm {
    let message = "the VMM was killed by a signal; started anew 7 times \x1b[2J".to_owned();
    Vm {
        state: VmState::Failed,
        detail: "activating/auto-restart".into(),
        loops: Some(7),
        restarts: 7,
        fault: Some("the VMM was killed by a signal".into()),
        health: VmHealth::Critical,
        score: Some(0.0),
        cause: Some(VmCause { layer: Layer::Vmm, check: Some("state".parse().unwrap()), message }),
        usage: None,
        labels: [].into(),
        ..vm("db@n1")
    }
}

#[test]
fn a_table_of_vms() {
    let stale = Vm {
        presence: Presence::Stale,
        presence_since: Some(at(0)),
        presence_reason: Some("nothing was heard of the node".into()),
        health: VmHealth::Unknown,
        ..vm("web@n2")
    };
    let orphan = Vm {
        presence: Presence::Orphan,
        presence_since: Some(at(0)),
        state: VmState::Stopped,
        since: None,
        usage: None,
        ..vm("old@n2")
    };
    let vms = vec![looping(), vm("web@n1"), orphan, stale];
    let answer = Vms { vms, next: None, nodes: vec![] };
    expect![[r#"
        VM      STATE                      SINCE       HEALTH    CPU   MEMORY              VMM   CAUSE
        db@n1   failed (looping, 7 times)  15 min ago  critical     -                   -  -     vmm: state: the VMM was killed by a signal; started anew 7 times \x1b[2J
        web@n1  running                    15 min ago  healthy   12 %  512 MiB of 1.0 GiB  qemu  -
        old@n2  stopped                    -           orphan       -                   -  qemu  -
        web@n2  running?                   15 min ago  unknown   12 %  512 MiB of 1.0 GiB  qemu  -
    "#]].assert_eq(&table(&answer, &View::of_tests()));
    assert_eq!(table(&Vms { vms: vec![], ..answer }, &View::of_tests()), "");
}

#[test]
fn one_vm() {
    expect![[r#"
        vm          web@n1
        name        web
        node        n1
        unit        microvm@web.service
        state       running, active/running
        since       2026-11-20T09:00:00Z
        boot        4.2 s
        restarts    0
        health      healthy
        score       1.00
        vmm         qemu
        vmm says    running, 2 processors, 768 MiB of 1.0 GiB, the guest's agent is there, said 20 s ago
        cpu         12.4 %
        memory      512 MiB of 1.0 GiB
        peak        700 MiB
        read        2.0 KiB/s
        disks       vda read 2.0 KiB/s, written -
        network     vm-web received 100 B/s, sent 2.8 MiB/s
        oom kills   0
        journal     0 critical and 3 errors within an hour, the last 5 min ago
        measured    10 s ago
        first seen  2026-11-19T09:00:00Z
        last seen   4 s ago
    "#]]
    .assert_eq(&glance(&vm("web@n1"), &View::of_tests()));
    let stale = Vm {
        presence: Presence::Stale,
        presence_since: Some(at(0)),
        presence_reason: Some("nothing was heard of the node".into()),
        ..looping()
    };
    expect![[r#"
        vm          db@n1
        name        db
        node        n1
        unit        microvm@db.service
        state       failed (looping, 7 times)?, activating/auto-restart
        since       2026-11-20T09:00:00Z
        presence    stale for 15 min: nothing was heard of the node
        fault       the VMM was killed by a signal
        restarts    7
        health      critical
        score       0.00
        cause       vmm: state: the VMM was killed by a signal; started anew 7 times \x1b[2J
        first seen  2026-11-19T09:00:00Z
        last seen   4 s ago
    "#]]
    .assert_eq(&glance(&stale, &View::of_tests()));
}

#[test]
fn how_well_one_does() {
    let check = |name: &str, layer, passing: Option<bool>, failures| VmCheck {
        name: name.parse().unwrap(),
        layer,
        passing,
        failures,
        failure_threshold: 3,
        passes: 0,
        success_threshold: 2,
        weight: 1,
        critical: name == "state",
        at: passing.map(|_| at(890)),
        message: (failures > 0).then(|| "10.0.0.5:80: connection refused".to_owned()),
    };
    let report = VmHealthReport {
        id: "web@n1".parse().unwrap(),
        health: VmHealth::Degraded,
        since: at(0),
        score: Some(0.5),
        cause: looping().cause,
        checks: vec![
            check("state", Layer::Unit, Some(true), 0),
            check("memory", Layer::Vmm, Some(true), 2),
            check("web", Layer::Service, Some(false), 4),
            check("ssh", Layer::Service, None, 0),
        ],
        transitions: vec![VmTransition {
            at: at(0),
            of: "health".into(),
            from: "healthy".into(),
            to: "degraded".into(),
            reason: None,
        }],
    };
    expect![[r#"
        web@n1 is degraded, score 0.50 since 2026-11-20T09:00:00Z
        cause: vmm: state: the VMM was killed by a signal; started anew 7 times \x1b[2J

        CHECK   LAYER    VERDICT       FAILURES  WEIGHT      LOOKED    SAID
        state   unit     passes        0 of 3    1 critical  10 s ago  -
        memory  vmm      passes still  2 of 3    1           10 s ago  10.0.0.5:80: connection refused
        web     service  fails         4 of 3    1           10 s ago  10.0.0.5:80: connection refused
        ssh     service  awaited       0 of 3    1           -         -

        WHEN                  OF      FROM     TO        REASON
        2026-11-20T09:00:00Z  health  healthy  degraded  -
    "#]].assert_eq(&health(&report, &View::of_tests()));
}

#[test]
fn checks_of_its_own() {
    let text = "checks:\n  web: {address: '10.0.0.5:80', path: /health, status: 204, critical: true}\n  ssh: {address: '[fd00::5]:22', from_node: true, interval_seconds: 10, weight: 2}\n  vmm: {process: virtiofsd}\n  disk: {script: disk}\n  boot: {console: 'login:'}\n  panic: {console: \"Kernel panic\", absent: true}\n  guest: {guest_agent: true}\n  vsock: {guest_agent: true, vsock_port: 9001}\n  ping: {icmp: 'fd00::5'}\n  link: {arp: 10.0.0.5}\n";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let answer = read(file.path()).unwrap();
    expect![[r#"
        CHECK  ASKS                            EVERY  FAILS AFTER  WEIGHT
        boot   console "login:"                - s    - failures   -
        disk   script disk                     - s    - failures   -
        guest  guest agent                     - s    - failures   -
        link   arp 10.0.0.5                    - s    - failures   -
        panic  console not "Kernel panic"      - s    - failures   -
        ping   icmp fd00::5                    - s    - failures   -
        ssh    tcp [fd00::5]:22 from its node  10 s   - failures   2
        vmm    process virtiofsd               - s    - failures   -
        vsock  guest agent at vsock port 9001  - s    - failures   -
        web    http 10.0.0.5:80/health (204)   - s    - failures   - critical
    "#]]
    .assert_eq(&checks(&answer, &View::of_tests()));
    std::fs::write(file.path(), "checks:\n  web: {adress: x}\n").unwrap();
    let wrong = read(file.path()).unwrap_err().to_string();
    assert!(wrong.contains("did you mean \"address\"?"), "{wrong}");
}

#[test]
fn what_becomes_of_them() {
    let event = |kind, decision, from: Option<&str>, to: Option<&str>| VmEvent {
        sequence: 7,
        at: at(0),
        id: "web@n1".parse().unwrap(),
        kind,
        decision,
        from: from.map(str::to_owned),
        to: to.map(str::to_owned),
        reason: Some("microvm@web.service \x1b[2J".into()),
    };
    let register = Some(DecisionKind::Register);
    let lines = [
        event(VmEventKind::Record, register, None, None),
        event(VmEventKind::State, None, Some("running"), Some("failed")),
        event(VmEventKind::Removed, None, None, None),
    ];
    let text: String = lines.iter().map(|event| line(event, &View::of_tests())).collect();
    expect![[r#"
        2026-11-20T09:00:00Z  web@n1  record: register  (microvm@web.service \x1b[2J)
        2026-11-20T09:00:00Z  web@n1  state: running → failed  (microvm@web.service \x1b[2J)
        2026-11-20T09:00:00Z  web@n1  removed  (microvm@web.service \x1b[2J)
    "#]]
    .assert_eq(&text);
}

#[test]
fn doubts_are_told() {
    let node = VmNode {
        node: "n1".parse().unwrap(),
        incomplete: Some("the node's units can't be seen: D-Bus hangs".into()),
        held: vec!["web@n1".parse().unwrap()],
        ignored: vec!["microvm@..%2f.service: no name".into()],
    };
    let answer = Vms { vms: vec![], next: None, nodes: vec![node] };
    assert_eq!(
        doubts(&answer),
        [
            "n1: the node's units can't be seen: D-Bus hangs",
            "n1: 1 VMs are gone at once; if that is so, run: twin inventory confirm n1",
            "n1: ignored microvm@..%2f.service: no name",
        ]
    );
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was() {
    let event = |sequence: u64| {
        let id = "web@n1".parse().unwrap();
        let (decision, from, to, reason) = (None, None, None, None);
        let kind = VmEventKind::Record;
        let event = VmEvent { sequence, at: at(0), id, kind, decision, from, to, reason };
        format!("id: {sequence}\nevent: vm\ndata: {}\n\n", serde_json::to_string(&event).unwrap())
    };
    let server = FakeServer::start(move |path, asked| match (path, asked) {
        ("/api/v1/vms/events", 0) => Reply::events("id: 6\nevent: begin\ndata: 6\n\n".into()),
        ("/api/v1/vms/events?from=6", 0) => Reply::events(event(7) + &event(8)),
        ("/api/v1/vms/events?from=8", 0) => Reply::status(503),
        ("/api/v1/vms/events?from=8", 1) => {
            Reply::events("id: 20\nevent: lost\ndata: x\n\n".to_owned() + &event(21)).held()
        }
        _ => Reply::refused(404, "unknown_route", path, ""),
    });
    let remote = Remote::new(&server.url(), None).unwrap();
    let mut events = VmEvents::new(remote).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(events.next().await.unwrap().sequence);
    }
    assert_eq!(seen, [7, 8, 21]);
}

#[test]
fn what_becomes_of_one_that_does_badly() {
    let on = VmRecovery {
        restart: true,
        restarts: Some(3),
        delay_seconds: Some(5),
        cap_seconds: Some(300),
        tried: Some(3),
        given_up: Some(true),
    };
    expect![[r#"
        restarts  3, 3 of them tried; that did not help, and nobody tries any more
        delay     5 s, doubling
        cap       300 s
    "#]]
    .assert_eq(&recovery(&on, &View::of_tests()));
    let off = recovery(&VmRecovery::default(), &View::of_tests());
    assert_eq!(off, "off: it is not started anew when it does badly\n");
}

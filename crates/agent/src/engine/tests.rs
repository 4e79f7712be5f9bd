//! Reports that come in any order, and what is told of them.

use super::*;
use model::{Fields, Value};

fn item(kind: Kind, id: &str, value: i64) -> (Subject, Item) {
    let fields: Fields = [("n".to_owned(), Value::Int(value))].into();
    (Subject::escaped(kind, id), Item::new(&fields))
}

fn faults(facts: &Facts) -> BTreeMap<String, String> {
    facts
        .entities::<Collector>()
        .filter_map(|collector| Some((collector.name, collector.fault?)))
        .collect()
}

struct Bench {
    reports: mpsc::Sender<Report>,
    outgoing: mpsc::Receiver<Outgoing>,
    state: Facts,
}

impl Bench {
    fn start(room: usize) -> Self {
        let (reports, receiver) = mpsc::channel(64);
        let (sender, outgoing) = mpsc::channel(room);
        let engine = Engine::new(Facts::default(), ["units"], [], watch::Sender::default());
        #[expect(clippy::disallowed_methods, reason = "ends with the test's channels")]
        tokio::spawn(engine.run(receiver, sender, CancellationToken::new()));
        Self { reports, outgoing, state: Facts::default() }
    }

    async fn say(&self, seen: Seen) {
        self.part(None, seen).await;
    }

    async fn part(&self, part: Option<&str>, seen: Seen) {
        let part = part.map(str::to_owned);
        self.reports.send(Report { collector: "units", part, seen }).await.unwrap();
    }

    async fn all(&self, items: Vec<(Subject, Item)>) {
        let scopes = vec![Scope::Kind(Kind::UNIT)];
        self.say(Seen::All { scopes, items, limits: Vec::new() }).await;
    }

    /// The next delta, applied.
    async fn delta(&mut self) -> usize {
        let Some(Outgoing::Delta { body, .. }) = self.outgoing.recv().await else {
            panic!("no delta")
        };
        match body {
            Body::Keyframe(facts) => {
                self.state = facts;
                0
            }
            Body::Patch { base, next, patch } => {
                assert_eq!(base, self.state.digest());
                patch.apply(&mut self.state).unwrap();
                assert_eq!(next, self.state.digest());
                patch.len()
            }
        }
    }

    fn units(&self) -> usize {
        self.state.of_kind(Kind::UNIT).count()
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_change_goes_at_once_and_a_burst_as_one() {
    let mut bench = Bench::start(8);
    bench.all(vec![item(Kind::UNIT, "a", 1), item(Kind::UNIT, "b", 1)]).await;
    bench.delta().await;
    assert_eq!(bench.units(), 2);
    tokio::time::advance(Duration::from_secs(5)).await;
    let start = Instant::now();
    bench.say(Seen::Some { put: vec![item(Kind::UNIT, "a", 2)], gone: vec![] }).await;
    assert_eq!(bench.delta().await, 1);
    assert!(start.elapsed() < Duration::from_millis(20), "{:?}", start.elapsed());
    for n in 0..20 {
        bench.say(Seen::Some { put: vec![item(Kind::UNIT, "a", n + 10)], gone: vec![] }).await;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let deltas = {
        let mut count = 1;
        bench.delta().await;
        while tokio::time::timeout(MOST * 2, bench.delta()).await.is_ok() {
            count += 1;
        }
        count
    };
    assert!((2..=3).contains(&deltas), "{deltas}");
}

#[tokio::test(start_paused = true)]
async fn where_all_was_looked_at_is_told_with_the_look_and_stays_in_a_fault() {
    let mut bench = Bench::start(8);
    let whole = |directory: &str| Seen::Whole {
        directories: vec![directory.to_owned()],
        missing: vec!["/etc/no".to_owned()],
    };
    bench.say(whole("/etc/a")).await;
    bench.all(vec![item(Kind::UNIT, "a", 1)]).await;
    bench.delta().await;
    let told = |bench: &Bench| bench.state.entity::<Collector>("units").unwrap();
    assert_eq!(
        (told(&bench).directories, told(&bench).missing),
        (vec!["/etc/a".to_owned()], vec!["/etc/no".to_owned()])
    );
    bench.say(Seen::Fault("no".to_owned())).await;
    bench.delta().await;
    assert_eq!((told(&bench).directories.len(), told(&bench).fault.is_some()), (1, true));
    bench.say(whole("/etc/b")).await;
    bench.all(vec![item(Kind::UNIT, "a", 1)]).await;
    bench.delta().await;
    assert_eq!((told(&bench).directories, told(&bench).fault), (vec!["/etc/b".to_owned()], None));
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_came_to_another_state_waits_for_no_burst() {
    let mut bench = Bench::start(8);
    let unit = |name: &str, state: &str| {
        let fields: Fields = [(ACTIVE_STATE.to_owned(), Value::Text(state.to_owned()))].into();
        (Subject::escaped(Kind::UNIT, name), Item::new(&fields))
    };
    let vm = |state| unit("microvm@web.service", state);
    bench.all(vec![vm("active"), unit("a.service", "active")]).await;
    bench.delta().await;
    tokio::time::advance(Duration::from_secs(5)).await;
    bench.say(Seen::Some { put: vec![vm("deactivating")], gone: vec![] }).await;
    bench.delta().await;
    let mut told = async |what: (Subject, Item)| {
        let start = Instant::now();
        bench.say(Seen::Some { put: vec![what], gone: vec![] }).await;
        bench.delta().await;
        start.elapsed()
    };
    let (of_vm, of_other) = (told(vm("inactive")).await, told(unit("a.service", "failed")).await);
    assert!(of_vm <= URGENT * 2, "{of_vm:?}");
    assert!(of_other >= QUIET, "{of_other:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fault_keeps_what_was_seen_and_a_look_removes_what_is_gone() {
    let mut bench = Bench::start(8);
    bench.all(vec![item(Kind::UNIT, "a", 1), item(Kind::UNIT, "b", 1)]).await;
    bench.delta().await;
    bench.say(Seen::Fault("bus closed".into())).await;
    bench.delta().await;
    assert_eq!(bench.units(), 2);
    assert_eq!(faults(&bench.state), [("units".to_owned(), "bus closed".to_owned())].into());
    bench.all(vec![item(Kind::UNIT, "a", 1)]).await;
    bench.delta().await;
    assert_eq!(bench.units(), 1);
    assert_eq!(faults(&bench.state), BTreeMap::new());
}

#[tokio::test(start_paused = true)]
async fn a_collector_is_faulty_while_one_of_its_parts_is() {
    let mut bench = Bench::start(8);
    let units_of = |user: &str| Seen::All {
        scopes: vec![Scope::UnitsOf(user.to_owned())],
        items: vec![item(Kind::UNIT, &format!("{user}/a"), 1)],
        limits: Vec::new(),
    };
    let collector = |state: &Facts| state.entity::<Collector>("units").unwrap();
    bench.part(Some("alice"), Seen::Fault("no answer".into())).await;
    bench.delta().await;
    let since = collector(&bench.state).fault_since;
    assert!(since.is_some());
    for _ in 0..3 {
        bench.part(Some("bob"), units_of("bob")).await;
        bench.part(Some("bob"), Seen::Some { put: vec![], gone: vec![] }).await;
    }
    bench.delta().await;
    assert_eq!(bench.units(), 1);
    let seen = collector(&bench.state);
    assert_eq!((seen.fault.as_deref(), seen.fault_since), (Some("alice: no answer"), since));
    bench.part(None, Seen::Fault("no accounts".into())).await;
    bench.delta().await;
    let both = "no accounts; alice: no answer";
    assert_eq!(collector(&bench.state).fault.as_deref(), Some(both));
    bench.part(None, Seen::None(Vec::new())).await;
    bench.part(Some("alice"), units_of("alice")).await;
    bench.delta().await;
    let seen = collector(&bench.state);
    assert_eq!((bench.units(), seen.fault, seen.fault_since), (2, None, None));
}

#[tokio::test(start_paused = true)]
async fn a_full_outbox_delays_and_loses_nothing() {
    let mut bench = Bench::start(1);
    for n in 0..200 {
        bench.all(vec![item(Kind::UNIT, "a", n)]).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    while tokio::time::timeout(MOST * 2, bench.delta()).await.is_ok() {}
    assert_eq!(bench.state.field(&Subject::escaped(Kind::UNIT, "a"), "n"), Some(Value::Int(199)));
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_is_told_as_a_whole_state() {
    let mut bench = Bench::start(8);
    bench.all(vec![item(Kind::UNIT, "a", 1)]).await;
    bench.delta().await;
    bench.say(Seen::Lost).await;
    let Some(Outgoing::Delta { body, .. }) = bench.outgoing.recv().await else {
        panic!("no delta")
    };
    assert_eq!(body, Body::Keyframe(bench.state.clone()));
    bench.all(vec![item(Kind::UNIT, "a", 2)]).await;
    assert_eq!(bench.delta().await, 1, "a step again");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_could_look_at_is_recalled() {
    let (reports, receiver) = mpsc::channel(8);
    let (sender, mut outgoing) = mpsc::channel(8);
    let (looked, mut has_looked) = watch::channel(Looked::default());
    let awaited = ["units", "containers"];
    let engine = Engine::new(Facts::default(), awaited, awaited, looked);
    #[expect(clippy::disallowed_methods, reason = "ends with the test's channels")]
    tokio::spawn(engine.run(receiver, sender, CancellationToken::new()));
    let say = |collector, seen| reports.send(Report { collector, part: None, seen });
    let units = vec![item(Kind::UNIT, "a", 1)];
    let scopes = vec![Scope::SystemUnits];
    say("units", Seen::All { scopes, items: units, limits: vec![] }).await.unwrap();
    say("containers", Seen::Fault("no answer".into())).await.unwrap();
    let seen = has_looked.wait_for(|looked| looked.all).await.unwrap().clone();
    assert_eq!(seen.unseen, [Kind::CONTAINER]);
    let mut told = Facts::default();
    for (subject, item) in
        [item(Kind::UNIT, "gone", 1), item(Kind::UNIT, "a", 7), item(Kind::CONTAINER, "c", 1)]
    {
        told.put(subject, item);
    }
    say("spool", Seen::Recalled(told)).await.unwrap();
    has_looked.wait_for(|looked| looked.recalled).await.unwrap();
    let mut state = Facts::default();
    while let Ok(Outgoing::Delta { body, .. }) = outgoing.try_recv() {
        match body {
            Body::Keyframe(facts) => state = facts,
            Body::Patch { patch, .. } => patch.apply(&mut state).unwrap(),
        }
    }
    assert_eq!(state.of_kind(Kind::CONTAINER).count(), 1, "nobody looked");
    let (unit, as_seen) = item(Kind::UNIT, "a", 1);
    assert_eq!(state.get(&unit), Some(&as_seen));
    assert_eq!(state.of_kind(Kind::UNIT).count(), 1, "units were looked at");
    let scopes = vec![Scope::Kind(Kind::CONTAINER)];
    say("containers", Seen::All { scopes, items: vec![], limits: vec![] }).await.unwrap();
    let seen = has_looked.wait_for(|looked| looked.unseen.is_empty()).await.unwrap();
    assert!(seen.recalled);
}

//! The outbox and endpoints that behave well, badly, and not at all.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use common::{Call, Kept, Peer, Reply, clock, rename, until};
use serde_json::json;
use sinks::{Endpoints, Leave, Outbox, Policy, Receivers, Target, deliver};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const POLICY: Policy = Policy {
    max_attempts: 1000,
    backoff: Duration::from_millis(5),
    max_backoff: Duration::from_millis(20),
    max_backoff_of_sessions: Duration::from_millis(20),
};

fn endpoints(group: &Peer, auth: &Peer, timeout: Duration) -> Endpoints {
    let (group, auth) = (group.url("/vms/group/rename-vms"), auth.url("/rename/vm"));
    Endpoints::new(Some(&group), Some(&auth), timeout).unwrap().with_policy(POLICY)
}

struct Delivering {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Delivering {
    fn start(outbox: &Outbox, endpoints: Endpoints) -> Self {
        Self::start_while(outbox, endpoints, || true)
    }

    #[expect(clippy::disallowed_methods, reason = "the test ends it, or aborts it")]
    fn start_while(outbox: &Outbox, endpoints: Endpoints, leave: impl Leave + 'static) -> Self {
        let stop = CancellationToken::new();
        let (outbox, end) = (outbox.clone(), stop.clone());
        let to = Receivers { endpoints, sessions: None, known: None };
        let task = tokio::spawn(deliver(outbox, to, clock, leave, end));
        Self { task, stop }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    /// As a kill would.
    async fn abort(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

fn keys(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(|call| call.key.as_str()).collect()
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn renames_reach_both_endpoints_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let (group, auth) =
        (Peer::start(|_| Reply::Status(200)).await, Peer::start(|_| Reply::Status(204)).await);
    let kept = Kept::open(directory.path()).await;
    let delivering = Delivering::start(&kept.outbox, endpoints(&group, &auth, SECOND));
    let mut entries = Vec::new();
    for (old, new) in [("a", "b"), ("b", "c"), ("c", "d")] {
        let drafts = [Target::Group, Target::Auth].map(|target| rename("1", target, old, new));
        entries.extend(kept.put(&drafts));
    }
    kept.empty().await;
    let (to_group, to_auth) = (group.received(), auth.received());
    let bodies: Vec<_> = to_group.iter().map(|call| call.body.clone()).collect();
    assert_eq!(
        bodies,
        [
            json!({"vms": [{"old_name": "a", "new_name": "b"}]}),
            json!({"vms": [{"old_name": "b", "new_name": "c"}]}),
            json!({"vms": [{"old_name": "c", "new_name": "d"}]}),
        ]
    );
    assert!(to_group.iter().all(|call| call.path == "/vms/group/rename-vms"));
    let bodies: Vec<_> = to_auth.iter().map(|call| call.body.clone()).collect();
    assert_eq!(
        bodies,
        [
            json!({"name": "a", "new_name": "b"}),
            json!({"name": "b", "new_name": "c"}),
            json!({"name": "c", "new_name": "d"}),
        ]
    );
    assert!(to_auth.iter().all(|call| call.path == "/rename/vm"));
    let sent: Vec<&str> = entries.iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!(keys(&to_group), [sent[0], sent[2], sent[4]]);
    assert_eq!(keys(&to_auth), [sent[1], sent[3], sent[5]]);
    delivering.end().await;

    // Nothing of it is there after a restart.
    drop(kept);
    let kept = Kept::open(directory.path()).await;
    assert_eq!(kept.outbox.list(), []);
}

/// The document of the VM `1` says what is so only once this is set.
struct Says(Arc<AtomicBool>);

impl Leave for Says {
    fn is_ours(&self) -> bool {
        true
    }

    fn may_tell(&self, vm: &str) -> bool {
        vm != "1" || self.0.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn what_no_document_says_is_told_to_nobody_and_holds_up_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let (group, auth) =
        (Peer::start(|_| Reply::Status(200)).await, Peer::start(|_| Reply::Status(200)).await);
    let kept = Kept::open(directory.path()).await;
    kept.put(&[rename("1", Target::Group, "a", "b"), rename("2", Target::Group, "x", "y")]);
    let says = Arc::new(AtomicBool::new(false));
    let to = endpoints(&group, &auth, SECOND);
    let delivering = Delivering::start_while(&kept.outbox, to, Says(Arc::clone(&says)));
    until("the other is told", || async { kept.outbox.depth() == (1, 0) }).await;
    assert_eq!(kept.outbox.list()[0].vm, "1");
    assert_eq!(group.received().len(), 1);
    says.store(true, Ordering::SeqCst);
    kept.outbox.wake();
    kept.empty().await;
    assert_eq!(group.received().len(), 2);
    delivering.end().await;
}

#[tokio::test]
async fn nothing_is_told_while_another_may_tell() {
    let directory = tempfile::tempdir().unwrap();
    let group = Arc::new(Peer::start(|_| Reply::Status(200)).await);
    let auth = Peer::start(|_| Reply::Status(200)).await;
    let kept = Kept::open(directory.path()).await;
    // Asked each time, it says no for the first few.
    let asked = Arc::new(AtomicUsize::new(0));
    let (told, count) = (Arc::clone(&group), Arc::clone(&asked));
    let is_ours = move || {
        let is_so = count.fetch_add(1, Ordering::SeqCst) >= 5;
        assert!(is_so || told.received().is_empty());
        is_so
    };
    kept.put(&[rename("1", Target::Group, "a", "b")]);
    let to = endpoints(&group, &auth, SECOND);
    let delivering = Delivering::start_while(&kept.outbox, to, is_ours);
    kept.empty().await;
    assert_eq!(group.received().len(), 1);
    assert!(asked.load(Ordering::SeqCst) > 5);
    delivering.end().await;
}

#[tokio::test]
async fn what_fails_is_tried_again_and_holds_nobody_else_up() {
    let directory = tempfile::tempdir().unwrap();
    // The first VM's calls fail three times each, in three ways.
    let mut tries: HashMap<String, usize> = HashMap::new();
    let group = Peer::start(move |call| {
        if call.body["vms"][0]["old_name"].as_str().unwrap().starts_with("slow") {
            let tries = tries.entry(call.key.clone()).or_default();
            *tries += 1;
            match *tries {
                1 => return Reply::Status(500),
                2 => return Reply::HangUp,
                3 => return Reply::Never,
                _ => {}
            }
        }
        Reply::Status(200)
    })
    .await;
    let auth = Peer::start(|_| Reply::Status(302)).await;
    let kept = Kept::open(directory.path()).await;
    let slow = kept.put(&[
        rename("1", Target::Group, "slow-a", "slow-b"),
        rename("1", Target::Group, "slow-b", "slow-c"),
    ]);
    let others: Vec<_> = (2..40)
        .map(|vm| rename(&vm.to_string(), Target::Group, &format!("x{vm}"), &format!("y{vm}")))
        .collect();
    kept.put(&others);
    let delivering =
        Delivering::start(&kept.outbox, endpoints(&group, &auth, Duration::from_millis(300)));
    until("the others arrived", || async { group.accepted().len() >= others.len() }).await;
    kept.empty().await;
    let accepted = group.accepted();
    assert_eq!(accepted.len(), others.len() + slow.len(), "each arrived once");
    let slow_keys: Vec<String> = group
        .received()
        .into_iter()
        .filter(|call| slow.iter().any(|entry| entry.id == call.key))
        .map(|call| call.key)
        .collect();
    let wanted: Vec<String> =
        slow.iter().flat_map(|entry| std::iter::repeat_n(entry.id.clone(), 4)).collect();
    assert_eq!(slow_keys, wanted, "the same key each time, and the second not before the first");
    assert!(group.most_open() <= 8, "{} at once", group.most_open());
    assert!(group.most_open() > 1, "different VMs go side by side");

    // A redirect is no success.
    kept.put(&[rename("1", Target::Auth, "a", "b")]);
    until("it was tried", || async {
        kept.outbox.list().first().is_some_and(|entry| entry.attempts > 2)
    })
    .await;
    let reason = kept.outbox.list()[0].last_error.clone().unwrap();
    assert!(reason.contains("302") && reason.contains("redirects are not followed"), "{reason}");
    delivering.end().await;
}

#[tokio::test]
async fn what_failed_too_often_waits_for_somebody() {
    let directory = tempfile::tempdir().unwrap();
    let (group, auth) =
        (Peer::start(|_| Reply::Status(500)).await, Peer::start(|_| Reply::Status(200)).await);
    let policy = Policy { max_attempts: 3, ..POLICY };
    let kept = Kept::open(directory.path()).await;
    let entries = kept.put(&[
        rename("1", Target::Group, "a", "b"),
        rename("1", Target::Group, "b", "c"),
        rename("1", Target::Auth, "a", "b"),
    ]);
    let to = endpoints(&group, &auth, SECOND).with_policy(policy);
    let delivering = Delivering::start(&kept.outbox, to.clone());
    until("it is dead", || async { kept.outbox.depth() == (1, 1) }).await;
    assert_eq!(auth.received().len(), 1, "the other endpoint has nothing to do with it");
    delivering.end().await;
    drop(kept);

    // It is after a restart, too, and nobody is called.
    let kept = Kept::open(directory.path()).await;
    let delivering = Delivering::start(&kept.outbox, to);
    let list = kept.outbox.list();
    assert_eq!((list[0].dead, list[0].attempts, list[1].dead), (true, 3, false));
    assert_eq!(
        list[0].last_error.as_deref(),
        Some("the endpoint answered 500 Internal Server Error")
    );
    // What is put in for another VM goes past it, so the task has looked at the queue.
    kept.put(&[rename("2", Target::Auth, "x", "y")]);
    until("the other arrived", || async { auth.received().len() == 2 }).await;
    assert_eq!(keys(&group.received()), [&entries[0].id; 3]);

    group.behave(|_| Reply::Status(200));
    assert_eq!(kept.outbox.retry_dead(clock()).unwrap(), 1);
    kept.empty().await;
    assert_eq!(keys(&group.accepted()), [&entries[0].id, &entries[1].id]);
    delivering.end().await;
}

#[tokio::test]
async fn a_kill_in_the_middle_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (group, auth) =
        (Peer::start(|_| Reply::Never).await, Peer::start(|_| Reply::Status(200)).await);
    let mut accepted = 0;
    let mut entries = Vec::new();
    for round in 0..5 {
        let kept = Kept::open(directory.path()).await;
        let (old, new) = (format!("n{round}"), format!("n{}", round + 1));
        entries.extend(
            kept.put(&[
                rename("1", Target::Group, &old, &new),
                rename("1", Target::Auth, &old, &new),
            ]),
        );
        let delivering = Delivering::start(&kept.outbox, endpoints(&group, &auth, 20 * SECOND));
        let before = group.received().len();
        until("a call is under way", || async { group.received().len() > before }).await;
        until("the other is recorded", || async {
            kept.outbox.list().iter().all(|entry| entry.target == Target::Group)
        })
        .await;
        delivering.abort().await;
        accepted += 1;
        assert_eq!(auth.accepted().len(), accepted, "what is recorded is not sent again");
    }
    group.behave(|_| Reply::Status(200));
    let kept = Kept::open(directory.path()).await;
    let delivering = Delivering::start(&kept.outbox, endpoints(&group, &auth, SECOND));
    kept.empty().await;
    delivering.end().await;
    let first = &entries[0].id;
    assert_eq!(keys(&group.received())[..6], [first; 6], "the same key each time");
    let wanted: Vec<&str> = entries.iter().step_by(2).map(|entry| entry.id.as_str()).collect();
    assert_eq!(keys(&group.accepted()), wanted);
    assert_eq!(auth.accepted().len(), 5);
}

#[tokio::test]
async fn an_endpoint_that_is_away_has_everything_when_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let gone = Peer::start(|_| Reply::Status(200)).await;
    let auth = Peer::start(|_| Reply::Status(200)).await;
    let address = gone.address;
    let to = endpoints(&gone, &auth, SECOND);
    drop(gone);
    let kept = Kept::open(directory.path()).await;
    let delivering = Delivering::start(&kept.outbox, to);
    let mut wanted: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for round in 0..3 {
        for vm in 0..20 {
            let (vm, old, new) =
                (vm.to_string(), format!("v{vm}-{round}"), format!("v{vm}-{}", round + 1));
            let entry = kept.put(&[rename(&vm, Target::Group, &old, &new)]).remove(0);
            wanted.entry(vm).or_default().push(entry.id);
        }
    }
    until("all were tried", || async {
        let list = kept.outbox.list();
        list.iter().filter(|entry| entry.attempts > 0).count() == 20
    })
    .await;
    let reason = kept.outbox.list()[0].last_error.clone().unwrap();
    assert!(reason.contains("could not connect"), "{reason}");
    let back = Peer::at(address, |_| Reply::Status(200)).await;
    kept.empty().await;
    let received = back.received();
    assert_eq!(received.len(), 60);
    for keys_of_vm in wanted.values() {
        let order: Vec<&String> =
            received.iter().map(|call| &call.key).filter(|key| keys_of_vm.contains(key)).collect();
        assert_eq!(order, keys_of_vm.iter().collect::<Vec<_>>());
    }
    delivering.end().await;
}

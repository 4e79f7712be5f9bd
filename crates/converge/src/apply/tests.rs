//! Plans carried out below a directory: order, what fails and what it stops, and files.

use super::*;
use model::plan::{PutFile, Step};
use model::spec::{Mode, Source};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Mutex;

fn step(action: Action, needs: &[usize], after: &[usize]) -> Step {
    let subject = "file:/x".parse().unwrap();
    Step { subject, action, why: String::new(), needs: needs.to_vec(), after: after.to_vec() }
}

fn write(path: &str, source: Source, owner: &str) -> Action {
    Action::PutFile(PutFile {
        path: path.parse().unwrap(),
        source,
        mode: Mode::PLAIN,
        owner: owner.parse().unwrap(),
        group: "us".parse().unwrap(),
    })
}

fn made(text: &str) -> Source {
    Source::Made(text.to_owned())
}

/// A machine that knows one user, who is the one that runs this.
fn machine() -> (tempfile::TempDir, Machine) {
    let root = tempfile::tempdir().unwrap();
    let here = fs::metadata(root.path()).unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/passwd"), format!("me:x:{}:0::/:\n", here.uid())).unwrap();
    fs::write(root.path().join("etc/group"), format!("us:x:{}:\n", here.gid())).unwrap();
    let machine = Machine {
        root: root.path().to_owned(),
        docker: root.path().join("none.sock"),
        relay: None,
    };
    (root, machine)
}

async fn carry_out(machine: &Machine, steps: Vec<Step>) -> (Vec<Outcome>, Vec<Event>) {
    let plan = Plan::new(steps, Vec::new()).unwrap();
    let events = Mutex::new(Vec::new());
    let contents: Contents =
        Arc::new(|id| (*id == ContentId::of(b"stored")).then(|| b"stored".to_vec()));
    let tell = |event: Event| events.lock().unwrap().push(event);
    let outcomes = apply(machine, &plan, &contents, &tell, std::future::pending()).await;
    (outcomes, events.into_inner().unwrap())
}

#[tokio::test]
async fn files_are_written_once() {
    let (root, machine) = machine();
    let steps = || {
        let link =
            Action::PutLink { path: "/etc/l".parse().unwrap(), target: "../x".parse().unwrap() };
        vec![
            step(write("/etc/a/b", Source::Stored(ContentId::of(b"stored")), "me"), &[], &[]),
            step(write("/etc/{{ x }} $(y)", made("{{ x }}\n$(y)\n"), "me"), &[], &[0]),
            step(link, &[], &[]),
            step(Action::RemoveFile("/etc/gone".parse().unwrap()), &[], &[]),
        ]
    };
    fs::write(root.path().join("etc/gone"), "").unwrap();
    let (outcomes, _) = carry_out(&machine, steps()).await;
    assert_eq!(outcomes, vec![Outcome::Changed; 4]);
    assert_eq!(fs::read(root.path().join("etc/a/b")).unwrap(), b"stored");
    assert_eq!(
        fs::read_to_string(root.path().join("etc/{{ x }} $(y)")).unwrap(),
        "{{ x }}\n$(y)\n"
    );
    let (outcomes, _) = carry_out(&machine, steps()).await;
    assert_eq!(outcomes, vec![Outcome::Already; 4]);
    // A mode that somebody changed is put right, without a word about the content.
    let path = root.path().join("etc/a/b");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let (outcomes, _) = carry_out(&machine, steps()).await;
    assert_eq!(outcomes.iter().filter(|o| **o == Outcome::Changed).count(), 1);
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o644);
}

#[tokio::test]
async fn a_failure_stops_what_needs_it_and_nothing_else() {
    let (root, machine) = machine();
    let (outcomes, events) = carry_out(
        &machine,
        vec![
            step(write("/etc/a", made("a"), "nobody-here"), &[], &[]),
            step(write("/etc/b", made("b"), "me"), &[0], &[]),
            step(write("/etc/c", made("c"), "me"), &[1], &[]),
            step(write("/etc/d", made("d"), "me"), &[], &[0, 2]),
            step(write("/etc/e", Source::Stored(ContentId::of(b"other")), "me"), &[], &[]),
            step(Action::StartContainer("web".parse().unwrap()), &[], &[]),
        ],
    )
    .await;
    let text = |outcome: &Outcome| match outcome {
        Outcome::Failed(what) => what.clone(),
        other => format!("{other:?}"),
    };
    let told: Vec<String> = outcomes.iter().map(text).collect();
    assert_eq!(told[0], "there is no user nobody-here here");
    assert_eq!(told[1..4], ["Skipped { needs: 0 }", "Skipped { needs: 1 }", "Changed"]);
    assert!(
        told[4].ends_with("was not sent along") && told[5].starts_with("nobody listens"),
        "{told:?}"
    );
    assert!(!root.path().join("etc/b").exists() && root.path().join("etc/d").exists());
    for at in 0..6 {
        let ends = events.iter().filter(|e| matches!(e, Event::Ended { step, .. } if *step == at));
        assert_eq!(ends.count(), 1, "{events:?}");
    }
}

#[tokio::test]
async fn what_is_not_begun_is_cancelled() {
    let (_root, machine) = machine();
    let steps = vec![step(write("/etc/a", made("a"), "me"), &[], &[])];
    let plan = Plan::new(steps, Vec::new()).unwrap();
    let contents: Contents = Arc::new(|_| None);
    let outcomes = apply(&machine, &plan, &contents, &|_| {}, std::future::ready(())).await;
    assert_eq!(outcomes, [Outcome::Cancelled]);
}

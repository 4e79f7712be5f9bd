//! Documents.

use crate::common::until;
use crate::process::Process;
use model::Time;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, doc};
use mongodb::{Client, Collection};
use sinks::{Error, Known, Lease, MongoSettings, MongoSink, Target, VmDocument, Written, stamp};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

async fn server(further: &[&str]) -> Process {
    Process::start("SAFETYTWIN_FERRETDB", |port, directory| {
        let fixed = [
            "--handler=sqlite".to_owned(),
            // It would sync to the disk after each document; what is killed here is a process.
            format!("--sqlite-url=file:{directory}/?_pragma=synchronous(off)"),
            format!("--state-dir={directory}"),
            format!("--listen-addr=127.0.0.1:{port}"),
            "--debug-addr=-".to_owned(),
            "--telemetry=disable".to_owned(),
            "--log-level=error".to_owned(),
        ];
        fixed.into_iter().chain(further.iter().map(|&argument| argument.to_owned())).collect()
    })
    .await
}

fn settings(server: &Process) -> MongoSettings {
    MongoSettings {
        host: "127.0.0.1".to_owned(),
        port: server.port,
        username: None,
        password: None,
        db: "esxi".to_owned(),
        collection: "vms".to_owned(),
        timeout: Duration::from_secs(10),
    }
}

fn sink(server: &Process) -> MongoSink {
    MongoSink::new(settings(server)).unwrap()
}

async fn collection(server: &Process) -> Collection<Document> {
    let client = Client::with_uri_str(format!("mongodb://127.0.0.1:{}/", server.port)).await;
    client.unwrap().database("esxi").collection("vms")
}

/// All documents, by their ids.
async fn all(collection: &Collection<Document>) -> BTreeMap<String, Document> {
    let mut cursor = collection.find(doc! {}).await.unwrap();
    let mut all = BTreeMap::new();
    while cursor.advance().await.unwrap() {
        let document = Document::try_from(cursor.current()).unwrap();
        all.insert(document.get("_id").unwrap().to_string(), document);
    }
    all
}

async fn one(collection: &Collection<Document>, uuid: &str) -> Document {
    collection.find_one(doc! { "uuid": uuid }).await.unwrap().unwrap()
}

fn at(seconds: u64) -> Time {
    stamp::read("01-07-2024: 12:34:00").unwrap().plus(Duration::from_secs(seconds))
}

fn document(uuid: &str, name: &str) -> VmDocument {
    VmDocument {
        uuid: uuid.to_owned(),
        esxi_host_addr: Some("192.0.2.17".to_owned()),
        name: name.to_owned(),
        hostname: Some(format!("{name}.example")),
        addr: None,
        power_state: "on".to_owned(),
        vmware_tools: "guestToolsRunning".to_owned(),
        orphan_since: None,
        last_sync_time: at(0),
    }
}

fn counts(written: &Written) -> (usize, usize, usize) {
    assert_eq!(written.failed, [], "{written:?}");
    (written.added, written.updated, written.changed)
}

#[tokio::test]
async fn documents_are_as_the_application_reads_them() {
    let server = server(&[]).await;
    let (sink, vms) = (sink(&server), collection(&server).await);
    assert_eq!(counts(&sink.write(&[document("u1", "vm-01")]).await.unwrap()), (1, 0, 0));
    let mut stored = one(&vms, "u1").await;
    assert!(matches!(stored.remove("_id"), Some(Bson::ObjectId(_))));
    assert_eq!(
        BTreeMap::from_iter(stored),
        BTreeMap::from_iter(doc! {
            "esxi_host_addr": "192.0.2.17", "name": "vm-01", "hostname": "vm-01.example",
            "addr": Bson::Null, "uuid": "u1", "power_state": "on",
            "vmware_tools": "guestToolsRunning", "orphan": false, "orphan_since": Bson::Null,
            "last_sync_time": "01-07-2024: 12:34:00",
        })
    );
    let gone = VmDocument {
        orphan_since: Some(at(60)),
        last_sync_time: at(120),
        hostname: None,
        ..document("u1", "vm-02")
    };
    assert_eq!(counts(&sink.write(std::slice::from_ref(&gone)).await.unwrap()), (0, 1, 1));
    let stored = one(&vms, "u1").await;
    assert_eq!(stored.get_str("name").unwrap(), "vm-02");
    assert_eq!(stored.get_str("hostname").unwrap(), "vm-01.example");
    assert!(stored.get_bool("orphan").unwrap());
    assert_eq!(stored.get_str("orphan_since").unwrap(), "01-07-2024: 12:35:00");
    assert_eq!(stored.get_str("last_sync_time").unwrap(), "01-07-2024: 12:36:00");
    let again = VmDocument { orphan_since: Some(at(999)), ..gone };
    assert_eq!(counts(&sink.write(std::slice::from_ref(&again)).await.unwrap()), (0, 1, 0));
    assert_eq!(one(&vms, "u1").await, stored, "an orphan since it is one");
    assert_eq!(
        sink.load(&["192.0.2.17".to_owned()]).await.unwrap().documents,
        [VmDocument {
            orphan_since: Some(at(60)),
            hostname: Some("vm-01.example".to_owned()),
            ..again
        }]
    );
    assert_eq!(sink.load(&["192.0.2.18".to_owned()]).await.unwrap().documents, []);
}

#[tokio::test]
async fn what_others_keep_there_stays_as_it_is() {
    let server = server(&[]).await;
    let (sink, vms) = (sink(&server), collection(&server).await);
    let theirs = [
        doc! { "_id": "settings", "theme": "dark", "name": "vm-01" },
        doc! { "_id": 7_i64, "uuid": 12, "esxi_host_addr": "192.0.2.17" },
        // Of the service before, with the application's own fields.
        doc! {
            "_id": ObjectId::new(), "notes": { "by": ["x", 1.5, Bson::Null] }, "uuid": "u1",
            "name": "vm-01", "esxi_host_addr": "192.0.2.17", "hostname": Bson::Null,
            "orphan": true, "orphan_since": "30-06-2024: 08:00:00", "group_id": 4_i64,
        },
        // A second one of the same VM, which somebody made. The least id counts.
        doc! { "_id": ObjectId::from_bytes([0xff; 12]), "uuid": "u1", "name": "copy" },
    ];
    vms.insert_many(&theirs).await.unwrap();
    let before = all(&vms).await;

    let loaded = sink.load(&["192.0.2.17".to_owned()]).await.unwrap();
    assert_eq!(loaded.documents.len(), 1);
    assert_eq!(loaded.documents[0].orphan_since, stamp::read("30-06-2024: 08:00:00"));
    assert_eq!(loaded.unreadable, ["document 7: its `uuid` is no text"]);

    let documents = [document("u1", "vm-01"), document("u2", "vm-02")];
    let written = sink.write(&documents).await.unwrap();
    assert_eq!(counts(&written), (1, 1, 1));
    let after = all(&vms).await;
    assert_eq!(after.len(), 5);
    let id = theirs[2].get("_id").unwrap().to_string();
    for (other, document) in &before {
        if *other != id {
            assert_eq!(after[other], *document);
        }
    }
    let mut wanted = theirs[2].clone();
    wanted.extend(doc! {
        "hostname": "vm-01.example", "orphan": false, "orphan_since": Bson::Null,
        "power_state": "on", "vmware_tools": "guestToolsRunning",
        "last_sync_time": "01-07-2024: 12:34:00",
    });
    assert_eq!(BTreeMap::from_iter(after[&id].clone()), BTreeMap::from_iter(wanted));

    // A copy of ours with a lesser id is not taken for ours.
    let mut copy = one(&vms, "u2").await;
    copy.insert("_id", ObjectId::from_bytes([0; 12]));
    vms.insert_one(&copy).await.unwrap();
    let renamed = VmDocument { name: "vm-03".to_owned(), ..document("u2", "vm-02") };
    assert_eq!(counts(&sink.write(&[renamed]).await.unwrap()), (0, 1, 1));
    assert_eq!(all(&vms).await[&copy.get("_id").unwrap().to_string()], copy);
    vms.delete_one(doc! { "_id": ObjectId::from_bytes([0; 12]) }).await.unwrap();
    assert_eq!(one(&vms, "u2").await.get_str("name").unwrap(), "vm-03");
    assert_eq!(counts(&sink.write(&documents).await.unwrap()), (0, 2, 1));

    // What somebody sets meanwhile is not taken back.
    let set = doc! { "$set": { "notes": "mine", "_marked": true } };
    vms.update_one(doc! { "uuid": "u2" }, set).await.unwrap();
    assert_eq!(counts(&sink.write(&documents).await.unwrap()), (0, 2, 0));
    let stored = one(&vms, "u2").await;
    assert_eq!(stored.get_str("notes").unwrap(), "mine");
    assert!(stored.get_bool("_marked").unwrap());
}

#[tokio::test]
async fn a_look_at_all_is_not_believed_for_what_was_written_since() {
    let server = server(&[]).await;
    let (sink, vms) = (sink(&server), collection(&server).await);
    // Of the service before: to be found by their uuids only.
    let theirs = (0..100).map(|vm| doc! { "_id": vm, "uuid": format!("u{vm:03}"), "group": "g" });
    vms.insert_many(theirs).await.unwrap();
    let named = |name: &str| -> Vec<VmDocument> {
        (0..200).map(|vm| document(&format!("u{vm:03}"), &format!("{name}-{vm}"))).collect()
    };
    assert_eq!(counts(&sink.write(&named("a")).await.unwrap()), (100, 100, 100));
    assert_eq!(counts(&sink.write(&named("b")).await.unwrap()), (0, 200, 200));
    // By a few at a time in between, and back.
    for few in named("a").chunks(20) {
        assert_eq!(counts(&sink.write(few).await.unwrap()), (0, 20, 20));
    }
    assert_eq!(counts(&sink.write(&named("b")).await.unwrap()), (0, 200, 200));
    // Somebody takes one away meanwhile.
    vms.delete_one(doc! { "uuid": "u007" }).await.unwrap();
    assert_eq!(counts(&sink.write(&named("a")).await.unwrap()), (1, 199, 199));
    let stored = all(&vms).await;
    assert_eq!(stored.len(), 200);
    assert_eq!(stored.values().filter(|one| one.get_str("group").is_ok()).count(), 99);
    for document in named("a") {
        assert_eq!(one(&vms, &document.uuid).await.get_str("name").unwrap(), document.name);
    }
}

#[tokio::test]
async fn ten_thousand_are_written_in_batches() {
    const VMS: usize = 10_000;
    let server = server(&[]).await;
    let (sink, vms) = (sink(&server), collection(&server).await);
    let mut documents: Vec<VmDocument> =
        (0..VMS).map(|vm| document(&format!("u{vm:05}"), &format!("vm-{vm}"))).collect();
    let begin = Instant::now();
    assert_eq!(counts(&sink.write(&documents).await.unwrap()), (VMS, 0, 0));
    let added = begin.elapsed();
    for document in documents.iter_mut().step_by(10) {
        document.power_state = "off".to_owned();
    }
    let begin = Instant::now();
    assert_eq!(counts(&sink.write(&documents).await.unwrap()), (0, VMS, VMS / 10));
    let updated = begin.elapsed();
    let begin = Instant::now();
    let loaded = sink.load(&["192.0.2.17".to_owned()]).await.unwrap();
    println!(
        "{VMS} documents: added in {} ms, updated in {} ms, loaded in {} ms",
        added.as_millis(),
        updated.as_millis(),
        begin.elapsed().as_millis()
    );
    let mut stored = loaded.documents;
    stored.sort_by(|a, b| a.uuid.cmp(&b.uuid));
    assert_eq!(stored, documents);
    assert_eq!(vms.count_documents(doc! {}).await.unwrap(), VMS as u64);
    // Of one VM the last counts.
    let twice = [document("u00000", "first"), document("u00000", "second")];
    assert_eq!(counts(&sink.write(&twice).await.unwrap()), (0, 1, 1));
    assert_eq!(one(&vms, "u00000").await.get_str("name").unwrap(), "second");
}

#[tokio::test]
async fn a_server_that_is_killed_has_each_document_once() {
    const VMS: usize = 12_000;
    let mut server = server(&[]).await;
    let sink = sink(&server);
    let documents: Vec<VmDocument> =
        (0..VMS).map(|vm| document(&format!("u{vm:05}"), &format!("vm-{vm}"))).collect();
    sink.write(&documents[..1]).await.unwrap();
    for _ in 0..3 {
        let before = collection(&server).await.count_documents(doc! {}).await.unwrap();
        let mut writing = JoinSet::new();
        let (task, all) = (sink.clone(), documents.clone());
        writing.spawn(async move { task.write(&all).await });
        let vms = collection(&server).await;
        until("it is in the middle", || async {
            vms.count_documents(doc! {}).await.unwrap() > before
        })
        .await;
        server.kill();
        let error = writing.join_all().await.remove(0).unwrap_err();
        assert!(error.is_retriable(), "{error:?}");
        let error = sink.write(&documents).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        server.up().await;
    }
    sink.write(&documents).await.unwrap();
    let mut stored = sink.load(&["192.0.2.17".to_owned()]).await.unwrap().documents;
    stored.sort_by(|a, b| a.uuid.cmp(&b.uuid));
    assert_eq!(stored, documents);
}

#[tokio::test]
async fn one_that_does_not_answer_has_a_deadline() {
    let server = server(&[]).await;
    let timeout = Duration::from_millis(500);
    let sink = MongoSink::new(MongoSettings { timeout, ..settings(&server) }).unwrap();
    let documents = [document("u1", "vm-01")];
    sink.write(&documents).await.unwrap();
    server.freeze();
    let begin = Instant::now();
    for _ in 0..2 {
        let error = sink.write(&documents).await.unwrap_err();
        assert!(error.is_retriable(), "{error:?}");
    }
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    server.thaw();
    until("it goes on", || async { sink.write(&documents).await.is_ok() }).await;
}

#[tokio::test]
async fn who_may_not_is_told_so() {
    let server = server(&[
        "--test-enable-new-auth=true",
        "--setup-database=admin",
        "--setup-username=sync",
        "--setup-password=right-word",
    ])
    .await;
    let user = |password: &str| MongoSettings {
        username: Some("sync".to_owned()),
        password: Some(password.to_owned()),
        ..settings(&server)
    };
    let documents = [document("u1", "vm-01")];
    let right = MongoSink::new(user("right-word")).unwrap();
    assert_eq!(counts(&right.write(&documents).await.unwrap()), (1, 0, 0));
    for wrong in [user("wrong-word"), settings(&server)] {
        let error = MongoSink::new(wrong).unwrap().write(&documents).await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{error:?}");
        assert!(!format!("{error:?}").contains("-word"), "{error:?}");
    }
}

#[tokio::test]
async fn of_two_documents_of_a_vm_that_is_read_which_is_written() {
    let server = server(&[]).await;
    let (sink, vms) = (sink(&server), collection(&server).await);
    sink.write(&[document("u1", "ours")]).await.unwrap();
    for (id, name) in [([0; 12], "before"), ([0xff; 12], "behind")] {
        let theirs = doc! {
            "_id": ObjectId::from_bytes(id), "uuid": "u1", "name": name,
            "esxi_host_addr": "192.0.2.17",
        };
        vms.insert_one(theirs).await.unwrap();
    }
    let loaded = sink.load(&["192.0.2.17".to_owned()]).await.unwrap();
    let names: Vec<&str> = loaded.documents.iter().map(|one| one.name.as_str()).collect();
    assert_eq!((names, loaded.unreadable.len()), (vec!["ours"], 2));
}

#[tokio::test]
async fn one_has_the_lease() {
    let server = server(&[]).await;
    let (a, b) = (sink(&server), sink(&server));
    let (minute, short) = (Duration::from_secs(60), Duration::from_millis(300));
    let of_one = Lease::Others("one".to_owned());
    assert_eq!(a.lease("one", minute).await.unwrap(), Lease::TakenOver);
    assert_eq!(b.lease("other", minute).await.unwrap(), of_one);
    assert_eq!(a.lease("one", minute).await.unwrap(), Lease::Ours);
    b.release("other").await.unwrap();
    assert_eq!(b.lease("other", minute).await.unwrap(), of_one, "it was not its own");
    assert!(a.renew("one", short).await.unwrap());
    until("it ended", || async { b.lease("other", minute).await.unwrap() == Lease::TakenOver })
        .await;
    assert_eq!(a.lease("one", minute).await.unwrap(), Lease::Others("other".to_owned()));
    b.release("other").await.unwrap();
    assert!(!a.renew("one", minute).await.unwrap(), "it is not its own");
    assert_eq!(a.lease("one", minute).await.unwrap(), Lease::TakenOver);
    assert!(a.renew("one", minute).await.unwrap());
    // Given back, and nobody had it since.
    a.release("one").await.unwrap();
    assert_eq!(a.lease("one", minute).await.unwrap(), Lease::Ours);

    // Of many at once one gets it. What FerretDB finds and what it then writes is not one step, as
    // it is in MongoDB, but when it is inserted.
    let client = Client::with_uri_str(format!("mongodb://127.0.0.1:{}/", server.port)).await;
    let leases: Collection<Document> =
        client.unwrap().database("esxi").collection("safetytwin_leases");
    assert_eq!(leases.delete_many(doc! {}).await.unwrap().deleted_count, 1);
    let mut asking = JoinSet::new();
    for holder in 0..8 {
        let sink = sink(&server);
        asking.spawn(async move { sink.lease(&format!("h{holder}"), minute).await.unwrap() });
    }
    let leases = asking.join_all().await;
    let taken = leases.iter().filter(|lease| **lease == Lease::TakenOver).count();
    assert_eq!(taken, 1, "{leases:?}");
}

#[tokio::test]
async fn what_others_know_is_noted() {
    let server = server(&[]).await;
    let sink = sink(&server);
    let known = |target, vm: &str, name: &str, is_orphan| Known {
        target,
        vm: vm.to_owned(),
        name: name.to_owned(),
        is_orphan,
    };
    let all = async || {
        let mut known = sink.known().await.unwrap();
        known.sort_by(|a, b| (a.target, &a.vm).cmp(&(b.target, &b.vm)));
        known
    };
    assert_eq!(all().await, []);
    let first = known(Target::Group, "u1", "web", false);
    let other = known(Target::Sessions, "u1", "we$b.1", true);
    sink.note_first(&[first.clone(), other.clone()]).await.unwrap();
    // What is noted already is newer.
    sink.note_first(&[known(Target::Group, "u1", "older", false)]).await.unwrap();
    assert_eq!(all().await, [other.clone(), first]);
    let later = known(Target::Group, "u1", "web2", false);
    sink.note(std::slice::from_ref(&later)).await.unwrap();
    assert_eq!(all().await, [other, later]);
    let many: Vec<Known> =
        (0..1200).map(|n| known(Target::Auth, &format!("u{n:04}"), "web", false)).collect();
    sink.note(&many).await.unwrap();
    assert_eq!(all().await.len(), 1202);
}

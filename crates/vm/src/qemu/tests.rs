use super::*;
use crate::image::SnapshotName;
use crate::machine::State;
use crate::qemu::home::{Layer, Manifest};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

fn damage(home: &Home) {
    fs::write(home.dir.join("machine.json"), "{").unwrap();
}

/// A snapshot of the disk, which stands on this layer.
fn snapshot(home: &Home, name: &str, layer: u64) -> SnapshotName {
    let name: SnapshotName = name.parse().unwrap();
    home::make(&home.partial(&name)).unwrap();
    let definition = home.load().unwrap();
    let manifest = Manifest {
        format: Manifest::FORMAT,
        name: name.clone(),
        at: model::Time(1),
        labels: BTreeMap::new(),
        pause_us: 0,
        layer,
        hardware: definition.hardware,
        moment: None,
    };
    home.seal(&manifest).unwrap();
    name
}

#[tokio::test]
async fn a_port_that_another_has_is_left_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = fake::qemu(dir.path());
    let one = fake::machine(&qemu, "one", Below::Image);
    let _process = fake::give_power(&one);
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = other.local_addr().unwrap().port();
    one.change(|definition| definition.ssh_port = Some(taken)).unwrap();
    // As QEMU does: it listens, or says why not.
    let mut listening = Vec::new();
    let _monitor = fake::answer(&one, command::MONITOR, move |command, arguments| {
        let line = arguments["command-line"].as_str().unwrap_or_default();
        let Some((_, rest)) = line.split_once("127.0.0.1:") else { return Some(json!({})) };
        assert_eq!(command, "human-monitor-command");
        let port: u16 = rest.split_once('-').unwrap().0.parse().unwrap();
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => {
                listening.push(listener);
                Some(json!(""))
            }
            Err(_) => Some(json!(format!("Could not set up host forwarding rule '{line}'\r\n"))),
        }
    });
    let (_dir, monitor) = process::socket(&one.run(1), command::MONITOR).unwrap();
    let qmp = qmp::Qmp::connect(&monitor, Duration::from_secs(30)).await.unwrap();
    let told = Arc::new(Mutex::new(String::new()));
    let hears = Arc::clone(&told);
    let job = fake::job_told(move |progress| *hears.lock().unwrap() += &format!("{progress:?}"));
    let mut started = power::Started { qmp, ssh_port: None };
    qemu.open_way_in(&one, &mut started, &job).await.unwrap();
    let port = one.load().unwrap().ssh_port.unwrap();
    assert_ne!(port, taken);
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let told = told.lock().unwrap().clone();
    assert!(told.contains(&format!("port {taken} is taken")), "{told}");
    assert!(told.contains(&format!("SSH is at {port} now")), "{told}");
}

#[tokio::test]
async fn a_machine_that_can_not_be_read_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = fake::qemu(dir.path());
    let one = fake::machine(&qemu, "one", Below::Image);
    let two = fake::machine(&qemu, "two", Below::Image);
    damage(&two);
    let names: Vec<_> = qemu.list().await.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["one", "two"]);
    let unread = qemu.show(&two.name).await.unwrap_err();
    assert!(unread.is_damage() && unread.to_string().contains("or delete it"), "{unread}");
    let used = qemu.images_in_use().await.unwrap();
    assert_eq!(
        used[&fake::IMAGE.parse::<ImageId>().unwrap()],
        [one.name.clone(), two.name.clone()]
    );
    qemu.collect(&one).unwrap();
    qemu.power_off(&one.name).await.unwrap();
    qemu.forget(&one.name).await.unwrap();
    qemu.forget(&two.name).await.unwrap();
    assert!(matches!(qemu.forget(&two.name).await, Err(Error::Unknown { .. })));
}

#[tokio::test]
async fn a_machine_that_can_not_be_read_is_ended_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = fake::qemu(dir.path());
    let one = fake::machine(&qemu, "one", Below::Image);
    let mut process = fake::give_power(&one);
    damage(&one);
    assert!(matches!(qemu.forget(&one.name).await, Err(Error::Running { .. })));
    let (ended, off) = tokio::join!(process.wait(), qemu.power_off(&one.name));
    assert!(!ended.unwrap().success());
    off.unwrap();
    qemu.forget(&one.name).await.unwrap();
    assert!(!one.dir.exists());
}

#[tokio::test]
async fn a_machine_is_there_as_a_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = fake::qemu(dir.path());
    let one = fake::machine(&qemu, "one", Below::Image);
    let two = Machine {
        name: "two".parse().unwrap(),
        image: fake::IMAGE.parse().unwrap(),
        memory_bytes: 1 << 30,
        processors: 1,
        disk_bytes: 0,
        mac: "52:54:00:00:00:02".parse().unwrap(),
        network: crate::machine::Network::Isolated,
        seed: Vec::new(),
    };
    let definition = Definition::of(&two, Below::Image);
    let none = (dir.path().join("none.qcow2"), None);
    qemu.begin(&two, &definition, none, &fake::job()).await.unwrap_err();
    assert_eq!(home::entries(dir.path()).unwrap(), ["one"]);
    // As a killed server leaves it.
    let partial = Home::in_the_making(dir.path(), &two.name);
    partial.make().unwrap();
    assert_eq!(qemu.list().await.unwrap(), std::slice::from_ref(&one.name));
    home::sweep_partial(dir.path()).unwrap();
    assert_eq!(home::entries(dir.path()).unwrap(), ["one"]);
    partial.make().unwrap();
    let made = qemu.begin(&two, &definition, (one.layer(1), None), &fake::job()).await.unwrap();
    assert_eq!(made.load().unwrap(), definition);
    assert_eq!(home::entries(dir.path()).unwrap(), ["one", "two"]);
    assert_eq!(layer::below(&made.layer(1)).unwrap(), Path::new("../../one/layers/1.qcow2"));
    let again = qemu.begin(&two, &definition, (one.layer(1), None), &fake::job()).await;
    assert!(matches!(again, Err(Error::Exists { .. })), "{again:?}");
    // What had a name is nothing half-made, whatever became of it.
    fs::remove_file(one.dir.join("machine.json")).unwrap();
    home::sweep_partial(dir.path()).unwrap();
    assert!(qemu.show(&one.name).await.unwrap_err().is_damage());
}

#[tokio::test]
async fn what_an_unreadable_clone_stands_on_stays() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = fake::qemu(dir.path());
    let one = fake::machine(&qemu, "one", Below::Image);
    // The machine itself went on from 1 to 2.
    one.change(|definition| {
        let layer = Layer { below: Below::Image, sealed: None, merged: None };
        definition.layers.insert(2, layer);
        definition.active = 2;
    })
    .unwrap();
    let of = Below::Of { machine: one.name.clone(), layer: 1 };
    let two = fake::machine(&qemu, "two", of);
    damage(&two);
    qemu.collect(&one).unwrap();
    assert!(one.load().unwrap().layers.contains_key(&1));
    assert!(matches!(qemu.forget(&one.name).await, Err(Error::Cloned { .. })));
    qemu.forget(&two.name).await.unwrap();
    let left: BTreeSet<u64> = one.load().unwrap().layers.into_keys().collect();
    assert_eq!(left, BTreeSet::from([2]));
    qemu.forget(&one.name).await.unwrap();
}

#[tokio::test]
async fn a_damaged_snapshot_is_listed_and_deleted_and_the_others_too() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = fake::qemu(dir.path());
    let one = fake::machine(&qemu, "one", Below::Image);
    let names = ["a", "b", "c"].map(|name| snapshot(&one, name, 1));
    for name in &names[..2] {
        fs::write(one.snapshot(name).join("manifest.json"), "{").unwrap();
    }
    let listed = qemu.snapshots(&one.name).await.unwrap();
    let sound = listed.iter().filter(|one| one.snapshot.is_ok()).count();
    assert_eq!((listed.len(), sound), (3, 1));
    for (name, left) in [(&names[2], 2), (&names[0], 1), (&names[1], 0)] {
        qemu.delete_snapshot(&one.name, name, &fake::job()).await.unwrap();
        assert_eq!(qemu.snapshots(&one.name).await.unwrap().len(), left);
    }
}

/// Puts layers one over the other on the machine's first, the last of which is written to; the
/// others are sealed.
fn stack(qemu: &Qemu, home: &Home, last: u64) {
    for number in 2..=last {
        fs::copy(home.layer(1), home.layer(number)).unwrap();
    }
    home.change(|definition| {
        for number in 2..=last {
            let layer = Layer { below: Below::Layer(number - 1), sealed: None, merged: None };
            definition.layers.insert(number, layer);
        }
        for (number, layer) in &mut definition.layers {
            if *number < last {
                layer.sealed = Some(qemu.seal(home, *number, &fake::job()).unwrap());
            }
        }
        (definition.active, definition.next) = (last, last + 1);
    })
    .unwrap();
}

fn flip(path: &Path) {
    let mut content = fs::read(path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 16;
    fs::write(path, content).unwrap();
}

#[tokio::test]
async fn what_is_damaged_is_not_merged_into_what_is_sound() {
    for damaged in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        let qemu = fake::qemu(dir.path());
        let one = fake::machine(&qemu, "one", Below::Image);
        stack(&qemu, &one, 3);
        let names = [("a", 1), ("b", 2)].map(|(name, layer)| snapshot(&one, name, layer));
        let before = one.load().unwrap();
        flip(&one.layer(damaged));
        qemu.delete_snapshot(&one.name, &names[0], &fake::job()).await.unwrap();
        let definition = one.load().unwrap();
        assert_eq!(definition.layers, before.layers);
        let refused = qemu.verify(&one, &definition, 2, &fake::job()).unwrap_err();
        assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
        flip(&one.layer(damaged));
        qemu.verify(&one, &definition, 2, &fake::job()).unwrap();
    }
}

#[tokio::test]
async fn layers_for_which_there_is_no_room_are_merged_later() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = fake::qemu(dir.path());
    let one = fake::machine(&qemu, "one", Below::Image);
    stack(&qemu, &one, 3);
    // More than any disk has, and all of it a hole.
    fs::File::options().write(true).open(one.layer(2)).unwrap().set_len(8 << 40).unwrap();
    one.change(|definition| {
        let record = qemu.seal(&one, 2, &fake::job()).unwrap();
        definition.layers.get_mut(&2).unwrap().sealed = Some(record);
    })
    .unwrap();
    let names = [("a", 1), ("b", 2)].map(|(name, layer)| snapshot(&one, name, layer));
    qemu.delete_snapshot(&one.name, &names[0], &fake::job()).await.unwrap();
    let definition = one.load().unwrap();
    assert_eq!(definition.layers.len(), 3);
    qemu.verify(&one, &definition, 2, &fake::job()).unwrap();
}

#[tokio::test]
async fn a_guest_that_was_left_standing_still_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = fake::qemu(dir.path());
    let one = fake::machine(&qemu, "one", Below::Image);
    let _process = fake::give_power(&one);
    let runs = Arc::new(AtomicBool::new(false));
    let status = {
        let runs = Arc::clone(&runs);
        move |command: &str, _: &Value| {
            let is_on = runs.load(Ordering::SeqCst);
            Some(match command {
                "query-status" => {
                    json!({ "status": if is_on { "running" } else { "paused" }, "running": is_on })
                }
                "query-kvm" => json!({ "enabled": false }),
                "cont" => {
                    runs.store(true, Ordering::SeqCst);
                    json!({})
                }
                _ => json!({}),
            })
        }
    };
    let _look = fake::answer(&one, command::LOOK, status.clone());
    let _monitor = fake::answer(&one, command::MONITOR, status);
    let state = async || qemu.show(&one.name).await.unwrap().state;
    {
        // Somebody works with it, who lets it go on.
        let _turn = qemu.turns.take(&one.name).unwrap();
        assert_eq!(state().await, State::Running);
    }
    assert!(matches!(state().await, State::Stuck(_)));
    qemu.start(&one.name, &fake::job()).await.unwrap();
    assert!(runs.load(Ordering::SeqCst));
    assert_eq!(state().await, State::Running);
}

#[tokio::test]
async fn no_run_that_has_power_is_lost_sight_of() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = fake::qemu(dir.path());
    let one = fake::machine(&qemu, "one", Below::Image);
    let mut process = fake::give_power(&one);
    // As a revert leaves it that was cut off before it was stored.
    one.change(|definition| definition.run = None).unwrap();
    qemu.collect(&one).unwrap();
    assert!(!process.wait().await.unwrap().success());
    assert!(!one.run(1).exists());
}

#[tokio::test]
async fn nothing_is_left_of_a_merge_that_failed() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = fake::qemu(dir.path());
    let one = fake::machine(&qemu, "one", Below::Image);
    stack(&qemu, &one, 3);
    snapshot(&one, "b", 2);
    let merged = one.layer(2).with_extension("merged");
    fs::create_dir(&merged).unwrap();
    qemu.merge(&one, &fake::job()).await.unwrap_err();
    assert!(!merged.exists());
}

#[tokio::test]
async fn what_a_snapshot_held_goes_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = fake::qemu(dir.path());
    let one = fake::machine(&qemu, "one", Below::Image);
    let name = snapshot(&one, "a", 1);
    damage(&one);
    qemu.delete_snapshot(&one.name, &name, &fake::job()).await.unwrap_err();
    assert!(home::entries(&one.dir.join("snapshots")).unwrap().is_empty());
}

#[tokio::test]
async fn what_may_be_stood_on_stays_while_that_is_not_known() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = fake::qemu(dir.path());
    let one = fake::machine(&qemu, "one", Below::Image);
    // The machine goes on by itself, and its first layer is the clone's alone.
    let layer = Layer { below: Below::Image, sealed: None, merged: None };
    fs::copy(one.layer(1), one.layer(2)).unwrap();
    one.change(|definition| {
        definition.layers.insert(2, layer);
        (definition.active, definition.next) = (2, 3);
    })
    .unwrap();
    let clone = fake::machine(&qemu, "clone", Below::Of { machine: one.name.clone(), layer: 1 });
    let definition = clone.dir.join("machine.json");
    fs::remove_file(&definition).unwrap();
    // Neither damaged nor gone: it can't be read.
    fs::create_dir(&definition).unwrap();
    qemu.collect(&one).unwrap();
    assert!(one.layer(1).exists());
    assert!(qemu.forget(&one.name).await.is_err());
    fs::remove_dir_all(&clone.dir).unwrap();
    qemu.collect(&one).unwrap();
    assert!(!one.layer(1).exists() && one.layer(2).exists());
}

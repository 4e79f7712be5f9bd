use super::*;
use crate::image::SnapshotName;
use crate::qemu::home::{Layer, Manifest};
use std::collections::BTreeSet;

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

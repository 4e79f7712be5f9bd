//! Against libvirt's own driver for tests, whose domains are in this process. It defines none of
//! ours: their type is another.

use super::*;
use connection::Connection;
use std::collections::BTreeSet;
use std::sync::OnceLock;
use tokio_util::sync::CancellationToken;
use virt::connect::Connect;

fn libvirt(root: &Path) -> Libvirt {
    let root = root.canonicalize().unwrap();
    Libvirt {
        images: Store::at(&root.join("images")),
        domains: Domains::over(Connection::of_tests()),
        acceleration: Arc::default(),
        turns: Turns::default(),
        _lock: Arc::new(content::hold(&root).unwrap().unwrap()),
        root,
    }
}

/// What is there is gone with the last connection.
fn connect() -> Connect {
    static KEPT: OnceLock<Connect> = OnceLock::new();
    KEPT.get_or_init(|| Connect::open(Some("test:///default")).unwrap()).clone()
}

fn job() -> Job {
    let deadline = Instant::now() + Duration::from_secs(60);
    Job::new(Arc::new(|_| {}), CancellationToken::new(), deadline)
}

/// A domain of somebody's, stopped, with this disk.
fn domain(name: &str, disk: &Path) -> Uuid {
    let connect = connect();
    let uuid = new_uuid().unwrap();
    let xml = format!(
        "<domain type='test'><name>{name}</name><uuid>{}</uuid><memory>8192</memory>\
         <os><type>hvm</type></os><devices><disk type='file' device='disk'>\
         <source file='{}'/><target dev='vda'/></disk></devices></domain>",
        uuid.as_str(),
        disk.display()
    );
    connect.define_domain_xml(&xml).unwrap();
    uuid
}

fn knows(name: &str) -> bool {
    connect().lookup_domain_by_name(name).is_ok()
}

/// A machine of ours that libvirt knows by this.
fn machine(libvirt: &Libvirt, name: &str, uuid: Uuid) -> Home {
    let home = libvirt.home(&name.parse().unwrap());
    home.make().unwrap();
    let definition = Definition {
        uuid,
        image: "0a".repeat(32).parse().unwrap(),
        memory_bytes: 1 << 30,
        processors: 1,
        mac: "52:54:00:00:00:01".parse().unwrap(),
        network: Network::Isolated,
        origin: None,
        current: None,
    };
    home.store(&definition).unwrap();
    fs::write(home.disk(), "").unwrap();
    home
}

fn record(home: &Home, name: &str) -> SnapshotName {
    let name: SnapshotName = name.parse().unwrap();
    let record = Record {
        name: name.clone(),
        kind: Kind::Disk,
        ran: false,
        at: model::Time(1),
        labels: BTreeMap::new(),
        pause_us: 0,
    };
    home.keep(&record).unwrap();
    name
}

#[tokio::test]
async fn a_machine_of_somebody_keeps_its_name_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let libvirt = libvirt(dir.path());
    domain("db", Path::new("/theirs.qcow2"));
    let one = machine(&libvirt, "one", new_uuid().unwrap());
    let snapshot = record(&one, "a");
    let db: MachineName = "db".parse().unwrap();
    let mac: crate::image::MacAddress = "52:54:00:00:00:02".parse().unwrap();
    let new = NewClone { name: db.clone(), mac: mac.clone(), seed: Vec::new() };
    let cloned = libvirt.clone_at(&one.name, &snapshot, new, &job()).await;
    assert!(matches!(cloned, Err(machine::Error::Foreign { .. })), "{cloned:?}");
    let new = Machine {
        name: db.clone(),
        image: "0a".repeat(32).parse().unwrap(),
        memory_bytes: 1 << 30,
        processors: 1,
        disk_bytes: 0,
        mac,
        network: Network::Isolated,
        seed: Vec::new(),
    };
    let defined = libvirt.define(new, &job()).await;
    assert!(matches!(defined, Err(machine::Error::Foreign { .. })), "{defined:?}");
    // Also one that got the name after we looked: what is called so is none of ours to touch.
    let ours = machine(&libvirt, "db", new_uuid().unwrap());
    assert!(!libvirt.runs(&ours).await.unwrap());
    libvirt.power_off(&db).await.unwrap();
    libvirt.forget(&db).await.unwrap();
    assert!(!ours.dir.exists() && knows("db"));
}

#[tokio::test]
async fn one_that_can_not_be_read_is_known_by_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let libvirt = libvirt(dir.path());
    let [own, other] = ["own", "other"].map(|name| {
        let home = machine(&libvirt, name, new_uuid().unwrap());
        fs::write(home.dir.join("machine.json"), "{").unwrap();
        home
    });
    let uuid = domain("own", &own.disk());
    domain("other", Path::new("/theirs.qcow2"));
    assert_eq!(libvirt.uuid(&own).await.unwrap(), uuid);
    for home in [&own, &other] {
        libvirt.forget(&home.name).await.unwrap();
        assert!(!home.dir.exists());
    }
    assert!(!knows("own") && knows("other"));
}

#[tokio::test]
async fn only_snapshots_of_ours_that_nobody_was_told_of_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let libvirt = libvirt(dir.path());
    let uuid = domain("saved", Path::new("/saved.qcow2"));
    let home = machine(&libvirt, "saved", uuid.clone());
    let kept = record(&home, "kept");
    for name in [&kept, &"cut-off".parse().unwrap()] {
        libvirt.domains.snapshot(&uuid, name).await.unwrap();
    }
    let domain = connect().lookup_domain_by_name("saved").unwrap();
    let theirs = "<domainsnapshot><name>mine</name></domainsnapshot>";
    domain.create_snapshot_xml(theirs, 0).unwrap();
    // The one was never taken, and the other is somebody's under a name that we wanted.
    for name in ["begun", "mine"] {
        home.begin(&name.parse().unwrap()).unwrap();
    }
    let names = || {
        let snapshots = domain.list_all_snapshots(0).unwrap();
        snapshots.iter().map(|one| one.name().unwrap()).collect::<BTreeSet<_>>()
    };
    assert_eq!(names().len(), 3);
    libvirt.recover(&home).await.unwrap();
    assert_eq!(names(), BTreeSet::from(["kept".to_owned(), "mine".to_owned()]));
    assert_eq!(home.begun().unwrap(), []);
}

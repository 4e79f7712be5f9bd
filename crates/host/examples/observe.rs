//! Shows what this crate sees of a machine and how long it takes: `observe ROOT [DOCKER_SOCKET]`.

use host::systemd::{Bus, Systemd};
use host::{Root, disks, docker, files, network, packages, platform, systemd, users};
use model::redact::Redactor;
use std::time::Instant;

/// Says on stderr how long something took.
macro_rules! timed {
    ($what:literal, $expression:expr) => {{
        let started = Instant::now();
        let value = $expression;
        eprintln!("{:>12.3?} {}", started.elapsed(), $what);
        value
    }};
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let root = Root::at(arguments.next().unwrap_or_else(|| "/".to_owned()));
    let redactor = Redactor::new([7; 32], Vec::new());
    let mut facts = model::Facts::default();
    let accounts = timed!("users", users::Accounts::read(&root)?);
    accounts.users.iter().for_each(|item| drop(facts.put_entity(item)));
    accounts.groups.iter().for_each(|item| drop(facts.put_entity(item)));
    facts.put_entity(&timed!("platform", platform::platform(&root, &redactor)));
    facts.put_entity(&timed!("cpu", platform::cpu(&root)));
    platform::memory(&root).iter().for_each(|item| drop(facts.put_entity(item)));
    timed!("disks", disks::disks(&root)?).iter().for_each(|item| drop(facts.put_entity(item)));
    let mounts = timed!("filesystems", disks::filesystems(&root)?);
    mounts.iter().for_each(|item| drop(facts.put_entity(item)));
    let network = timed!("network", network::read(&root)?);
    network.interfaces.iter().for_each(|item| drop(facts.put_entity(item)));
    network.routes.iter().for_each(|item| drop(facts.put_entity(item)));
    let mut packages = packages::Packages::new(root.clone());
    timed!("packages", packages.refresh()?);
    timed!("packages again", packages.refresh()?);
    packages.list().for_each(|item| drop(facts.put_entity(item)));
    let mut units = Vec::new();
    let mut buses = vec![Bus::System(root.clone())];
    buses.extend(systemd::user_managers(&root, &accounts)?);
    for bus in &buses {
        let systemd = match timed!("systemd connect", Systemd::connect(bus, redactor.clone()).await)
        {
            Err(error) if error.is_absent() => {
                eprintln!("{error}");
                continue;
            }
            connected => connected?,
        };
        let _watch = timed!("systemd watch", systemd.watch().await?);
        let loaded = timed!("systemd loaded units", systemd.loaded().await?);
        let unloaded = timed!("systemd unit files", systemd.unit_files(&loaded).await?);
        units.extend(loaded.into_iter().chain(unloaded));
    }
    units.iter().for_each(|item| drop(facts.put_entity(item)));
    let build =
        |packages: &mut packages::Packages| files::TrackedSet::build(&root, &units, packages, &[]);
    let set = timed!("tracked set", build(&mut packages));
    timed!("tracked set again", build(&mut packages));
    let mut tracker = files::Tracker::new(root.clone(), redactor.clone());
    let scan = timed!("files", tracker.scan(&set, &accounts));
    timed!("files again", tracker.scan(&set, &accounts));
    scan.files.iter().for_each(|item| drop(facts.put_entity(item)));
    if let Some(socket) = arguments.next() {
        let docker = docker::Docker::new(socket, redactor);
        let containers = timed!("docker", docker.containers().await?).containers;
        timed!("docker again", docker.containers().await?);
        containers.iter().for_each(|item| drop(facts.put_entity(item)));
    }
    eprintln!("{} items of {} bytes", facts.len(), facts.weight());
    serde_json::to_writer_pretty(std::io::stdout(), &facts)?;
    Ok(())
}

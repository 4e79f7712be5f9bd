//! The machine itself: what seldom changes and is cheap to look at.

use super::apart::Apart;
use super::{Context, Gpus, item, items};
use crate::engine::Scope;
use host::Root;
use host::platform::platform_after;
use model::Kind;
use model::entity::Platform;
use model::redact::Redactor;
use std::time::Duration;

struct Sight {
    root: Root,
    redactor: Redactor,
    /// As last seen, also by an agent before this one.
    before: Option<Platform>,
}

/// Platform, processors, memory.
pub(crate) async fn machine(mut context: Context) {
    let sink = context.sink("machine");
    let mut look = Apart::new(Sight {
        root: context.root.clone(),
        redactor: context.redactor.clone(),
        before: context.known_platform.as_deref().cloned(),
    });
    loop {
        let asked = context.asked.take_up();
        let found = look.look(context.deadline(), |sight: &mut Sight| {
            let now = platform_after(&sight.root, &sight.redactor, sight.before.as_ref());
            let mut found = items(&host::platform::memory(&sight.root));
            found.push(item(&now));
            found.push(item(&host::platform::cpu(&sight.root)));
            sight.before = Some(now);
            found
        });
        match found.await {
            Ok(found) => {
                let scopes = [Kind::PLATFORM, Kind::CPU, Kind::MEMORY].map(Scope::Kind).into();
                sink.all(scopes, found, Vec::new()).await;
            }
            Err(error) => sink.fault(&error).await,
        }
        sink.caught_up(asked).await;
        if !context.pause(context.config.interval * 3).await {
            return;
        }
    }
}

/// Users and groups.
pub(crate) async fn users(mut context: Context) {
    let sink = context.sink("users");
    let mut look = Apart::new(context.root.clone());
    loop {
        let asked = context.asked.take_up();
        let found = look.look(context.deadline(), |root| host::users::Accounts::read(root));
        match found.await {
            Ok(Ok(accounts)) => {
                let mut found = items(&accounts.users);
                found.extend(items(&accounts.groups));
                let scopes = [Kind::USER, Kind::GROUP].map(Scope::Kind).into();
                sink.all(scopes, found, Vec::new()).await;
            }
            Ok(Err(error)) => sink.fault(&error).await,
            Err(error) => sink.fault(&error).await,
        }
        sink.caught_up(asked).await;
        if !context.pause(context.config.interval).await {
            return;
        }
    }
}

/// Interfaces and routes.
pub(crate) async fn network(mut context: Context) {
    let sink = context.sink("network");
    let mut look = Apart::new(context.root.clone());
    loop {
        let asked = context.asked.take_up();
        match look.look(context.deadline(), |root| host::network::read(root)).await {
            Ok(Ok(network)) => {
                let mut found = items(&network.interfaces);
                found.extend(items(&network.routes));
                let scopes = [Kind::INTERFACE, Kind::ROUTE].map(Scope::Kind).into();
                sink.all(scopes, found, Vec::new()).await;
            }
            Ok(Err(error)) => sink.fault(&error).await,
            Err(error) => sink.fault(&error).await,
        }
        sink.caught_up(asked).await;
        if !context.pause(context.config.interval).await {
            return;
        }
    }
}

/// Block devices and mounted filesystems.
pub(crate) async fn disks(mut context: Context) {
    let sink = context.sink("disks");
    let mut look = Apart::new(context.root.clone());
    loop {
        let asked = context.asked.take_up();
        let found = look.look(context.deadline(), |root| {
            Ok::<_, host::disks::Error>((
                host::disks::disks(root)?,
                host::disks::filesystems(root)?,
            ))
        });
        match found.await {
            Ok(Ok((disks, filesystems))) => {
                let mut found = items(&disks);
                found.extend(items(&filesystems));
                let scopes = [Kind::DISK, Kind::FILESYSTEM].map(Scope::Kind).into();
                sink.all(scopes, found, Vec::new()).await;
            }
            Ok(Err(error)) => sink.fault(&error).await,
            Err(error) => sink.fault(&error).await,
        }
        sink.caught_up(asked).await;
        if !context.pause(context.config.interval).await {
            return;
        }
    }
}

/// Graphics processors. Seldom: asking their driver is not cheap.
pub(crate) async fn gpus(mut context: Context) {
    let sink = context.sink("gpus");
    let path = std::env::var("PATH").unwrap_or_default();
    let program = host::gpu::find_nvidia_smi(&path);
    loop {
        let asked = context.asked.take_up();
        let seen = host::gpu::observe(&context.root, program.as_deref(), context.deadline()).await;
        let gpus = Gpus { load: seen.load, processes: seen.processes };
        context.gpus.send_replace(gpus);
        match &seen.fault {
            Some(fault) => sink.fault(fault).await,
            None => sink.all(vec![Scope::Kind(Kind::GPU)], items(&seen.gpus), Vec::new()).await,
        }
        sink.caught_up(asked).await;
        let pause = context.config.interval.max(Duration::from_secs(60));
        if !context.pause(pause).await {
            return;
        }
    }
}

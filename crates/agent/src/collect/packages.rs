//! Installed packages: read when the package manager's database changes.

use super::apart::Apart;
use super::{Context, items};
use crate::engine::Scope;
use host::packages::Reading;
use host::watch::{Wanted, Watch};
use model::{Item, Kind, Subject};
use std::sync::PoisonError;
use std::time::Duration;

/// `rpm` may take 30 s, and who asks it for owners meanwhile a few.
const DEADLINE: Duration = Duration::from_secs(45);
/// A package manager writes its database many times in one run.
const SETTLE: Duration = Duration::from_millis(200);

/// What a look came to: what is installed, if it changed, and what to watch.
type Found = (Option<Vec<(Subject, Item)>>, Wanted);

pub(crate) async fn run(mut context: Context) {
    let sink = context.sink("packages");
    let mut look = Apart::new(context.packages.clone());
    let mut watch = Watch::new();
    loop {
        let asked = context.asked.take_up();
        let found = look.look(DEADLINE, |shared| -> Result<Found, host::packages::Error> {
            let packages = || shared.lock().unwrap_or_else(PoisonError::into_inner);
            // Not locked while it is read: the files' collector has what was read before. What it
            // could not be told of owners is asked for here, too.
            let reading = packages().due();
            let read = reading.map(Reading::read).transpose()?;
            let mut packages = packages();
            let changed = read.is_some_and(|read| packages.take(read));
            Ok((changed.then(|| items(packages.list())), packages.watched()))
        });
        match found.await {
            Ok(Ok((found, wanted))) => {
                let changed = found.is_some();
                match found {
                    Some(found) => {
                        sink.all(vec![Scope::Kind(Kind::PACKAGE)], found, Vec::new()).await;
                    }
                    None => sink.unchanged().await,
                }
                if !context.asked.is_used() {
                    watch.set(wanted);
                }
                context.packages_changed.send_if_modified(|generation| {
                    let news = changed || *generation == 0;
                    *generation += u64::from(news);
                    news
                });
            }
            Ok(Err(error)) => sink.fault(&error).await,
            Err(error) => sink.fault(&error).await,
        }
        sink.caught_up(asked).await;
        if context.once {
            return;
        }
        tokio::select! {
            _ = watch.next_change() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(context.config.interval) => {}
            () = context.asked.next() => {}
            () = context.shutdown.cancelled() => return,
        }
    }
}

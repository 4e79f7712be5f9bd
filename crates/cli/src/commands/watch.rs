//! `twin watch`: changes as they happen.

use crate::arguments::WatchArguments;
use crate::contents::Contents;
use crate::entry::{self, Lens};
use crate::failure::Failure;
use crate::follow::{Follow, Scope};
use crate::session::{Session, write};
use crate::target::leading;
use crate::view::clock;
use model::Version;
use model::terminal;
use std::time::Duration;

pub(crate) async fn run(arguments: &WatchArguments, session: &mut Session) -> Result<(), Failure> {
    let scope = match arguments.words.as_slice() {
        [] => Scope::All,
        words => {
            let (target, subjects) = leading(&mut session.remote, "twin watch", words).await?;
            if target.moment.is_some() {
                let advice = "watching begins now; begin after a version with --from VERSION";
                return Err(Failure::Usage(advice.to_owned()));
            }
            Scope::Host { host: target.host, subjects: subjects.to_vec() }
        }
    };
    if scope == Scope::All && arguments.from.is_some() {
        return Err(Failure::Usage("--from is a version of one host; name the host".to_owned()));
    }
    let remote = session.remote.another()?;
    let follow = Follow::new(remote, scope, arguments.from.map(Version)).await?;
    let printing = Box::pin(print(follow, arguments.count, session));
    match arguments.time {
        Some(time) => tokio::time::timeout(time, printing).await.unwrap_or(Ok(())),
        None => printing.await,
    }
}

/// Each entry as soon as it is there, up to so many.
async fn print(mut follow: Follow, count: Option<u64>, session: &Session) -> Result<(), Failure> {
    let (filtered, with_host) = (follow.is_filtered(), follow.is_of_all());
    let contents = Contents::default();
    let mut left = count;
    while left != Some(0) {
        let entry = follow.next().await?;
        left = left.map(|left| left - 1);
        if session.json {
            write(&terminal::json_line(&follow.whole(entry).await))?;
            continue;
        }
        // An entry a few milliseconds ahead of this machine's clock is not from the future.
        let now = clock().max(entry.at.minus(Duration::from_millis(1)));
        let view = session.view.at(now);
        let lens = Lens { view: &view, contents: &contents, focus: &[], filtered, with_host };
        write(&entry::render(&entry, &lens))?;
    }
    Ok(())
}

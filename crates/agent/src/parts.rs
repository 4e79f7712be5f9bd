//! A program's tasks, and which of them nothing goes on without. They end with this.
//!
//! # Invariants
//! - No part ends unnoticed that failed inside, or that nothing goes on without.

use std::collections::HashMap;
use tokio::task::{Id, JoinSet};

#[derive(Debug, Default)]
pub(crate) struct Parts {
    tasks: JoinSet<()>,
    kinds: HashMap<Id, Kind>,
}

#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    is_essential: bool,
}

impl Parts {
    /// Starts a part that may end when it is through.
    pub(crate) fn start(
        &mut self,
        name: &'static str,
        part: impl Future<Output = ()> + Send + 'static,
    ) {
        self.add(part, Kind { name, is_essential: false });
    }

    /// Starts a part that nothing goes on without.
    pub(crate) fn start_essential(
        &mut self,
        name: &'static str,
        part: impl Future<Output = ()> + Send + 'static,
    ) {
        self.add(part, Kind { name, is_essential: true });
    }

    fn add(&mut self, part: impl Future<Output = ()> + Send + 'static, kind: Kind) {
        let id = self.tasks.spawn(part).id();
        self.kinds.insert(id, kind);
    }

    /// Waits until a part has failed inside, or has ended that nothing goes on without; its name.
    /// Cancel-safe.
    pub(crate) async fn broken(&mut self) -> &'static str {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            let (id, has_failed) = match ended {
                Ok((id, ())) => (id, false),
                Err(failed) => (failed.id(), true),
            };
            match self.kinds.remove(&id) {
                Some(kind) if has_failed || kind.is_essential => return kind.name,
                _ => {}
            }
        }
        std::future::pending().await
    }

    /// Waits until all have ended.
    pub(crate) async fn end(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;
    use tokio_util::sync::CancellationToken;

    #[tokio::test]
    async fn what_breaks_off_is_noticed_and_what_is_through_is_not() {
        let (end, ended) = oneshot::channel::<()>();
        let mut parts = Parts::default();
        parts.start("images", async {});
        parts.start_essential("engine", async { drop(ended.await) });
        parts.start("figures", async { panic!("this test asked for it") });
        assert_eq!(parts.broken().await, "figures");
        end.send(()).unwrap();
        assert_eq!(parts.broken().await, "engine");
        parts.end().await;
    }

    #[tokio::test]
    async fn the_program_ends_with_what_it_can_not_go_on_without() {
        let (stop, mut parts) = (CancellationToken::new(), Parts::default());
        parts.start_essential("the engine", async {});
        let ended = crate::keep_watchdog(&stop, &mut parts).await;
        assert!(matches!(ended, Err(crate::Error::Part { part: "the engine" })));
        stop.cancel();
        assert!(crate::keep_watchdog(&stop, &mut parts).await.is_ok());
    }
}

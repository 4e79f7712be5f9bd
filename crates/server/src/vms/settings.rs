//! What the configuration says of the inventory.

use inventory::Breaker;
use serde::Deserialize;
use std::time::Duration;

/// `inventory` of the configuration, as written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InventoryFile {
    pub breaker_share: Option<usize>,
    pub breaker_count: Option<usize>,
    pub stale_after_seconds: Option<u64>,
}

/// Checked, complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// When so many of a node's VMs are gone at once, somebody has to say that it is so.
    pub breaker: Breaker,
    /// A node that is silent for so long says nothing of its VMs any more.
    pub stale_after: Duration,
}

impl InventoryFile {
    pub(crate) fn check(&self) -> Result<Settings, String> {
        let Breaker { share, count, since } = Breaker::default();
        let breaker = Breaker {
            share: self.breaker_share.unwrap_or(share),
            count: self.breaker_count.unwrap_or(count),
            since,
        };
        let stale_after = self.stale_after_seconds.unwrap_or(120);
        if !(1..=100).contains(&breaker.share) {
            return Err("breaker_share is a percentage from 1 to 100".to_owned());
        }
        if breaker.count == 0 {
            return Err("breaker_count is at least 1".to_owned());
        }
        if !(5..=86_400).contains(&stale_after) {
            return Err("stale_after_seconds is between 5 and 86400".to_owned());
        }
        Ok(Settings { breaker, stale_after: Duration::from_secs(stale_after) })
    }
}

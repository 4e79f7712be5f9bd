//! Puts a machine in order after the process that worked with it was cut off, or its QEMU was.
//!
//! ```text
//! a QEMU that is not the machine's run (a revert that was not stored)   ─► ended, and its network
//! file systems of the guest that stand still for a snapshot             ─► go on
//! the machine's QEMU, stopped in the middle of a snapshot or a revert   ─► goes on
//! the layer it writes to                                                ─► as QEMU says
//! half-made snapshots, layers and runs nobody needs                     ─► removed
//! ```

use super::Qemu;
use super::command::node;
use super::home::{Definition, Home};
use super::power::{abandon, end_network, monitor, running, runs};
use super::qmp::Qmp;
use super::save::{active, settle};
use crate::machine::Error;
use serde_json::{Value, json};

impl Qemu {
    pub(super) async fn recover(&self, home: &Home) -> Result<(), Error> {
        let definition = home.load()?;
        for run in runs(home)?.into_iter().filter(|run| definition.run != Some(*run)) {
            abandon(home, run).await?;
        }
        if let Some((run, _process)) = running(home, &definition)? {
            self.freezer(home, run).thaw_later();
            let mut qmp = monitor(home, run, "be put in order").await?;
            put_right(home, &mut qmp, definition).await?;
        } else if let Some(run) = definition.run {
            end_network(home, run).await?;
        }
        self.finish_merges(home)?;
        self.let_go_or_tell(home).await;
        Ok(())
    }
}

/// Has the guest go on, if something that was cut off left it standing still, and writes down
/// which layer QEMU writes to. Nodes of layers that nothing became of are let go.
pub(super) async fn put_right(
    home: &Home,
    qmp: &mut Qmp,
    mut definition: Definition,
) -> Result<(), Error> {
    let known = |layer: &u64| definition.layers.contains_key(layer);
    let mut writes_to = active(qmp).await.filter(known).unwrap_or(definition.active);
    let unused = definition.active;
    let status: Result<Value, _> = qmp.call("query-status", json!({})).await;
    let runs = status.is_ok_and(|status| status.get("running") == Some(&json!(true)));
    if writes_to != unused || !runs {
        settle(qmp, unused).await;
        writes_to = active(qmp).await.filter(known).unwrap_or(writes_to);
    }
    // The layers below it have lower numbers.
    for unused in nodes(qmp).await.into_iter().filter(|layer| *layer > writes_to) {
        let gone = qmp.act("blockdev-del", json!({ "node-name": node(unused) })).await;
        if let Err(error) = gone {
            tracing::debug!(%error, "while putting a machine right");
        }
    }
    if writes_to != definition.active {
        definition.active = writes_to;
        home.store(&definition)?;
    }
    Ok(())
}

/// The layers that QEMU has open by their names.
async fn nodes(qmp: &mut Qmp) -> Vec<u64> {
    let nodes = qmp.call::<Vec<Value>>("query-named-block-nodes", json!({ "flat": true })).await;
    let number =
        |node: Value| node.get("node-name")?.as_str()?.strip_prefix("layer-")?.parse().ok();
    nodes.unwrap_or_default().into_iter().filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freeze::MARK;
    use crate::qemu::command;
    use crate::qemu::fake::{self, until_asked};
    use crate::qemu::home::Below;

    #[tokio::test]
    async fn a_guest_that_was_left_frozen_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let qemu = fake::qemu(dir.path());
        let home = fake::machine(&qemu, "web01", Below::Image);
        let _process = fake::give_power(&home);
        let _monitor = fake::answer(&home, command::MONITOR, |command, _| {
            Some(match command {
                "query-status" => json!({ "running": true, "status": "running" }),
                "query-block" => json!([]),
                _ => json!({}),
            })
        });
        let agent = fake::answer(&home, "guest-agent", fake::guest_agent);
        let mark = home.run(1).join(MARK);
        std::fs::write(&mark, "").unwrap();
        qemu.recover(&home).await.unwrap();
        until_asked(&agent, "guest-fsfreeze-thaw").await;
        qemu.freezer(&home, 1).settled().await.unwrap();
        assert!(!mark.exists());
    }
}

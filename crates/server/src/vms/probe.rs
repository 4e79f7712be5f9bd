//! Whether a process of a VM is there, as the facts of its node have it.

use crate::app::App;
use inventory::health::Verdict;
use model::entity::{Collector, Entity, Process};
use model::vm::Layer;
use model::{HostId, Kind, Value, with_causes};
use std::sync::Arc;

/// Whether a process runs in a unit of a node, as its facts have it. Nothing where they can't be
/// relied on.
pub(super) async fn process(
    app: &Arc<App>,
    node: HostId,
    unit: String,
    name: String,
) -> Option<(Layer, Verdict)> {
    let wanted = name.clone();
    let runs = app.read(move |app| {
        let Some(head) = app.history.head(&node)? else { return Ok(None) };
        let looked: Option<Collector> = head.facts.entity("processes");
        if looked.is_none_or(|looked| looked.fault.is_some()) {
            return Ok(None);
        }
        let runs = head.facts.of_kind(Kind::PROCESS).any(|(subject, item)| {
            let fields = item.fields();
            fields.get("unit").and_then(Value::as_text) == Some(unit.as_str())
                && Process::from_fields(subject.id(), fields)
                    .is_some_and(|process| is_called(&process, &wanted))
        });
        Ok(Some(runs))
    });
    let verdict = match runs.await {
        Ok(Some(true)) => Verdict::Pass,
        Ok(Some(false)) => Verdict::Fail(format!("no process {name} runs in its unit")),
        Ok(None) => return None,
        Err(error) => {
            tracing::warn!(error = with_causes(&error), "a VM's processes could not be looked at");
            return None;
        }
    };
    Some((Layer::Vmm, verdict))
}

fn is_called(process: &Process, name: &str) -> bool {
    let program = process.executable.as_deref().and_then(|path| path.rsplit('/').next());
    process.name == name || program == Some(name)
}

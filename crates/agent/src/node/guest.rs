//! Whether the agent in a guest answers, by way of the VMM of its unit.

use super::{Answer, unable, unit};
use host::Root;
use host::vmm::{Error, Monitor};
use model::vm::Layer;
use model::with_causes;
use std::time::Duration;

/// `token` is what the guest has to say again.
pub(super) async fn look(unit: &str, port: Option<u32>, token: u64, limit: Duration) -> Answer {
    let begin = tokio::time::Instant::now();
    let group = match unit::property(unit, "ControlGroup", limit).await {
        Ok(group) => group,
        Err(why) => return unable(why),
    };
    let root = Root::live();
    let found = tokio::task::spawn_blocking(move || (Monitor::find(&root, &group), root)).await;
    let asked = match found {
        Ok((Some(monitor), root)) => {
            let rest = limit.saturating_sub(begin.elapsed());
            monitor.guest(&root, port, token, rest).await
        }
        Ok((None, _)) => Err(Error::NoMonitor),
        Err(error) => return unable(format!("its processes could not be looked at: {error}")),
    };
    match asked {
        Ok(()) => Answer::passed(),
        Err(error) if error.layer() == Layer::Node => unable(with_causes(&error)),
        Err(error) => Answer { layer: Some(error.layer()), ..Answer::failed(with_causes(&error)) },
    }
}

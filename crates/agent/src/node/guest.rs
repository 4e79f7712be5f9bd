//! Whether the agent in a guest answers, by way of the VMM of its unit.

use super::{Answer, unable, unit};
use host::Root;
use host::vmm::{Asker, Error};
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
    let asker = Asker::new(Root::live());
    let finds = asker.clone();
    let found = tokio::task::spawn_blocking(move || finds.find(&group)).await;
    let asked = match found {
        Ok(Some(monitor)) => {
            let rest = limit.saturating_sub(begin.elapsed());
            monitor.guest(&asker, port, token, rest).await
        }
        Ok(None) => Err(Error::NoMonitor),
        Err(error) => return unable(format!("its processes could not be looked at: {error}")),
    };
    match asked {
        Ok(()) => Answer::passed(),
        Err(error) if error.layer() == Layer::Node => unable(with_causes(&error)),
        Err(error) => Answer { layer: Some(error.layer()), ..Answer::failed(with_causes(&error)) },
    }
}

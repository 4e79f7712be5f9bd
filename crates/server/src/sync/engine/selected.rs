//! Some VMs, brought in step because somebody asked for them.

use super::Engine;
use crate::sync::mirror::Undone;
use crate::sync::sight::matching;
use api::sync::SelectedResult;
use model::vm::VmId;
use model::with_causes;
use std::collections::BTreeSet;

/// What became of them on one source.
#[derive(Debug)]
pub(crate) struct Selected {
    result: SelectedResult,
    /// Those that it has.
    pub(in crate::sync) ids: BTreeSet<VmId>,
}

impl Engine {
    pub(super) async fn select(&mut self, wanted: &[String]) -> Vec<Selected> {
        let mut all = Vec::new();
        for node in self.sights.keys().cloned().collect::<Vec<_>>() {
            let host = self.address(&node);
            let mut result = SelectedResult { ok: true, host, ..SelectedResult::default() };
            let Some(sight) = self.sights.get(&node) else { continue };
            if let Some(doubt) = sight.doubt() {
                (result.ok, result.message) = (false, Some(doubt));
                all.push(Selected { result, ids: BTreeSet::new() });
                continue;
            }
            let read = vsphere::partly(&node, sight.objects(), matching(sight, wanted));
            result.matched = read.seen.len();
            let mut ids: BTreeSet<VmId> = read.seen.iter().map(|seen| seen.id.clone()).collect();
            match self.decide(&node, read, true).await {
                Ok((done, _)) => {
                    result.added = done.added;
                    result.updated = done.updated;
                    self.sync.mirror.mark(ids.iter().cloned());
                }
                Err(error) => {
                    (result.ok, result.failed) = (false, result.matched);
                    result.message = Some(with_causes(&error));
                    ids.clear();
                }
            }
            all.push(Selected { result, ids });
        }
        all
    }
}

impl Selected {
    /// As it is where some documents do not say yet what was decided.
    pub(in crate::sync) fn without(self, undone: &Undone) -> SelectedResult {
        let Self { mut result, ids } = self;
        let failed = ids.intersection(&undone.ids).count();
        if failed > 0 {
            let of_known = failed.min(result.updated);
            result.updated -= of_known;
            result.added = result.added.saturating_sub(failed - of_known);
            result.failed += failed;
            result.ok = false;
            result.message = Some(undone.why.clone());
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::sight::tests::{ONE, TWO};

    #[test]
    fn what_is_not_written_failed() {
        let ids = |ids: &[&str]| ids.iter().map(|id| id.parse().unwrap()).collect();
        let check = |undone: &[&str], expected: (bool, usize, usize, usize)| {
            let result =
                SelectedResult { ok: true, matched: 2, added: 1, updated: 1, ..Default::default() };
            let undone = Undone { ids: ids(undone), why: "it is away".to_owned() };
            let done = Selected { result, ids: ids(&[ONE, TWO]) }.without(&undone);
            assert_eq!((done.ok, done.added, done.updated, done.failed), expected);
            assert_eq!(done.message.is_some(), !done.ok);
        };
        check(&[], (true, 1, 1, 0));
        check(&[ONE], (false, 1, 0, 1));
        check(&[ONE, TWO], (false, 0, 0, 2));
        check(&["423c1d0e-0000-0000-0000-000000000009"], (true, 1, 1, 0));
    }
}

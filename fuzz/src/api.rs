//! The agent's wire, and the bridge's JSON.

use crate::redactor;
use ::api::wire::{self, Acknowledged, Batch, Body, Contents};
use model::Facts;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// A body as it comes: compressed by the sender. Plain bytes are compressed here, because a
/// mutation seldom leaves anything that can be decompressed.
pub fn api_wire(data: &[u8]) {
    let packed = match data.split_first() {
        Some((b'z', compressed)) => compressed.to_vec(),
        _ => zstd::bulk::compress(data, 1).expect("memory compresses into memory"),
    };
    survives::<Contents>(&packed);
    survives::<Acknowledged>(&packed);
    let Some(batch) = survives::<Batch>(&packed) else { return };
    let mut state = Facts::default();
    for delta in batch.deltas {
        match delta.body {
            Body::Keyframe(facts) => state = facts,
            Body::Patch { patch, .. } => {
                let _refused = patch.apply(&mut state);
            }
        }
    }
}

fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) -> Option<T> {
    let read: T = wire::decode(body).ok()?;
    let again: T = wire::decode(&wire::encode(&read)).expect("what was read can be written");
    // A measurement may be no number, which is not equal to itself.
    assert!(again == read || format!("{read:?}").contains("NaN"), "{read:?} became {again:?}");
    Some(read)
}

/// `update_state` of older agents, and of a shell with curl.
pub fn api_bridge(body: &[u8]) {
    match ::api::bridge::parse(body, &redactor()) {
        Ok(state) => {
            let packed = rmp_serde::to_vec_named(&state.facts).expect("facts can be written");
            assert_eq!(rmp_serde::from_slice::<Facts>(&packed).ok(), Some(state.facts));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// What comes out of a twin's virtio-serial port, at either end, whatever the other has become.
pub fn api_guest(said: &[u8]) {
    use ::api::guest::{Reply, Request, receive};
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime can be made").block_on(async {
        let mut channel = said;
        while let Ok(Some(reply)) = receive::<Reply>(&mut channel).await {
            let line = serde_json::to_vec(&reply).expect("what was read can be written");
            assert_eq!(serde_json::from_slice::<Reply>(&line).ok(), Some(reply));
        }
        let mut channel = said;
        while let Ok(Some(request)) = receive::<Request>(&mut channel).await {
            let line = serde_json::to_vec(&request).expect("what was read can be written");
            assert_eq!(serde_json::from_slice::<Request>(&line).ok(), Some(request));
        }
    });
}

/// What `twin-node` and the server say to each other, and the checks that somebody writes down.
pub fn api_node(said: &[u8]) {
    plain::<::api::node::NodeAsks>(said);
    plain::<::api::node::NodeWork>(said);
    let whole = serde_json::from_slice::<::api::node::NodeWork>(said);
    if let (Ok(whole), Ok(read)) = (whole, ::api::node::NodeWork::read(said)) {
        assert_eq!(read, (whole, Vec::new()), "what is known whole is known task by task");
    }
    plain::<::api::vm::VmChecks>(said);
    plain::<::api::vm::VmRecovery>(said);
}

fn plain<T: Serialize + DeserializeOwned + PartialEq + Debug>(said: &[u8]) {
    let Ok(read) = serde_json::from_slice::<T>(said) else { return };
    let again = serde_json::to_vec(&read).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&again).ok(), Some(read));
}

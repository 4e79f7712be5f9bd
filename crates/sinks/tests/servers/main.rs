//! Sessions in a real Redis, documents in a server of MongoDB's protocol: `lab/sync-parts` has
//! them and says where by the environment. Each test starts its own on a free port.

#[path = "../common/mod.rs"]
mod common;
mod mongo;
mod process;
mod redis;

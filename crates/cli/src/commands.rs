//! The commands: each asks, and renders with a pure function.

pub(crate) mod boot;
pub(crate) mod console;
pub(crate) mod daemon;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod extras;
pub(crate) mod following;
pub(crate) mod image;
pub(crate) mod inventory;
pub(crate) mod list;
pub(crate) mod load;
pub(crate) mod log;
pub(crate) mod manual;
pub(crate) mod run;
pub(crate) mod show;
pub(crate) mod snapshot;
pub(crate) mod ssh;
pub(crate) mod state;
pub(crate) mod sync;
pub(crate) mod token;
pub(crate) mod twin;
pub(crate) mod watch;

//! Gives memory back to the system that big looks and the first keyframe have left behind.
//!
//! The allocator keeps what was freed between things that live on: several MiB of an agent's
//! dozen, for good. Asked now and then, it lets go of them; that takes less than a millisecond.

use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// After the first picture was taken and told.
const FIRST: Duration = Duration::from_secs(8);
const EVERY: Duration = Duration::from_secs(30);

pub(crate) async fn give_back(stop: CancellationToken) {
    let mut pause = FIRST;
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        trim();
        pause = EVERY;
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    #[expect(unsafe_code, reason = "the allocator's own call, which no safe crate offers")]
    // SAFETY: it takes no pointer, and touches free memory alone, under the allocator's locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators return it by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}

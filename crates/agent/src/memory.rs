//! Keeps the agent small: the allocator is told to be thrifty, and now and then to let go.
//!
//! glibc gives threads arenas of their own, and keeps what was freed between things that live on:
//! together several MiB of an agent's dozen, for good. Looks on threads apart are not so many
//! that they would wait for each other at one arena.

use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// After the first picture was taken and told.
const FIRST: Duration = Duration::from_secs(8);
const EVERY: Duration = Duration::from_secs(30);

/// Before threads are started.
#[cfg(target_env = "gnu")]
pub fn be_thrifty() {
    #[expect(unsafe_code, reason = "the allocator's own call, which no safe crate offers")]
    // SAFETY: it takes two numbers, and sets a limit for arenas to be made.
    let taken = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    if taken == 0 {
        tracing::debug!("the allocator did not take a limit for its arenas");
    }
}

/// Other allocators have no arenas.
#[cfg(not(target_env = "gnu"))]
pub fn be_thrifty() {}

/// Gives memory back to the system that big looks and the first keyframe have left behind, which
/// takes less than a millisecond.
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

//! Counts, in tests, how many bytes are looked at: a bound on time that needs no clock.

#[cfg(test)]
thread_local! {
    static SPENT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
pub(super) fn spend(bytes: usize) {
    SPENT.set(SPENT.get() + bytes);
}

#[cfg(not(test))]
pub(super) const fn spend(_bytes: usize) {}

/// The bytes looked at since the last call.
#[cfg(test)]
pub(super) fn spent() -> usize {
    SPENT.replace(0)
}

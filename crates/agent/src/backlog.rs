//! Load that waits for the server, in memory.
//!
//! # Invariants
//! - It has a limit of samples and of bytes: the oldest go where there is no room.
//! - What is taken for one request is small beside what a request may have.

use model::load::Load;
use std::collections::VecDeque;

const MAX_SAMPLES: usize = 360;
/// Bytes of all samples, as they are encoded.
const MAX_BYTES: usize = 4 << 20;
/// Bytes of the samples in one request, where they are not one sample alone.
const BATCH: usize = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// With their bytes, the oldest first.
    waiting: VecDeque<(Load, usize)>,
    bytes: usize,
}

impl Backlog {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds the newest sample.
    pub(crate) fn push(&mut self, sample: Load) {
        let bytes = encoded(&sample);
        self.bytes += bytes;
        self.waiting.push_back((sample, bytes));
        while self.waiting.len() > 1 && !self.has_room(0) {
            self.pop();
        }
    }

    /// Takes the next samples to send, the oldest first.
    pub(crate) fn batch(&mut self) -> Vec<Load> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some((_, next)) = self.waiting.front() {
            bytes += next;
            if bytes > BATCH && !batch.is_empty() {
                break;
            }
            batch.extend(self.pop());
        }
        batch
    }

    /// Puts back what could not be delivered, as far as there is room: what was measured meanwhile
    /// comes after it.
    pub(crate) fn put_back(&mut self, samples: Vec<Load>) {
        for sample in samples.into_iter().rev() {
            let bytes = encoded(&sample);
            if self.waiting.len() == MAX_SAMPLES || !self.has_room(bytes) {
                return;
            }
            self.bytes += bytes;
            self.waiting.push_front((sample, bytes));
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.waiting.len() <= MAX_SAMPLES && self.bytes + bytes <= MAX_BYTES
    }

    fn pop(&mut self) -> Option<Load> {
        let (sample, bytes) = self.waiting.pop_front()?;
        self.bytes -= bytes;
        Some(sample)
    }
}

fn encoded(sample: &Load) -> usize {
    rmp_serde::to_vec_named(sample).expect("load is plain data").len()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use model::Time;
    use model::load::UnitLoad;

    /// A sample of so many units, each of about 200 bytes.
    pub(crate) fn sample(at: i64, units: usize) -> Load {
        let unit = |n| (format!("{n:04}-{}.service", "x".repeat(80)), UnitLoad::default());
        Load { at: Time(at), units: (0..units).map(unit).collect(), ..Load::default() }
    }

    fn times(samples: &[Load]) -> Vec<i64> {
        samples.iter().map(|sample| sample.at.0).collect()
    }

    #[test]
    fn many_samples_are_several_requests_and_the_oldest_go_first() {
        let mut backlog = Backlog::default();
        (0..1000).for_each(|at| backlog.push(sample(at, 0)));
        assert_eq!(backlog.waiting.len(), MAX_SAMPLES);
        (1000..1100).for_each(|at| backlog.push(sample(at, 1000)));
        assert!(backlog.bytes <= MAX_BYTES && backlog.bytes > MAX_BYTES / 2);
        let mut sent = Vec::new();
        while !backlog.is_empty() {
            let batch = backlog.batch();
            assert!(batch.iter().map(encoded).sum::<usize>() <= BATCH);
            sent.extend(times(&batch));
        }
        assert_eq!(backlog.bytes, 0);
        let first = 1100 - i64::try_from(sent.len()).unwrap();
        assert!(sent.len() > 10 && sent.iter().copied().eq(first..1100), "{sent:?}");
    }

    #[test]
    fn a_sample_that_is_too_large_goes_alone() {
        let mut backlog = Backlog::default();
        for at in 1..=3 {
            backlog.push(sample(at, 30_000));
        }
        assert_eq!(times(&backlog.batch()), [3]);
        assert!(backlog.is_empty());
    }

    #[test]
    fn what_is_put_back_is_older_and_goes_where_there_is_no_room() {
        let mut backlog = Backlog::default();
        (0..MAX_SAMPLES).for_each(|at| backlog.push(sample(i64::try_from(at).unwrap(), 0)));
        let taken = backlog.batch();
        assert_eq!(taken.len(), MAX_SAMPLES);
        backlog.push(sample(1000, 0));
        backlog.put_back(taken);
        assert_eq!(backlog.waiting.len(), MAX_SAMPLES);
        let times = times(&backlog.batch());
        assert_eq!((times.first(), times.last()), (Some(&1), Some(&1000)));
    }
}

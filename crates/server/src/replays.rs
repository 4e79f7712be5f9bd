//! Answers given under an idempotency key, so that a request sent again gets the answer it
//! missed instead of being carried out again.
//!
//! Bounded: the oldest answers are forgotten, and all of them at a restart. A request sent
//! again after that is carried out, which the writes here survive: an equal state makes no
//! version.

use api::bridge::Updated;
use model::ContentId;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

const MOST: usize = 1024;
/// Bytes a key may have.
pub(crate) const MAX_KEY: usize = 255;

#[derive(Debug, Default)]
pub(crate) struct Replays {
    answers: Mutex<VecDeque<Given>>,
}

#[derive(Debug)]
struct Given {
    key: String,
    request: ContentId,
    answer: Updated,
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Known {
    Nothing,
    Answer(Updated),
    /// The key was used for another request.
    Reused,
}

impl Replays {
    pub(crate) fn find(&self, key: &str, request: &ContentId) -> Known {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        match answers.iter().find(|given| given.key == key) {
            None => Known::Nothing,
            Some(given) if given.request == *request => Known::Answer(given.answer.clone()),
            Some(_) => Known::Reused,
        }
    }

    pub(crate) fn keep(&self, key: String, request: ContentId, answer: Updated) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MOST {
            answers.pop_front();
        }
        answers.push_back(Given { key, request, answer });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_within_a_limit() {
        let replays = Replays::default();
        let (one, two) = (ContentId::of(b"1"), ContentId::of(b"2"));
        for n in 0..=MOST {
            replays.keep(n.to_string(), one, Updated::NoChanges);
        }
        assert_eq!(replays.find("0", &one), Known::Nothing);
        assert_eq!(replays.find("1", &one), Known::Answer(Updated::NoChanges));
        assert_eq!(replays.find("1", &two), Known::Reused);
    }
}

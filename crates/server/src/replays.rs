//! Answers given under an idempotency key, so that a request sent again gets the answer it
//! missed instead of being carried out again.
//!
//! Bounded: the oldest answers are forgotten, and all of them at a restart. A request sent
//! again after that is carried out, which the writes here survive: an equal state makes no
//! version. A key is its caller's: what another one asked under the same key is another request.

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
    asked: Asking,
    answer: Updated,
}

/// A request that names itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asking {
    /// The id of the caller's token; `None` on a machine where none is asked for.
    pub(crate) caller: Option<String>,
    pub(crate) key: String,
    pub(crate) request: ContentId,
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
    pub(crate) fn find(&self, asking: &Asking) -> Known {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |asked: &Asking| asked.key == asking.key && asked.caller == asking.caller;
        match answers.iter().find(|given| same(&given.asked)) {
            None => Known::Nothing,
            Some(given) if given.asked.request == asking.request => {
                Known::Answer(given.answer.clone())
            }
            Some(_) => Known::Reused,
        }
    }

    pub(crate) fn keep(&self, asked: Asking, answer: Updated) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MOST {
            answers.pop_front();
        }
        answers.push_back(Given { asked, answer });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_within_a_limit() {
        let replays = Replays::default();
        let asking = |caller: Option<&str>, key: usize, body: &[u8]| Asking {
            caller: caller.map(str::to_owned),
            key: key.to_string(),
            request: ContentId::of(body),
        };
        for n in 0..=MOST {
            replays.keep(asking(None, n, b"1"), Updated::NoChanges);
        }
        assert_eq!(replays.find(&asking(None, 0, b"1")), Known::Nothing);
        assert_eq!(replays.find(&asking(None, 1, b"1")), Known::Answer(Updated::NoChanges));
        assert_eq!(replays.find(&asking(None, 1, b"2")), Known::Reused);
        assert_eq!(replays.find(&asking(Some("another"), 1, b"2")), Known::Nothing);
    }
}

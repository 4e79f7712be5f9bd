//! Looks that somebody asks for, beside those that are due.

use tokio::sync::watch;

/// What one collector knows of them: the number of the newest. Most agents are never asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked(Option<watch::Receiver<u64>>);

impl Asked {
    pub(crate) fn by(numbers: watch::Receiver<u64>) -> Self {
        Self(Some(numbers))
    }

    /// Whether somebody asks: then nobody else waits for what is seen, and it need not be looked
    /// for before.
    pub(crate) fn is_used(&self) -> bool {
        self.0.is_some()
    }

    /// Waits until a look is asked for that was not taken up yet. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        if let Some(numbers) = &mut self.0
            && numbers.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }

    /// Takes up the newest, which a look that begins now is the answer to; 0 if nobody asks.
    pub(crate) fn take_up(&mut self) -> u64 {
        self.0.as_mut().map_or(0, |numbers| *numbers.borrow_and_update())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn is_asked(asked: &mut Asked) -> bool {
        tokio::time::timeout(Duration::from_secs(1), asked.next()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn each_look_is_taken_up_once_and_the_newest_stands_for_those_before() {
        let (ask, numbers) = watch::channel(1);
        let mut asked = Asked::by(numbers);
        assert_eq!(asked.take_up(), 1);
        assert!(!is_asked(&mut asked).await);
        ask.send_replace(2);
        ask.send_replace(3);
        assert!(is_asked(&mut asked).await);
        assert_eq!(asked.take_up(), 3);
        assert!(!is_asked(&mut asked).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_never_asked_waits_for_ever() {
        let mut asked = Asked::default();
        assert_eq!(asked.take_up(), 0);
        assert!(!is_asked(&mut asked).await);
    }
}

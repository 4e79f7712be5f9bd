//! A guest's agent for tests: what it sees is what it was told to, and by each plan it becomes
//! what is next.

use api::guest::{Answer, Ask, Happened, Renewed, Reply, Request, receive, send};
use model::Facts;
use model::plan::Outcome;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::io::{BufStream, DuplexStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) facts: Mutex<Facts>,
    /// What it is after the plans that come.
    pub(crate) next: Mutex<VecDeque<Facts>>,
    /// Each look takes one, once it was asked for.
    pub(crate) looks: Semaphore,
    /// So does each plan.
    pub(crate) plans: Semaphore,
    /// Looks and plans that were asked for.
    pub(crate) asked: watch::Sender<(usize, usize)>,
    talks: Mutex<JoinSet<()>>,
}

impl Guest {
    /// One that holds nothing up.
    pub(crate) fn new(facts: Facts, next: impl IntoIterator<Item = Facts>) -> Arc<Self> {
        Arc::new(Self {
            facts: Mutex::new(facts),
            next: Mutex::new(next.into_iter().collect()),
            looks: Semaphore::new(1000),
            plans: Semaphore::new(1000),
            asked: watch::Sender::default(),
            talks: Mutex::default(),
        })
    }

    /// Waits until so many looks and plans were asked for.
    pub(crate) async fn until_asked(&self, looks: usize, plans: usize) {
        let mut asked = self.asked.subscribe();
        let is_so = |asked: &(usize, usize)| asked.0 >= looks && asked.1 >= plans;
        let waited = tokio::time::timeout(super::LONG, asked.wait_for(is_so)).await;
        waited.unwrap_or_else(|_| panic!("only {:?} were asked for", self.asked.borrow())).unwrap();
    }

    pub(crate) fn connect(self: &Arc<Self>) -> DuplexStream {
        let (near, far) = tokio::io::duplex(1 << 20);
        let this = Arc::clone(self);
        self.talks.lock().unwrap().spawn(async move { this.talk(far).await });
        near
    }

    async fn talk(&self, far: DuplexStream) {
        let mut channel = BufStream::new(far);
        let mut steps = 0;
        while let Ok(Some(Request { id, ask })) = receive(&mut channel).await {
            let answer = match ask {
                Ask::Hello => Answer::Hello("1".to_owned()),
                Ask::Look(_) => {
                    self.asked.send_modify(|asked| asked.0 += 1);
                    self.looks.acquire().await.unwrap().forget();
                    Answer::Facts(self.facts.lock().unwrap().clone())
                }
                Ask::Contents(texts) => Answer::Kept(texts.len()),
                Ask::Apply(apply) => {
                    steps = apply.plan.steps().len();
                    self.asked.send_modify(|asked| asked.1 += 1);
                    Answer::Applying(apply.run)
                }
                Ask::Progress(_) => {
                    self.plans.acquire().await.unwrap().forget();
                    if let Some(next) = self.next.lock().unwrap().pop_front() {
                        *self.facts.lock().unwrap() = next;
                    }
                    let outcomes = Some(vec![Outcome::Changed; steps]);
                    Answer::Progress(Happened { events: Vec::new(), outcomes })
                }
                Ask::Renew(_) => Answer::Renewed(Renewed::default()),
                _ => Answer::Fault("it is none of this guest's business".to_owned()),
            };
            if send(&mut channel, &Reply { id, answer }).await.is_err() {
                return;
            }
        }
    }
}

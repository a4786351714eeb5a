//! Threads that compile and evaluate schemas, so that those that answer requests do not. Where the
//! processors are taken, these come last.

use std::{
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use domain::{
    Code, Problem,
    id::PublisherId,
    permits::{Bounds, Full, Permits},
};

use super::WORKERS_MAX;

/// Longest wait for a place.
const WAIT: Duration = Duration::from_secs(4);
/// Longest wait for an evaluation that has a place. Its work has a limit of its own: this is for
/// a machine that has no time for it.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// How much lower than the others' these threads' priority is, as `nice` counts.
const NICE: i32 = 10;
/// What there is a share of.
const WHAT: &str = "checks against JSON Schemas at once";

type Job = Box<dyn FnOnce() + Send>;

/// Threads that do what comes, until nothing can come any more.
fn start(count: usize) -> mpsc::Sender<Job> {
    let (jobs, queue) = mpsc::channel::<Job>();
    let queue = Arc::new(Mutex::new(queue));
    for _ in 0..count {
        let queue = Arc::clone(&queue);
        let work = move || {
            come_last();
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(job) = next else {
                    return;
                };
                // Whoever waits for it learns of a defect by getting no answer.
                drop(catch_unwind(AssertUnwindSafe(job)));
            }
        };
        let thread = std::thread::Builder::new().name("schemas".to_owned());
        if let Err(error) = thread.spawn(work) {
            tracing::error!(%error, "a thread for checks against schemas can't be started");
        }
    }
    jobs
}

/// Lowers the priority of this thread: a request that only reads is not to wait for a processor
/// behind somebody's check.
fn come_last() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE) {
        tracing::debug!(%error, "checks against schemas keep their priority");
    }
}

/// Places for evaluations: as many as there are processors, half of them for one publisher. Cheap
/// to clone.
#[derive(Clone)]
pub(super) struct Workers {
    jobs: mpsc::Sender<Job>,
    places: Permits<PublisherId>,
    wait: Duration,
    answer_within: Duration,
}

impl Workers {
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let total = processors.clamp(2, WORKERS_MAX);
        Self::within(Bounds {
            total,
            per_owner: total / 2,
        })
    }

    fn within(bounds: Bounds) -> Self {
        Self {
            jobs: start(bounds.total),
            places: Permits::new(bounds),
            wait: WAIT,
            answer_within: ANSWER_WITHIN,
        }
    }

    /// Does `work` on a thread of its own as soon as the publisher has a place.
    ///
    /// # Errors
    /// `share_exceeded` when it had none in time, or when its work is not done in time: that goes
    /// on, and keeps the place until it is done.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        publisher: PublisherId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let place = self.places.acquire(publisher, 1);
        let Ok(place) = tokio::time::timeout(self.wait, place).await else {
            return Err(self.full(publisher).problem(WHAT));
        };
        let (told, done) = tokio::sync::oneshot::channel();
        let job = move || {
            // Dropped in this order, even by a defect in the work: who is told may ask again at
            // once, and finds the place free.
            let told = told;
            let place = place;
            let result = work();
            drop(place);
            // Whoever asked may have left.
            drop(told.send(result));
        };
        self.jobs
            .send(Box::new(job))
            .map_err(|_| Problem::from(Code::Internal))?;
        match tokio::time::timeout(self.answer_within, done).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(Code::Internal.into()),
            Err(_) => {
                let detail = "A check against a JSON Schema is not done in time.";
                Err(Problem::new(Code::ShareExceeded, detail).retry_after(10))
            }
        }
    }

    /// Why somebody has waited for so long.
    fn full(&self, publisher: PublisherId) -> Full {
        if self.places.in_use_by(&publisher) > 0 {
            Full::Owner
        } else {
            Full::Total
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use domain::id::Id as _;
    use uuid::Uuid;

    use super::*;

    fn publisher(n: u128) -> PublisherId {
        PublisherId::from_uuid(Uuid::from_u128(n))
    }

    /// Work that is done when it is told so.
    fn held() -> (mpsc::Sender<()>, impl FnOnce() + Send + 'static) {
        let (go, wait) = mpsc::channel();
        (go, move || {
            let _ = wait.recv();
        })
    }

    #[tokio::test]
    async fn a_publisher_waits_for_its_own_and_nobody_else_does() {
        let workers = Workers::within(Bounds {
            total: 2,
            per_owner: 1,
        });
        let hasty = Workers {
            wait: Duration::from_millis(10),
            answer_within: Duration::from_millis(10),
            ..workers.clone()
        };
        let (first, second) = (publisher(1), publisher(2));
        let (go, work) = held();
        let late = hasty.run(first, work).await.unwrap_err();
        assert_eq!(late.code, Code::ShareExceeded);
        // It goes on, and keeps its place.
        assert_eq!(workers.places.in_use_by(&first), 1);
        let refused = hasty.run(first, || 7).await.unwrap_err();
        assert_eq!(refused.code, Code::ShareExceeded);
        assert_eq!(workers.run(second, || 7).await.unwrap(), 7);
        go.send(()).unwrap();
        assert_eq!(workers.run(first, || 8).await.unwrap(), 8);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn checks_come_last_where_processors_are_taken() {
        let workers = Workers::new();
        let priority = || {
            let thread = rustix::thread::gettid();
            rustix::process::getpriority_process(Some(thread)).unwrap()
        };
        let own = priority();
        let theirs = workers.run(publisher(1), priority).await.unwrap();
        assert_eq!(theirs, NICE.max(own));
        assert_eq!(priority(), own, "nobody else's changes");
    }

    #[tokio::test]
    async fn a_defect_ends_its_check_alone() {
        let workers = Workers::within(Bounds {
            total: 1,
            per_owner: 1,
        });
        for _ in 0..3 {
            let failed = workers.run(publisher(1), || -> () { panic!("a defect") });
            let failed = failed.await;
            assert_eq!(failed.unwrap_err().code, Code::Internal);
        }
        assert_eq!(workers.run(publisher(1), || 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn who_waits_for_others_is_told_so() {
        let workers = Workers::within(Bounds {
            total: 1,
            per_owner: 1,
        });
        let hasty = Workers {
            wait: Duration::from_millis(10),
            answer_within: Duration::from_millis(10),
            ..workers.clone()
        };
        let (go, work) = held();
        hasty.run(publisher(1), work).await.unwrap_err();
        let refused = hasty.run(publisher(2), || 7).await.unwrap_err();
        assert_eq!(refused.code, Code::Overloaded);
        go.send(()).unwrap();
        assert_eq!(workers.run(publisher(2), || 8).await.unwrap(), 8);
    }

    #[tokio::test]
    async fn a_defect_is_told_and_gives_its_place_back() {
        let workers = Workers::new();
        for _ in 0..50 {
            let failed = workers.run(publisher(1), || panic!("on purpose")).await;
            assert_eq!(failed.map(|(): ()| ()).unwrap_err().code, Code::Internal);
            assert_eq!(workers.places.in_use(), 0);
        }
    }
}

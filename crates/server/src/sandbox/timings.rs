//! How long the parts of a transition took: for the `Server-Timing` header.

use std::time::{Duration, Instant};

/// Parts of one transition with the time each took, in the order in which they were done.
#[derive(Clone, Debug, Default)]
pub struct Timings(Vec<(&'static str, Duration)>);

impl Timings {
    /// The parts.
    pub fn parts(&self) -> &[(&'static str, Duration)] {
        &self.0
    }

    /// Does a part and notes how long it took, also when it failed.
    pub(super) async fn of<T>(&mut self, part: &'static str, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let done = work.await;
        self.note(part, begun);
        done
    }

    /// Notes a part that began then and ends now.
    pub(super) fn note(&mut self, part: &'static str, begun: Instant) {
        self.add(part, begun.elapsed());
    }

    /// Notes a part that took this long.
    pub(super) fn add(&mut self, part: &'static str, took: Duration) {
        self.0.push((part, took));
    }

    /// Adds the parts of a further step.
    pub(super) fn extend(&mut self, further: Self) {
        self.0.extend(further.0);
    }
}

//! The clock inside after each resume.

use async_trait::async_trait;
use e2b_client::Problem;

use super::{Kept, Round, clock_error, clock_is_right};
use crate::report::Promise;

/// Remembers the worst.
#[derive(Default)]
pub(super) struct Clock {
    worst: f64,
}

#[async_trait]
impl Kept for Clock {
    fn promise(&self) -> Promise {
        Promise::required(
            "clock",
            "the clock is right within 1 s as soon as connect has answered",
        )
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        let error = clock_error(&round.guest).await?;
        clock_is_right(error)?;
        self.worst = self.worst.max(error);
        Ok(format!("at most {:.3} s off", self.worst))
    }
}

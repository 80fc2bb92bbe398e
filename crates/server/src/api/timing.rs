//! `Server-Timing` (W3C): where the time of a create, a pause or a connect went, in milliseconds.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::HttpState;
use crate::sandbox::{SandboxId, Timings};

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The header for the last transition of a sandbox; none when it had none since the server started.
pub(super) fn headers(state: &HttpState, id: &SandboxId) -> HeaderMap {
    let value = text(&state.sandboxes.timings(id));
    let mut headers = HeaderMap::new();
    if let (false, Ok(value)) = (value.is_empty(), HeaderValue::try_from(value)) {
        headers.insert(SERVER_TIMING, value);
    }
    headers
}

fn text(timings: &Timings) -> String {
    let parts = timings.parts().iter().map(|(part, took)| {
        let milliseconds = took.as_secs_f64() * 1000.0;
        format!("{part};dur={milliseconds:.1}")
    });
    parts.collect::<Vec<_>>().join(", ")
}

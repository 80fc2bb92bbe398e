//! The contract's concurrency matrix over HTTP: what is answered while a transition is in flight.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use server::sandbox::{Fault, SandboxId, Step};

use crate::served::Served;
use crate::support::eventually;

/// Long enough for an answer that does not wait.
const MOMENT: Duration = Duration::from_secs(2);
/// It waits for the transition.
const WAITS: u16 = 0;

const CALLS: [(&str, &str); 7] = [
    ("timeout", r#"{"timeout":60}"#),
    ("refreshes", "{}"),
    ("resume", "{}"),
    ("snapshots", "{}"),
    ("fork", "{}"),
    ("pause", "{}"),
    ("connect", r#"{"timeout":60}"#),
];

/// A sandbox that hangs at `step` of the call that leads there.
async fn held(before: Option<&str>, step: Step, call: &str) -> (Arc<Served>, SandboxId) {
    let server = Arc::new(Served::start().await);
    let id = server.create("").await;
    if let Some(before) = before {
        let done = server.post(&id, before, "{}").await;
        assert!(done.status.is_success(), "{}", done.text());
    }
    server.place.inject(step, Fault::Stop);
    let line = match call {
        "" => format!("DELETE /sandboxes/{id}"),
        call => format!("POST /sandboxes/{id}/{call}"),
    };
    let body = if call == "connect" {
        r#"{"timeout":60}"#
    } else {
        "{}"
    };
    // Its answer never comes.
    let held = Arc::clone(&server);
    tokio::spawn(async move { held.api(&line, body).await });
    eventually("the transition", || server.place.faults_left() == 0).await;
    (server, id)
}

async fn status(server: &Served, line: &str, body: &str) -> u16 {
    match tokio::time::timeout(MOMENT, server.api(line, body)).await {
        Ok(answer) => answer.status.as_u16(),
        Err(_) => WAITS,
    }
}

/// The call before and the one that hangs at the step; answers in the order of CALLS, then that of
/// DELETE; what GET says of the state.
type Row = (
    Option<&'static str>,
    Step,
    &'static str,
    [u16; 8],
    &'static str,
);

#[tokio::test]
async fn calls_during_a_transition_are_answered_as_the_contract_says() {
    let rows: [Row; 5] = [
        (
            None,
            Step::PauseCheckpoint,
            "pause",
            [409, 409, WAITS, 409, 409, WAITS, WAITS, WAITS],
            "paused",
        ),
        (
            Some("pause"),
            Step::ResumeStart,
            "connect",
            [404, 404, WAITS, 404, 409, WAITS, WAITS, WAITS],
            "paused",
        ),
        (
            None,
            Step::SnapshotLink,
            "snapshots",
            [409, 409, 409, 409, 409, WAITS, WAITS, WAITS],
            "running",
        ),
        (
            Some("pause"),
            Step::SnapshotLink,
            "snapshots",
            [409, 409, 409, 409, 409, WAITS, WAITS, WAITS],
            "paused",
        ),
        (
            None,
            Step::KillFiles,
            "",
            [404, 404, 404, 404, 404, 404, 409, WAITS],
            "",
        ),
    ];
    for (before, step, call, expected, state) in rows {
        let (server, id) = held(before, step, call).await;
        let seen = server.api(&format!("GET /sandboxes/{id}"), "").await;
        if state.is_empty() {
            assert_eq!(seen.status, StatusCode::NOT_FOUND);
        } else {
            assert_eq!(seen.json()["state"], state, "{step:?}");
            let listed = server.api("GET /v2/sandboxes", "").await.json();
            assert_eq!(listed[0]["state"], state, "{step:?}");
        }
        let kill = (format!("DELETE /sandboxes/{id}"), "");
        let lines = CALLS.map(|(call, body)| (format!("POST /sandboxes/{id}/{call}"), body));
        let lines: Vec<_> = lines.into_iter().chain([kill]).collect();
        let asked = lines.iter().map(|(line, body)| status(&server, line, body));
        let found = futures_util::future::join_all(asked).await;
        assert_eq!(found, expected, "{lines:?} while at {step:?}");
    }
}

#[tokio::test]
async fn a_pause_in_flight_shows_a_deadline_that_has_passed() {
    let (server, id) = held(None, Step::PauseCheckpoint, "pause").await;
    let detail = server.api(&format!("GET /sandboxes/{id}"), "").await.json();
    let end = detail["endAt"].as_str().unwrap();
    let format = &time::format_description::well_known::Rfc3339;
    let end = time::OffsetDateTime::parse(end, format).unwrap();
    assert!(end <= time::OffsetDateTime::now_utc());
}

#[tokio::test]
async fn a_connect_that_discards_memory_is_refused_while_it_is_being_restored() {
    let (server, id) = held(Some("pause"), Step::ResumeStart, "connect").await;
    for call in ["connect", "resume"] {
        let body = r#"{"timeout":60,"memory":false}"#;
        let found = status(&server, &format!("POST /sandboxes/{id}/{call}"), body).await;
        assert_eq!(found, 409, "{call}");
    }
}

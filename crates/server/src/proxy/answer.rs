//! What the edge says when it does not pass on what the inside of a sandbox said.
//!
//! 502 is deliberate for sandboxes that are not there: SDKs read 502 on the agent's `/health` as
//! "not running", and a 404 as an answer of the agent itself.

use axum::Json;
use axum::response::{Html, IntoResponse, Response};
use http::header::{ACCEPT, USER_AGENT};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::route::{Refusal, Target};
use crate::sandbox::SandboxError;

/// Words in the User-Agent of programs that people look at pages with.
const BROWSERS: [&str; 7] = [
    "mozilla", "chrome", "safari", "firefox", "edge", "opera", "msie",
];

/// Why the edge answers a request itself.
#[derive(Debug)]
pub(super) enum EdgeError {
    /// Unknown, killed, or paused and not to be resumed by this request.
    NotFound,
    /// It runs, and nothing listens on that port.
    PortClosed,
    /// Resuming by traffic needs the agent's token in `X-Access-Token`.
    AccessToken,
    /// Its ports are private, and the request has no traffic token.
    TrafficTokenMissing,
    /// Its ports are private, and the request has another traffic token.
    TrafficTokenInvalid,
    /// It could not be resumed.
    Resume(SandboxError),
    /// The connection inside broke before an answer came.
    Upstream(String),
}

/// The headers that decide between HTML and JSON, kept while the request is being forwarded.
#[derive(Clone, Copy, Debug)]
pub(super) struct ForBrowser(bool);

impl ForBrowser {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_ascii_lowercase()
        };
        let agent = text(USER_AGENT.as_str());
        let accept = text(ACCEPT.as_str());
        let mode = text("sec-fetch-mode");
        let script = headers.contains_key("x-requested-with") && mode != "navigate";
        let wants_json = accept.contains("application/json") && !accept.contains("text/html");
        let fetched = ["cors", "no-cors", "same-origin", "websocket"].contains(&mode.as_str());
        let browser = BROWSERS.iter().any(|name| agent.contains(name));
        Self(browser && !wants_json && !fetched && !script)
    }
}

impl EdgeError {
    pub(super) fn answer(&self, target: &Target, browser: ForBrowser) -> Response {
        let (status, message, title) = match self {
            Self::NotFound => (
                StatusCode::BAD_GATEWAY,
                "The sandbox was not found",
                "Sandbox Not Found",
            ),
            Self::PortClosed => (
                StatusCode::BAD_GATEWAY,
                "The sandbox is running but port is not open",
                "Closed Port",
            ),
            Self::AccessToken => (
                StatusCode::FORBIDDEN,
                "The sandbox is paused; resuming it needs its token in header 'x-access-token'",
                "Missing Access Token",
            ),
            Self::TrafficTokenMissing => (
                StatusCode::FORBIDDEN,
                "Sandbox is secured with traffic access token. Token header \
                 'e2b-traffic-access-token' is missing",
                "Missing Traffic Access Token",
            ),
            Self::TrafficTokenInvalid => (
                StatusCode::FORBIDDEN,
                "Sandbox is secured with traffic access token. Provided token in header \
                 'e2b-traffic-access-token' is invalid",
                "Invalid Traffic Access Token",
            ),
            Self::Resume(error) => return resume_failed(error, target, browser),
            Self::Upstream(cause) => {
                let text = format!("the connection into the sandbox failed: {cause}");
                return (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
            }
        };
        let mut body = in_json(status, message, target);
        let mut text = message.to_owned();
        if matches!(self, Self::PortClosed) {
            body["port"] = json!(target.port);
            text = format!("There is no service running on port {}", target.port);
        }
        answer(status, body, title, &text, browser)
    }
}

fn resume_failed(error: &SandboxError, target: &Target, browser: ForBrowser) -> Response {
    let status = match error {
        SandboxError::NotFound(_)
        | SandboxError::Paused(_)
        | SandboxError::BeingKilled(_)
        | SandboxError::TemplateNotFound(_)
        | SandboxError::SnapshotNotFound(_) => {
            return EdgeError::NotFound.answer(target, browser);
        }
        SandboxError::Busy(_)
        | SandboxError::AlreadyPaused(_)
        | SandboxError::AlreadyRunning(_)
        | SandboxError::NameTaken(_)
        | SandboxError::SnapshotBusy(_)
        | SandboxError::NotPaused(_)
        | SandboxError::ForkOfPaused(_) => StatusCode::CONFLICT,
        SandboxError::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
        SandboxError::TimeoutTooLong { .. }
        | SandboxError::NoSpace(_)
        | SandboxError::GuestUnresponsive(_)
        | SandboxError::DiskInUse { .. }
        | SandboxError::SnapshotOfAnother(_)
        | SandboxError::SnapshotInUse { .. }
        | SandboxError::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        SandboxError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
    };
    let text = error.to_string();
    answer(
        status,
        in_json(status, &text, target),
        "Sandbox Not Resumed",
        &text,
        browser,
    )
}

/// The answer to a request that goes nowhere.
pub(super) fn refusal(refusal: &Refusal) -> Response {
    let text = match refusal {
        Refusal::InvalidHost => "invalid host".to_owned(),
        Refusal::InvalidSandboxId => "invalid sandbox ID".to_owned(),
        Refusal::InvalidPort => "invalid sandbox port".to_owned(),
        Refusal::MissingHeader(name) => format!("missing header {name}"),
        Refusal::TooLong => {
            let text = "the path or query is too long for a request to an agent";
            return (StatusCode::URI_TOO_LONG, text).into_response();
        }
        Refusal::Connect => {
            let text = "the ports of a sandbox speak HTTP, not CONNECT";
            return (StatusCode::METHOD_NOT_ALLOWED, text).into_response();
        }
        Refusal::ReservedRoute(path) => {
            let message = "this route of the agent is not for clients";
            let body = json!({ "message": message, "path": path, "code": 404 });
            return (StatusCode::NOT_FOUND, Json(body)).into_response();
        }
    };
    (StatusCode::BAD_REQUEST, text).into_response()
}

/// The answer to a signed file URL that no sandbox made.
pub(super) fn unknown_signature() -> Response {
    let body = json!({ "code": 401, "message": "invalid signature" });
    (StatusCode::UNAUTHORIZED, Json(body)).into_response()
}

fn in_json(status: StatusCode, message: &str, target: &Target) -> Value {
    json!({ "sandboxId": target.id.as_str(), "message": message, "code": status.as_u16() })
}

/// Texts are ours or of checked form (ids and ports): nothing in the page needs escaping, except
/// causes of failed resumes.
fn answer(
    status: StatusCode,
    body: Value,
    title: &str,
    text: &str,
    ForBrowser(browser): ForBrowser,
) -> Response {
    if !browser {
        return (status, Json(body)).into_response();
    }
    let id = body["sandboxId"].as_str().unwrap_or_default();
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let page = format!(
        "<html><head><meta charset=\"utf-8\"><title>{title}</title></head>\
         <body><h1>{title}</h1><p>{text}</p><p>Sandbox {id}</p></body></html>"
    );
    (status, Html(page)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::SandboxId;

    fn browser(headers: &[(&'static str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        ForBrowser::of(&map).0
    }

    const FIREFOX: (&str, &str) = ("user-agent", "Mozilla/5.0 (X11) Firefox/130");

    #[test]
    fn pages_are_for_people() {
        assert!(browser(&[FIREFOX]));
        assert!(browser(&[
            FIREFOX,
            ("accept", "text/html,application/json")
        ]));
        assert!(browser(&[
            FIREFOX,
            ("x-requested-with", "x"),
            ("sec-fetch-mode", "navigate")
        ]));
        assert!(!browser(&[("user-agent", "curl/8")]));
        assert!(!browser(&[]));
        assert!(!browser(&[FIREFOX, ("accept", "application/json")]));
        assert!(!browser(&[FIREFOX, ("sec-fetch-mode", "cors")]));
        assert!(!browser(&[FIREFOX, ("x-requested-with", "x")]));
    }

    async fn body(error: EdgeError, browser: bool) -> (StatusCode, String) {
        let target = Target {
            id: SandboxId::parse("i1").unwrap(),
            port: 8080,
        };
        let response = error.answer(&target, ForBrowser(browser));
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 10_000)
            .await
            .unwrap();
        (status, String::from_utf8(bytes.into()).unwrap())
    }

    #[tokio::test]
    async fn the_answers_are_those_of_the_contract() {
        let (status, text) = body(EdgeError::NotFound, false).await;
        let found: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status, StatusCode::BAD_GATEWAY);
        let message = "The sandbox was not found";
        assert_eq!(
            found,
            json!({"sandboxId": "i1", "message": message, "code": 502})
        );

        let (status, text) = body(EdgeError::PortClosed, false).await;
        let found: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status, StatusCode::BAD_GATEWAY);
        let message = "The sandbox is running but port is not open";
        let expected = json!({"sandboxId": "i1", "message": message, "port": 8080, "code": 502});
        assert_eq!(found, expected);

        for (error, word) in [
            (EdgeError::NotFound, "Sandbox Not Found"),
            (EdgeError::PortClosed, "no service running on port 8080"),
        ] {
            let (_, page) = body(error, true).await;
            assert!(
                page.starts_with("<html") && page.ends_with("</html>"),
                "{page}"
            );
            assert!(page.contains(word), "{page}");
        }
    }
}

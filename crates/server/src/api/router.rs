//! Which path leads to which handler, and what surrounds all of them.

use std::sync::LazyLock;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, delete, get, on, post, put};
use http::header::CONTENT_TYPE;
use tower::ServiceExt;

use super::{
    ApiError, HttpState, cors, events, handlers, history, network, openapi, snapshots, transfers,
};

/// Operations that upstream has and this server has not; docs/api.md tells more. Any other unknown
/// path is not upstream's either.
const NOT_IMPLEMENTED: &[&str] = &[
    "GET /templates",
    "POST /templates",
    "GET /v2/templates",
    "POST /v2/templates",
    "POST /v3/templates",
    "GET /templates/{templateID}",
    "POST /templates/{templateID}",
    "PATCH /templates/{templateID}",
    "PATCH /v2/templates/{templateID}",
    "GET /templates/{templateID}/files/{hash}",
    "POST /templates/{templateID}/builds/{buildID}",
    "POST /v2/templates/{templateID}/builds/{buildID}",
    "GET /templates/{templateID}/builds/{buildID}/status",
    "GET /templates/{templateID}/builds/{buildID}/logs",
    "GET /templates/aliases/{alias}",
    "POST /templates/tags",
    "DELETE /templates/tags",
    "GET /templates/{templateID}/tags",
    "GET /volumes",
    "POST /volumes",
    "GET /volumes/{volumeID}",
    "DELETE /volumes/{volumeID}",
    "GET /volumecontent/{volumeID}/path",
    "PATCH /volumecontent/{volumeID}/path",
    "DELETE /volumecontent/{volumeID}/path",
    "GET /volumecontent/{volumeID}/dir",
    "POST /volumecontent/{volumeID}/dir",
    "GET /volumecontent/{volumeID}/file",
    "PUT /volumecontent/{volumeID}/file",
    "GET /secrets",
    "POST /secrets",
    "GET /secrets/{secretID}",
    "POST /secrets/{secretID}",
    "DELETE /secrets/{secretID}",
    "GET /teams",
    "GET /teams/{teamID}/metrics",
    "GET /teams/{teamID}/metrics/max",
    "GET /api-keys",
    "POST /api-keys",
    "PATCH /api-keys/{apiKeyID}",
    "DELETE /api-keys/{apiKeyID}",
    "POST /access-tokens",
    "DELETE /access-tokens/{accessTokenID}",
    "GET /nodes",
    "GET /nodes/{nodeID}",
    "POST /nodes/{nodeID}",
    "POST /admin/teams/{teamID}/sandboxes/kill",
    "GET /admin/sandboxes/running-counts",
    "POST /admin/teams/{teamID}/builds/cancel",
    "POST /admin/teams/{teamID}/api-keys",
    "DELETE /admin/teams/{teamID}/api-keys/{apiKeyID}",
];

/// The control plane as one function from request to response.
#[derive(Clone)]
pub struct Api {
    router: Router,
    state: HttpState,
}

impl Api {
    /// All routes over `state`.
    pub fn new(state: HttpState) -> Self {
        let authenticated = not_implemented(routes())
            .route_layer(middleware::from_fn_with_state(state.clone(), authenticate));
        let router = Router::new()
            .route("/health", get(handlers::health))
            .route("/openapi.json", get(document))
            .merge(authenticated)
            .fallback(no_such_route)
            .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
            .with_state(state.clone());
        Self { router, state }
    }

    /// Answers one request.
    ///
    /// The work is done in a task of its own: a client that leaves in the middle must not leave a
    /// half-done call behind, and a panic must still be answered in the form clients can read.
    pub async fn call(&self, request: Request<Body>) -> Response {
        if cors::is_preflight(&request) {
            return cors::preflight();
        }
        let work = self.state.tasks.spawn(self.router.clone().oneshot(request));
        let mut response = match work.await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(error) => {
                tracing::error!(%error, "a request handler did not end");
                ApiError::Internal.into_response()
            }
        };
        cors::allow(response.headers_mut());
        response
    }
}

fn routes() -> Router<HttpState> {
    let one = get(handlers::get).delete(handlers::kill);
    Router::new()
        .route("/sandboxes", get(handlers::list).post(handlers::create))
        .route(
            "/v2/sandboxes",
            get(handlers::list_v2).post(handlers::create_v2),
        )
        .route("/sandboxes/{sandboxID}", one)
        .route("/sandboxes/{sandboxID}/connect", post(handlers::connect))
        .route(
            "/v2/sandboxes/{sandboxID}/connect",
            post(handlers::connect_v2),
        )
        .route("/sandboxes/{sandboxID}/pause", post(handlers::pause))
        .route("/sandboxes/{sandboxID}/resume", post(handlers::resume))
        .route(
            "/sandboxes/{sandboxID}/timeout",
            post(handlers::set_timeout),
        )
        .route("/sandboxes/{sandboxID}/network", put(network::update))
        .route("/sandboxes/{sandboxID}/refreshes", post(handlers::extend))
        .route("/sandboxes/{sandboxID}/snapshots", post(snapshots::create))
        .route("/sandboxes/{sandboxID}/fork", post(snapshots::fork))
        .route("/sandboxes/{sandboxID}/rollback", post(snapshots::rollback))
        .route(
            "/sandboxes/{sandboxID}/storage",
            get(snapshots::sandbox_storage),
        )
        .route("/snapshots", get(snapshots::list))
        .route(
            "/snapshots/{snapshotID}/storage",
            get(snapshots::snapshot_storage),
        )
        .route("/snapshots/import", post(transfers::import))
        .route(
            "/snapshots/{snapshotID}/export",
            get(transfers::export_snapshot),
        )
        .route(
            "/sandboxes/{sandboxID}/export",
            get(transfers::export_sandbox),
        )
        .route("/templates/{templateID}", delete(snapshots::delete))
        .route("/sandboxes/metrics", get(history::metrics_of_many))
        .route("/sandboxes/{sandboxID}/metrics", get(history::metrics))
        .route("/sandboxes/{sandboxID}/logs", get(history::logs))
        .route("/v2/sandboxes/{sandboxID}/logs", get(history::logs_v2))
        .route("/events/sandboxes", get(events::of_all))
        .route("/events/sandboxes/{sandboxID}", get(events::of_one))
}

fn not_implemented(mut router: Router<HttpState>) -> Router<HttpState> {
    for operation in NOT_IMPLEMENTED.iter().copied() {
        let (method, path) = operation
            .split_once(' ')
            .expect("the table has a method and a path");
        let answer = async move || ApiError::NotImplemented(operation);
        router = router.route(
            path,
            match method {
                "GET" => get(answer),
                "POST" => post(answer),
                "DELETE" => delete(answer),
                "PUT" => on(MethodFilter::PUT, answer),
                "PATCH" => on(MethodFilter::PATCH, answer),
                other => unreachable!("no operation has the method {other}"),
            },
        );
    }
    router
}

/// Before anything else is looked at: without a key, a nonsense id is 401 and not 400.
async fn authenticate(State(state): State<HttpState>, request: Request, next: Next) -> Response {
    match state.key.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn no_such_route(request: Request) -> ApiError {
    let asked = format!("{} {}", request.method(), request.uri().path());
    if request.headers().contains_key("e2b-sandbox-id") {
        return ApiError::NoSandboxHost(asked);
    }
    ApiError::NoSuchRoute(asked)
}

/// Rendered once: it takes milliseconds, and anybody may ask without a key.
async fn document() -> Response {
    static RENDERED: LazyLock<Bytes> = LazyLock::new(|| openapi::document().into());
    ([(CONTENT_TYPE, "application/json")], RENDERED.clone()).into_response()
}

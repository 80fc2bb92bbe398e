//! The OpenAPI document, made from the handlers and committed as `openapi.json`.

use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{events, handlers, history, network, snapshots, transfers};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "SandBase",
        description = "Sandboxes that can be paused and resumed, compatible with E2B's SDKs. \
                       Requests to the inside of a sandbox (host `<port>-<sandboxID>.<domain>`, or \
                       the headers `E2b-Sandbox-Id` and `E2b-Sandbox-Port`) are not part of this \
                       document.",
        license(name = "Apache-2.0"),
    ),
    paths(
        handlers::health,
        handlers::create,
        handlers::create_v2,
        handlers::list,
        handlers::list_v2,
        handlers::get,
        handlers::kill,
        handlers::connect,
        handlers::connect_v2,
        handlers::pause,
        handlers::resume,
        handlers::set_timeout,
        handlers::extend,
        network::update,
        snapshots::create,
        snapshots::list,
        snapshots::delete,
        snapshots::fork,
        snapshots::rollback,
        snapshots::sandbox_storage,
        snapshots::snapshot_storage,
        transfers::export_snapshot,
        transfers::export_sandbox,
        transfers::import,
        history::metrics,
        history::metrics_of_many,
        history::logs,
        history::logs_v2,
        events::of_all,
        events::of_one,
    ),
    security(("apiKey" = []), ("bearer" = [])),
    modifiers(&Security),
    tags(
        (name = "sandboxes", description = "Sandboxes and their lifecycle"),
        (name = "snapshots", description = "Snapshots of sandboxes, and what is made from them"),
        (name = "server", description = "The server itself"),
    ),
)]
struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let header = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        components.add_security_scheme("apiKey", header);
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        components.add_security_scheme("bearer", bearer);
    }
}

/// The document as JSON text.
pub fn document() -> String {
    let mut text = Document::openapi()
        .to_pretty_json()
        .expect("the document is made of plain values");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_document_is_not_stale() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi.json");
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        let stale = "openapi.json is stale: run the tests once with UPDATE_OPENAPI=1 and commit it";
        assert!(committed == document(), "{stale}");
    }
}

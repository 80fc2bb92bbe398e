//! `POST /files` (contract §6.3).

use std::collections::BTreeMap;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::body::{Body as _, Incoming};
use serde::Serialize;
use serde_json::json;

use super::attributes;
use super::multipart::{self, Multipart};
use super::query::{self, Operation, Query};
use super::target::Target;
use super::upload_body::{self, UploadBody};
use crate::agent::Agent;
use crate::log::Level;
use crate::paths;
use crate::server::{self, Body, Failed};
use crate::users::User;

/// An uploaded file in the reply. SDK tests compare it whole, so it has no other keys.
#[derive(Debug, Serialize)]
pub(crate) struct Written {
    path: String,
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

impl Written {
    /// The reply for a file at `path`.
    pub(crate) fn new(path: String, metadata: BTreeMap<String, String>) -> Self {
        Self {
            name: paths::base_name(&path),
            path,
            kind: "file",
            metadata,
        }
    }
}

/// What all files of one upload share.
struct Upload {
    agent: Arc<Agent>,
    user: User,
    path: Option<String>,
    metadata: BTreeMap<String, String>,
    announced: Option<u64>,
}

pub(crate) async fn upload(
    agent: Arc<Agent>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Failed> {
    let (head, mut incoming) = request.into_parts();
    let written = receive(&agent, &head, &mut incoming).await;
    // Who asks a watcher right after this call expects to find the upload.
    agent.watchers.settle();
    if written.is_err() {
        upload_body::discard(&mut incoming).await;
    }
    Ok(server::json(StatusCode::OK, &written?))
}

async fn receive(
    agent: &Arc<Agent>,
    head: &Parts,
    incoming: &mut Incoming,
) -> Result<Vec<Written>, Failed> {
    let query = Query::parse(&head.uri)?;
    let user = query.authorize(agent, &head.headers, Operation::Write)?;
    let metadata = attributes::from_headers(&head.headers).map_err(Failed::bad_request)?;
    let upload = Upload {
        agent: Arc::clone(agent),
        user,
        path: query.path.filter(|path| !path.is_empty()),
        metadata,
        announced: incoming.size_hint().exact(),
    };
    let content_type = content_type(&head.headers);
    let body = UploadBody::new(&head.headers, incoming)?;
    match content_type.split(';').next().unwrap_or_default().trim() {
        "application/octet-stream" => upload.raw(body).await,
        kind if kind.starts_with("multipart/") => {
            let boundary = multipart::boundary(&content_type)
                .ok_or_else(|| Failed::internal("error parsing multipart form: no boundary"))?;
            upload.multipart(Multipart::new(body, &boundary)).await
        }
        kind => Err(Failed::bad_request(format!(
            "unsupported content type: {kind}"
        ))),
    }
}

fn content_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(header::CONTENT_TYPE)
        .map(|value| value.as_bytes());
    let value = String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
    match value.split_once(';') {
        Some((kind, rest)) => format!("{};{rest}", kind.to_ascii_lowercase()),
        None => value.to_ascii_lowercase(),
    }
}

impl Upload {
    fn log(&self, path: &str) {
        let fields = json!({"path": path, "username": self.user.name});
        self.agent
            .log
            .add(Level::Info, "filesystem", "file written", fields);
    }

    async fn raw(&self, mut body: UploadBody<'_>) -> Result<Vec<Written>, Failed> {
        let Some(path) = &self.path else {
            let message = "path query parameter is required for raw body upload";
            return Err(Failed::bad_request(message));
        };
        let path = query::resolve(&self.agent, path, &self.user)?;
        let mut target = Target::open(path.clone(), &self.user, self.announced).await?;
        while let Some(chunk) = body.chunk().await? {
            target.write(&chunk).await?;
        }
        let metadata = target.finish(self.metadata.clone()).await?;
        self.log(&path);
        Ok(vec![Written::new(path, metadata)])
    }

    async fn multipart(&self, mut parts: Multipart<'_>) -> Result<Vec<Written>, Failed> {
        let mut written: Vec<Written> = Vec::new();
        while let Some(part) = parts.next_part().await? {
            if part.field.as_deref() != Some("file") {
                continue;
            }
            let name = self.path.as_ref().or(part.filename.as_ref());
            let name = name.map(String::as_str).unwrap_or_default();
            let path = query::resolve(&self.agent, name, &self.user)?;
            if written.iter().any(|earlier| earlier.path == path) {
                return Err(Failed::bad_request(format!(
                    "you cannot upload multiple files to the same path '{path}' in one upload \
                     request, only the first specified file was uploaded"
                )));
            }
            let mut target = Target::open(path.clone(), &self.user, self.announced).await?;
            while let Some(chunk) = parts.chunk().await? {
                target.write(&chunk).await?;
            }
            let metadata = target.finish(self.metadata.clone()).await?;
            self.log(&path);
            written.push(Written::new(path, metadata));
        }
        Ok(written)
    }
}

//! Calls of a server's API.

use std::io;
use std::sync::Arc;

use anyhow::{Context, bail};
use api_types::ErrorBody;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Longest answer that is read whole.
const ANSWER_LIMIT: usize = 64 << 20;

/// The body of a request: some JSON, or a file as it is read.
pub(super) type Body = BoxBody<Bytes, io::Error>;

/// A server and the key for it.
pub(super) struct Client {
    client: legacy::Client<HttpsConnector<HttpConnector>, Body>,
    url: String,
    key: String,
}

/// An answer that is a success, read to its end.
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// The body as what it must be.
    pub(super) fn decode<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.body).context("understand the server's answer")
    }

    /// The body as it is; `null` when there is none.
    pub(super) fn value(&self) -> anyhow::Result<Value> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        self.decode()
    }
}

impl Client {
    pub(super) fn new(url: &str, key: String) -> anyhow::Result<Self> {
        let builder = rustls::ClientConfig::builder();
        let config = if url.starts_with("https:") {
            let trusted = builder.with_native_roots();
            trusted
                .context("find the certificates that this host trusts; install ca-certificates")?
        } else {
            builder.with_root_certificates(Arc::new(rustls::RootCertStore::empty()))
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config.with_no_client_auth())
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            client: legacy::Client::builder(TokioExecutor::new()).build(connector),
            url: url.trim_end_matches('/').to_owned(),
            key,
        })
    }

    /// Sends JSON, or nothing for `null`, and reads the answer.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<Answer> {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
        let response = self.open(method, path, BoxBody::new(body)).await?;
        read(response).await
    }

    /// Sends a request; an answer that is a success is for the caller to read.
    pub(super) async fn open(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> anyhow::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("x-api-key", &self.key)
            .header("content-type", "application/json")
            .body(body)
            .context("make a request; the URL or the key is malformed")?;
        let response = self.client.request(request).await.with_context(|| {
            format!(
                "talk to the server at {}; --url or E2B_API_URL names another one",
                self.url
            )
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        bail!("{}", refusal(response).await)
    }
}

/// Reads an answer to its end.
pub(super) async fn read(response: Response<Incoming>) -> anyhow::Result<Answer> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_LIMIT).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?;
    Ok(Answer {
        headers: parts.headers,
        body: body.to_bytes(),
    })
}

/// What the server says of why it refuses.
async fn refusal(response: Response<Incoming>) -> String {
    let status = response.status();
    let answer = read(response).await;
    let said = answer
        .ok()
        .and_then(|answer| answer.decode::<ErrorBody>().ok());
    let message = said.map_or_else(|| "the server does not say why".to_owned(), |it| it.message);
    let hint = match status {
        StatusCode::UNAUTHORIZED => "; --key, E2B_API_KEY or <data dir>/api-key give the key",
        _ => "",
    };
    format!("{message} ({}){hint}", status.as_u16())
}

/// A piece of a path or of a query string, with everything escaped that could mean something.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_stay_one_piece_of_a_path() {
        assert_eq!(escaped("sandbase/a-b_c:v1"), "sandbase%2Fa-b_c%3Av1");
        assert_eq!(escaped("../?x=1&ä"), "..%2F%3Fx%3D1%26%C3%A4");
    }
}

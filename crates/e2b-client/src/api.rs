//! Client of the control plane, by E2B's REST API alone.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::problem::Problem;
use crate::transport::{Answer, Call, Connections, Transport};

/// Deadline of sandboxes that are not about deadlines; a check that is abandoned leaves them for no
/// longer.
pub const TIMEOUT_SECONDS: u64 = 600;

/// Where the server is and how it knows us.
#[derive(Clone, Debug)]
pub struct Target {
    /// Base URL of the API, as in `E2B_API_URL`.
    pub url: String,
    /// Base URL for sandboxes, as in `E2B_SANDBOX_URL`. Without it sandboxes are addressed as
    /// `<port>-<sandbox id>.<domain>`, or like the API when that is on localhost or an IP address.
    pub sandbox_url: Option<String>,
    /// The API key.
    pub key: String,
}

/// What a client needs to talk to a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    #[serde(rename = "sandboxID")]
    pub id: String,
    #[serde(rename = "templateID")]
    pub template: String,
    #[serde(default, rename = "envdAccessToken")]
    pub token: Option<String>,
    #[serde(default)]
    pub domain: Option<String>,
}

/// What the server says about a sandbox, as far as it is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Detail {
    #[serde(rename = "sandboxID")]
    pub id: String,
    /// `running` or `paused`.
    pub state: String,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339; the deadline.
    pub end_at: String,
    #[serde(default)]
    pub metadata: Option<Value>,
    #[serde(default, rename = "envdAccessToken")]
    pub token: Option<String>,
}

/// A snapshot that sandboxes can be created from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Snapshot {
    #[serde(rename = "snapshotID")]
    pub id: String,
    /// `<team>/<name>:<tag>`.
    pub names: Vec<String>,
}

/// One child of a fork: one of the two.
#[derive(Debug, Deserialize)]
pub struct Forked {
    #[serde(default)]
    pub sandbox: Option<Sandbox>,
    #[serde(default)]
    pub error: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    own_bytes: u64,
}

/// The API of one server. Remembers what it made, so that nothing is left behind.
#[derive(Debug)]
pub struct Api {
    target: Target,
    /// For calls that have no function here.
    pub transport: Transport,
    sandboxes: Mutex<BTreeSet<String>>,
    snapshots: Mutex<BTreeSet<String>>,
}

impl Api {
    /// Checks the URLs; nothing is sent yet.
    pub fn new(mut target: Target, connections: Connections) -> Result<Self, Problem> {
        trim(&mut target.url);
        target.sandbox_url.iter_mut().for_each(trim);
        let known = ["http://", "https://"];
        let urls = std::iter::once(&target.url).chain(&target.sandbox_url);
        for url in urls {
            if !known.iter().any(|scheme| url.starts_with(scheme)) {
                return Err(Problem::Broken(format!(
                    "'{url}' is no URL; give something like http://localhost:3000"
                )));
            }
        }
        if target.sandbox_url.is_none() && is_local(&target.url) {
            target.sandbox_url = Some(target.url.clone());
        }
        let encrypted = target.url.starts_with("https:")
            || target
                .sandbox_url
                .iter()
                .any(|url| url.starts_with("https:"));
        Ok(Self {
            transport: Transport::new(encrypted, connections)?,
            target,
            sandboxes: Mutex::default(),
            snapshots: Mutex::default(),
        })
    }

    fn call(&self, method: Method, path: &str) -> Call {
        Call::new(method, format!("{}{path}", self.target.url))
            .header("x-api-key", self.target.key.as_str())
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Answer, Problem> {
        self.transport
            .send(self.call(Method::POST, path).json(body))
            .await
    }

    /// A request for a port of a sandbox.
    pub fn sandbox_call(
        &self,
        method: Method,
        sandbox: &Sandbox,
        port: u16,
        path: &str,
    ) -> Result<Call, Problem> {
        let base = match (&self.target.sandbox_url, &sandbox.domain) {
            (Some(url), _) => url.clone(),
            (None, Some(domain)) => {
                let scheme = self.target.url.split(':').next().unwrap_or("https");
                format!("{scheme}://{port}-{}.{domain}", sandbox.id)
            }
            (None, None) => {
                return Err(Problem::Broken(
                    "the server told no domain; give --sandbox-url".to_owned(),
                ));
            }
        };
        Ok(Call::new(method, format!("{base}{path}"))
            .header("e2b-sandbox-id", sandbox.id.as_str())
            .header("e2b-sandbox-port", port.to_string()))
    }

    /// A new sandbox.
    pub async fn create(&self, body: &Value) -> Result<Sandbox, Problem> {
        let answer = self.post("/v2/sandboxes", body).await?;
        let sandbox: Sandbox = answer
            .expect("create", StatusCode::CREATED)?
            .decode("create")?;
        lock(&self.sandboxes).insert(sandbox.id.clone());
        Ok(sandbox)
    }

    /// Whatever it answers.
    pub async fn try_create(&self, body: &Value) -> Result<Answer, Problem> {
        let answer = self.post("/v2/sandboxes", body).await?;
        if let Ok(sandbox) = answer.decode::<Sandbox>("create") {
            lock(&self.sandboxes).insert(sandbox.id);
        }
        Ok(answer)
    }

    /// Whatever it answers.
    pub async fn try_connect(&self, id: &str) -> Result<Answer, Problem> {
        let path = format!("/v2/sandboxes/{id}/connect");
        self.post(&path, &json!({ "timeout": TIMEOUT_SECONDS }))
            .await
    }

    /// Resumes a paused sandbox.
    pub async fn resume(&self, id: &str) -> Result<Sandbox, Problem> {
        let answer = self.try_connect(id).await?;
        let answer = answer.expect("connect to a paused sandbox", StatusCode::CREATED)?;
        answer.decode("connect")
    }

    /// Whatever it answers.
    pub async fn try_pause(&self, id: &str, body: &Value) -> Result<Answer, Problem> {
        self.post(&format!("/sandboxes/{id}/pause"), body).await
    }

    /// Saves files and memory.
    pub async fn pause(&self, id: &str) -> Result<(), Problem> {
        let answer = self.try_pause(id, &json!({})).await?;
        answer.expect("pause", StatusCode::NO_CONTENT)?;
        Ok(())
    }

    /// Keeps the files and not the memory.
    pub async fn pause_files(&self, id: &str) -> Result<(), Problem> {
        let answer = self.try_pause(id, &json!({ "memory": false })).await?;
        answer.expect("pause of the files only", StatusCode::NO_CONTENT)?;
        Ok(())
    }

    /// Whatever it answers.
    pub async fn try_kill(&self, id: &str) -> Result<Answer, Problem> {
        let call = self.call(Method::DELETE, &format!("/sandboxes/{id}"));
        let answer = self.transport.send(call).await?;
        if matches!(
            answer.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_FOUND
        ) {
            lock(&self.sandboxes).remove(id);
        }
        Ok(answer)
    }

    /// Removes a sandbox that must be there.
    pub async fn kill(&self, id: &str) -> Result<(), Problem> {
        let answer = self.try_kill(id).await?;
        answer.expect("kill", StatusCode::NO_CONTENT)?;
        Ok(())
    }

    /// Whatever it answers.
    pub async fn try_set_timeout(&self, id: &str, seconds: u64) -> Result<Answer, Problem> {
        let body = json!({ "timeout": seconds });
        self.post(&format!("/sandboxes/{id}/timeout"), &body).await
    }

    /// The sandbox's time is up after this, counted from now.
    pub async fn set_timeout(&self, id: &str, seconds: u64) -> Result<(), Problem> {
        let answer = self.try_set_timeout(id, seconds).await?;
        answer.expect("a new deadline", StatusCode::NO_CONTENT)?;
        Ok(())
    }

    /// `None`: there is no such sandbox.
    pub async fn get(&self, id: &str) -> Result<Option<Detail>, Problem> {
        let call = self.call(Method::GET, &format!("/sandboxes/{id}"));
        let answer = self.transport.send(call).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(answer.expect("get", StatusCode::OK)?.decode("get")?))
    }

    /// One that must be there.
    pub async fn detail(&self, id: &str) -> Result<Detail, Problem> {
        let found = self.get(id).await?;
        found.ok_or_else(|| Problem::Broken(format!("get: there is no sandbox {id}")))
    }

    /// `running`, `paused` or `gone`.
    pub async fn state(&self, id: &str) -> Result<String, Problem> {
        let found = self.get(id).await?;
        Ok(found.map_or_else(|| "gone".to_owned(), |found| found.state))
    }

    /// All sandboxes that carry a mark, page by page.
    async fn marked(&self, mark: &str) -> Result<Vec<Detail>, Problem> {
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let mut path = format!("/v2/sandboxes?metadata={MARK}%3D{mark}");
            if let Some(token) = &token {
                path.push_str(&format!("&nextToken={}", encode(token)));
            }
            let answer = self.transport.send(self.call(Method::GET, &path)).await?;
            let page: Vec<Detail> = answer.expect("list", StatusCode::OK)?.decode("list")?;
            found.extend(page);
            let next = answer.headers.get("x-next-token");
            match next.and_then(|next| next.to_str().ok()) {
                Some(next) => token = Some(next.to_owned()),
                None => return Ok(found),
            }
        }
    }

    /// The state that the list of one mark tells for a sandbox.
    pub async fn listed_state(&self, id: &str, mark: &str) -> Result<String, Problem> {
        let found = self.marked(mark).await?.into_iter();
        let mut found = found.filter(|listed| listed.id == id);
        Ok(found
            .next()
            .map_or_else(|| "gone".to_owned(), |found| found.state))
    }

    /// Notes sandboxes of a mark whose create nobody has seen the answer of.
    pub async fn find_strays(&self, mark: &str) -> Result<(), Problem> {
        let found = self.marked(mark).await?.into_iter();
        lock(&self.sandboxes).extend(found.map(|found| found.id));
        Ok(())
    }

    /// Whatever it answers.
    pub async fn try_snapshot(&self, id: &str, body: &Value) -> Result<Answer, Problem> {
        let answer = self
            .post(&format!("/sandboxes/{id}/snapshots"), body)
            .await?;
        if let Ok(snapshot) = answer.decode::<Snapshot>("snapshot") {
            lock(&self.snapshots).insert(snapshot.id);
        }
        Ok(answer)
    }

    /// A new snapshot of a sandbox.
    pub async fn snapshot(&self, id: &str, body: &Value) -> Result<Snapshot, Problem> {
        let answer = self.try_snapshot(id, body).await?;
        let answer = answer.expect("snapshot", StatusCode::CREATED)?;
        answer.decode("snapshot")
    }

    /// The snapshots of one sandbox.
    pub async fn snapshots(&self, sandbox: &str) -> Result<Vec<Snapshot>, Problem> {
        let call = self.call(Method::GET, &format!("/snapshots?sandboxID={sandbox}"));
        let answer = self.transport.send(call).await?;
        answer
            .expect("list of snapshots", StatusCode::OK)?
            .decode("list of snapshots")
    }

    /// Whatever it answers.
    pub async fn try_delete_snapshot(&self, id: &str) -> Result<Answer, Problem> {
        let call = self.call(Method::DELETE, &format!("/templates/{}", encode(id)));
        let answer = self.transport.send(call).await?;
        if matches!(
            answer.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_FOUND
        ) {
            lock(&self.snapshots).remove(id);
        }
        Ok(answer)
    }

    /// Whatever it answers.
    pub async fn try_fork(&self, id: &str, body: &Value) -> Result<Answer, Problem> {
        let answer = self.post(&format!("/sandboxes/{id}/fork"), body).await?;
        if let Ok(children) = answer.decode::<Vec<Forked>>("fork") {
            let ids = children.into_iter().filter_map(|child| child.sandbox);
            lock(&self.sandboxes).extend(ids.map(|sandbox| sandbox.id));
        }
        Ok(answer)
    }

    /// Bytes that a sandbox alone takes on the server's disk; SandBase only.
    pub async fn own_bytes(&self, id: &str) -> Result<u64, Problem> {
        let call = self.call(Method::GET, &format!("/sandboxes/{id}/storage"));
        let answer = self.transport.send(call).await?;
        let answer = answer.expect("storage of a sandbox", StatusCode::OK)?;
        Ok(answer.decode::<Stored>("storage of a sandbox")?.own_bytes)
    }

    /// Removes everything that was made and is still there. Says what could not be removed.
    pub async fn clean_up(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let sandboxes = lock(&self.sandboxes).clone();
        for id in sandboxes {
            let result = self.try_kill(&id).await;
            let done = [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND];
            match result {
                Ok(answer) if done.contains(&answer.status) => {}
                Ok(answer) => problems.push(answer.unwanted(&format!("kill of {id}"))),
                Err(problem) => problems.push(problem),
            }
        }
        let snapshots = lock(&self.snapshots).clone();
        for id in snapshots {
            let result = self.try_delete_snapshot(&id).await;
            let done = [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND];
            match result {
                Ok(answer) if done.contains(&answer.status) => {}
                Ok(answer) => problems.push(answer.unwanted(&format!("deletion of {id}"))),
                Err(problem) => problems.push(problem),
            }
        }
        problems
    }
}

/// Metadata key that the sandboxes of a run carry, with a value of the run's own.
pub const MARK: &str = "sandbase-run";

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn trim(url: &mut String) {
    url.truncate(url.trim_end_matches('/').len());
}

/// Whether sandboxes may be addressed by headers on this host (contract §7.1).
fn is_local(url: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok()
}

/// Percent-encoding of one path segment or query value.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(url: &str, sandbox_url: Option<&str>) -> Api {
        let target = Target {
            url: url.to_owned(),
            sandbox_url: sandbox_url.map(str::to_owned),
            key: "k".to_owned(),
        };
        Api::new(target, Connections::Fresh).unwrap()
    }

    fn sandbox(domain: Option<&str>) -> Sandbox {
        Sandbox {
            id: "i1".to_owned(),
            template: "base".to_owned(),
            token: None,
            domain: domain.map(str::to_owned),
        }
    }

    #[test]
    fn snapshot_names_are_one_path_segment() {
        assert_eq!(encode("team/name:v1"), "team%2Fname%3Av1");
        assert_eq!(encode("a-b._~9"), "a-b._~9");
    }

    #[test]
    fn a_sandbox_on_a_local_server_is_addressed_by_headers() {
        for local in [
            "http://localhost:3000/",
            "http://127.0.0.1:3000",
            "http://[::1]:3000",
        ] {
            let api = api(local, None);
            let call = api
                .sandbox_call(Method::GET, &sandbox(Some("d.example")), 8000, "/x")
                .unwrap();
            assert_eq!(call.url, format!("{}/x", local.trim_end_matches('/')));
            assert!(call.headers.contains(&("e2b-sandbox-id", "i1".to_owned())));
            assert!(
                call.headers
                    .contains(&("e2b-sandbox-port", "8000".to_owned()))
            );
        }
    }

    #[test]
    fn elsewhere_the_domain_of_the_answer_leads_to_the_sandbox() {
        let api = api("http://api.example.org", None);
        let call = api.sandbox_call(Method::GET, &sandbox(Some("d.example")), 8000, "/x");
        assert_eq!(call.unwrap().url, "http://8000-i1.d.example/x");
        let call = api.sandbox_call(Method::GET, &sandbox(None), 8000, "/x");
        assert!(call.unwrap_err().to_string().contains("--sandbox-url"));
    }

    #[test]
    fn something_that_is_no_url_is_refused() {
        let target = Target {
            url: "localhost:3000".to_owned(),
            sandbox_url: None,
            key: "k".to_owned(),
        };
        let problem = Api::new(target, Connections::Fresh).unwrap_err();
        assert!(problem.to_string().contains("'localhost:3000' is no URL"));
    }

    #[test]
    fn answers_are_read_whether_or_not_optional_fields_are_there() {
        let full = json!({"sandboxID": "i", "templateID": "t", "envdAccessToken": "x",
            "domain": null, "more": 1});
        let sandbox: Sandbox = serde_json::from_value(full).unwrap();
        assert_eq!(
            (sandbox.token.as_deref(), sandbox.domain),
            (Some("x"), None)
        );
        let children = json!([{"sandbox": {"sandboxID": "i", "templateID": "t"}},
            {"error": {"code": 429, "message": "full"}}]);
        let children: Vec<Forked> = serde_json::from_value(children).unwrap();
        assert!(children[0].sandbox.is_some() && children[0].error.is_none());
        assert!(children[1].sandbox.is_none() && children[1].error.is_some());
    }
}

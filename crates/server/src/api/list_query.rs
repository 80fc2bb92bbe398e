//! Filters, order and pages of sandbox lists.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{ApiError, query};
use crate::sandbox::{PublicState, SandboxId, SandboxView};

const LARGEST_PAGE: usize = 100;

/// What a caller of the list wants to see.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListQuery {
    running: bool,
    paused: bool,
    /// Pairs that a sandbox must all have.
    metadata: BTreeMap<String, String>,
    template: Option<String>,
    started_after: Option<OffsetDateTime>,
    order: Order,
    limit: usize,
    after: Option<Position>,
}

/// Order by start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    NewestFirst,
    OldestFirst,
}

/// Place of a sandbox in the order: pages stay right when sandboxes come and go between them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Position {
    started_at: i128,
    id: String,
}

/// One page of a list.
pub(super) struct Page {
    pub(super) items: Vec<SandboxView>,
    /// There when more follow.
    pub(super) next_token: Option<String>,
    /// Running sandboxes on all pages; `None` when they were not asked for.
    pub(super) total_running: Option<usize>,
}

impl ListQuery {
    /// Reads the query string of `GET /v2/sandboxes`.
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        let pairs = query::pairs(text).ok_or_else(|| invalid("the query string is malformed"))?;
        let mut found = Self::running_only();
        found.paused = true;
        found.limit = LARGEST_PAGE;
        let mut states = Vec::new();
        let mut next_token = None;
        for (name, value) in pairs {
            match name.as_str() {
                "state" => states.extend(value.split(',').map(str::to_owned)),
                "metadata" => found.metadata = metadata_filter(&value)?,
                "template" => found.template = Some(template(value)?),
                "startedAfter" => found.started_after = Some(instant(&value)?),
                "order" => found.order = order(&value)?,
                "limit" => found.limit = limit(&value)?,
                "nextToken" => next_token = Some(value),
                // Unknown parameters are ignored, as upstream does.
                _ => {}
            }
        }
        if !states.is_empty() {
            (found.running, found.paused) = (false, false);
        }
        for state in states {
            match state.as_str() {
                "running" => found.running = true,
                "paused" => found.paused = true,
                _ => return Err(invalid("state must be running or paused")),
            }
        }
        found.after = next_token
            .map(|token| Position::parse(&token, found.order))
            .transpose()?;
        Ok(found)
    }

    /// Reads the query string of the old `GET /sandboxes`: running ones, all on one page.
    pub(super) fn parse_v1(text: &str) -> Result<Self, ApiError> {
        let pairs = query::pairs(text).ok_or_else(|| invalid("the query string is malformed"))?;
        let mut found = Self::running_only();
        if let Some((_, value)) = pairs.into_iter().find(|(name, _)| name == "metadata") {
            found.metadata = metadata_filter(&value)?;
        }
        Ok(found)
    }

    fn running_only() -> Self {
        Self {
            running: true,
            paused: false,
            metadata: BTreeMap::new(),
            template: None,
            started_after: None,
            order: Order::NewestFirst,
            limit: usize::MAX,
            after: None,
        }
    }

    /// Cuts the page out of all sandboxes.
    pub(super) fn page(&self, mut views: Vec<SandboxView>) -> Page {
        views.retain(|view| self.wants(view));
        let running = views
            .iter()
            .filter(|view| view.state == PublicState::Running)
            .count();
        let total_running = self.running.then_some(running);
        views.sort_by(|a, b| self.order.compare(&Position::of(a), &Position::of(b)));
        if let Some(after) = &self.after {
            views.retain(|v| self.order.compare(&Position::of(v), after) == Ordering::Greater);
        }
        let more = views.len() > self.limit;
        views.truncate(self.limit);
        let last = views.last().filter(|_| more);
        let next_token = last.map(|view| Position::of(view).token(self.order));
        Page {
            items: views,
            next_token,
            total_running,
        }
    }

    fn wants(&self, view: &SandboxView) -> bool {
        let state = match view.state {
            PublicState::Running => self.running,
            PublicState::Paused => self.paused,
        };
        let template = self.template.as_ref();
        state
            && self
                .metadata
                .iter()
                .all(|(key, value)| view.metadata.get(key) == Some(value))
            && template.is_none_or(|name| *name == view.template_id || *name == view.alias)
            && self
                .started_after
                .is_none_or(|after| micros(view.started_at) >= micros(after))
    }
}

impl Order {
    fn compare(self, a: &Position, b: &Position) -> Ordering {
        let newest_first = b
            .started_at
            .cmp(&a.started_at)
            .then_with(|| a.id.cmp(&b.id));
        match self {
            Self::NewestFirst => newest_first,
            Self::OldestFirst => newest_first.reverse(),
        }
    }

    fn letter(self) -> &'static str {
        match self {
            Self::NewestFirst => "d",
            Self::OldestFirst => "a",
        }
    }
}

impl Position {
    fn of(view: &SandboxView) -> Self {
        Self {
            started_at: view.started_at.unix_timestamp_nanos(),
            id: view.id.to_string(),
        }
    }

    fn token(&self, order: Order) -> String {
        let text = format!("{}:{}:{}", order.letter(), self.started_at, self.id);
        URL_SAFE_NO_PAD.encode(text)
    }

    fn parse(token: &str, order: Order) -> Result<Self, ApiError> {
        let bytes = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
        let text = String::from_utf8(bytes).unwrap_or_default();
        let mut parts = text.splitn(3, ':');
        let letter = parts.next();
        let started_at = parts.next().and_then(|text| text.parse().ok());
        let id = parts.next().and_then(SandboxId::parse);
        match (letter == Some(order.letter()), started_at, id) {
            (true, Some(started_at), Some(id)) => Ok(Self {
                started_at,
                id: id.to_string(),
            }),
            _ => Err(invalid("nextToken is not one that this list gave out")),
        }
    }
}

/// Clients encode three times: each key and value, the form made of them, and the query value,
/// which is decoded already here.
fn metadata_filter(value: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let wrong = || invalid("metadata must be key=value pairs joined by '&'");
    let each_a_pair = value.split('&').all(|pair| pair.matches('=').count() == 1);
    if !each_a_pair {
        return Err(wrong());
    }
    let pairs = query::pairs(value).ok_or_else(wrong)?;
    let decoded = pairs
        .iter()
        .map(|(key, value)| Some((query::percent_decode(key)?, query::percent_decode(value)?)));
    decoded.collect::<Option<_>>().ok_or_else(wrong)
}

fn template(value: String) -> Result<String, ApiError> {
    if value.is_empty() || value.contains(':') {
        return Err(invalid("template must be an id or a name without a tag"));
    }
    Ok(value.to_lowercase())
}

fn instant(value: &str) -> Result<OffsetDateTime, ApiError> {
    // A '+' that the caller forgot to escape has become a space.
    OffsetDateTime::parse(&value.replace(' ', "+"), &Rfc3339)
        .map_err(|_| invalid("startedAfter must be an RFC 3339 time"))
}

fn order(value: &str) -> Result<Order, ApiError> {
    match value {
        "desc" => Ok(Order::NewestFirst),
        "asc" => Ok(Order::OldestFirst),
        _ => Err(invalid("order must be asc or desc")),
    }
}

fn limit(value: &str) -> Result<usize, ApiError> {
    let limit = value
        .parse()
        .ok()
        .filter(|limit| (1..=LARGEST_PAGE).contains(limit));
    limit.ok_or_else(|| invalid("limit must be from 1 to 100"))
}

fn micros(instant: OffsetDateTime) -> i128 {
    instant.unix_timestamp_nanos().div_euclid(1000)
}

fn invalid(text: &str) -> ApiError {
    ApiError::Validation(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{Lifecycle, OnTimeout};

    fn view(id: &str, started_at: i64, state: PublicState) -> SandboxView {
        let started_at = OffsetDateTime::from_unix_timestamp(started_at).unwrap();
        SandboxView {
            id: SandboxId::parse(id).unwrap(),
            template_id: "t1".into(),
            alias: "base".into(),
            started_at,
            end_at: started_at,
            state,
            pause_mode: None,
            memory_lost: None,
            agent_silent: false,
            cpu_count: 1,
            memory_mb: 128,
            disk_size_mb: 0,
            metadata: BTreeMap::from([("id".into(), id.into())]),
            access_token: String::new(),
            allow_internet_access: None,
            ingress: Default::default(),
            lifecycle: Lifecycle {
                on_timeout: OnTimeout::Kill,
                auto_resume: false,
            },
        }
    }

    fn some() -> Vec<SandboxView> {
        vec![
            view("c", 10, PublicState::Running),
            view("a", 20, PublicState::Paused),
            view("b", 10, PublicState::Running),
            view("d", 30, PublicState::Running),
        ]
    }

    fn ids(page: &Page) -> Vec<&str> {
        page.items.iter().map(|view| view.id.as_str()).collect()
    }

    fn list(query: &str) -> Page {
        ListQuery::parse(query).unwrap().page(some())
    }

    #[test]
    fn metadata_is_decoded_in_three_layers() {
        // As the SDKs send {"a b": "c&d", "x": "1"}.
        let sent = "metadata=a%252520b%3Dc%252526d%26x%3D1";
        let found = ListQuery::parse(sent).unwrap().metadata;
        let expected = [("a b", "c&d"), ("x", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(found, BTreeMap::from(expected));
        let plain = ListQuery::parse_v1("metadata=user%3Dabc").unwrap().metadata;
        assert_eq!(plain["user"], "abc");
        for wrong in [
            "metadata=",
            "metadata=a",
            "metadata=a%3Db%3Dc",
            "metadata=a%3D%25",
        ] {
            assert!(ListQuery::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_newest_come_first_and_ties_are_broken_by_id() {
        assert_eq!(ids(&list("")), ["d", "a", "b", "c"]);
        assert_eq!(ids(&list("order=asc")), ["c", "b", "a", "d"]);
        let v1 = ListQuery::parse_v1("limit=1").unwrap().page(some());
        assert_eq!(ids(&v1), ["d", "b", "c"]);
    }

    #[test]
    fn filters_all_have_to_match() {
        assert_eq!(ids(&list("state=paused")), ["a"]);
        assert_eq!(ids(&list("state=paused%2Crunning")), ["d", "a", "b", "c"]);
        assert_eq!(
            ids(&list("state=paused&state=running")),
            ["d", "a", "b", "c"]
        );
        assert_eq!(ids(&list("metadata=id%3Db")), ["b"]);
        assert_eq!(
            ids(&list("metadata=id%3Db&state=paused")),
            Vec::<&str>::new()
        );
        assert_eq!(
            ids(&list("template=base&startedAfter=1970-01-01T00:00:20Z")),
            ["d", "a"]
        );
        assert_eq!(
            ids(&list("startedAfter=1970-01-01T01:00:20%2B01:00")),
            ["d", "a"]
        );
        assert_eq!(ids(&list("template=T1")).len(), 4);
        assert_eq!(ids(&list("template=other")), Vec::<&str>::new());
    }

    #[test]
    fn running_ones_are_counted_over_all_pages() {
        assert_eq!(list("limit=1").total_running, Some(3));
        assert_eq!(list("state=paused").total_running, None);
    }

    #[test]
    fn pages_meet_every_sandbox_once_and_the_last_has_no_token() {
        for order in ["asc", "desc"] {
            let mut met = Vec::new();
            let mut query = format!("limit=1&order={order}");
            loop {
                let page = list(&query);
                met.extend(page.items.iter().map(|view| view.id.to_string()));
                let Some(token) = page.next_token else { break };
                query = format!("limit=1&order={order}&nextToken={token}");
            }
            let all = list(&format!("order={order}"));
            assert_eq!(met, ids(&all));
        }
    }

    #[test]
    fn a_page_goes_on_where_the_last_ended_when_sandboxes_come_and_go() {
        let token = list("limit=2").next_token.unwrap();
        let mut later = some();
        later.retain(|view| view.id.as_str() != "a");
        later.push(view("new", 40, PublicState::Running));
        let query = ListQuery::parse(&format!("nextToken={token}")).unwrap();
        assert_eq!(ids(&query.page(later)), ["b", "c"]);
    }

    #[test]
    fn bad_parameters_are_refused() {
        let token = list("limit=1").next_token.unwrap();
        for wrong in [
            "state=stopped",
            "state=",
            "limit=0",
            "limit=101",
            "limit=x",
            "order=up",
            "startedAfter=yesterday",
            "template=a:b",
            "nextToken=garbage",
            "nextToken=",
            &format!("order=asc&nextToken={token}"),
        ] {
            let error = ListQuery::parse(wrong).unwrap_err();
            assert!(error.to_string().starts_with("validation error"), "{wrong}");
        }
    }
}

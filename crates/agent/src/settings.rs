//! What the host told the agent: who the sandbox is, who may connect, and the global environment.

use std::collections::BTreeMap;

use agent_api::InitRequest;
use time::OffsetDateTime;

/// Owned by the agent behind one lock and copied out for each request.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Token clients have to send; `None` lets everyone in.
    pub(crate) access_token: Option<String>,
    /// User of requests that name none.
    pub(crate) default_user: String,
    /// Meaning of an empty path; empty for the user's home.
    pub(crate) default_workdir: String,
    /// What the sandbox may use; `None` when nobody said.
    pub(crate) memory_limit: Option<u64>,
    system_env: BTreeMap<String, String>,
    user_env: BTreeMap<String, String>,
    lifecycle_id: Option<String>,
    newest: Option<OffsetDateTime>,
}

/// What an init call changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// Sent before one that was applied already: nothing changed.
    Stale,
    /// The same execution told again.
    SameLifecycle,
    /// The guest runs as another execution than before.
    NewLifecycle,
}

impl Settings {
    /// Settings of an agent nobody has initialised yet.
    pub(crate) fn new(default_user: String) -> Self {
        let system_env = BTreeMap::from([("E2B_SANDBOX".to_owned(), "true".to_owned())]);
        Self {
            access_token: None,
            default_user,
            default_workdir: String::new(),
            memory_limit: None,
            system_env,
            user_env: BTreeMap::new(),
            lifecycle_id: None,
            newest: None,
        }
    }

    /// Takes over what the host sent.
    pub(crate) fn apply(&mut self, request: &InitRequest) -> Applied {
        let new_lifecycle = self.lifecycle_id.as_ref() != Some(&request.lifecycle_id);
        // A new execution may come from a host whose clock is behind: only repeats can be stale.
        if !new_lifecycle && self.newest.is_some_and(|newest| request.timestamp < newest) {
            return Applied::Stale;
        }
        self.newest = Some(request.timestamp);
        self.lifecycle_id = Some(request.lifecycle_id.clone());
        self.access_token = request
            .access_token
            .clone()
            .filter(|token| !token.is_empty());
        self.memory_limit = request.memory_limit_bytes;
        self.system_env
            .insert("E2B_SANDBOX_ID".to_owned(), request.sandbox_id.clone());
        self.system_env
            .insert("E2B_TEMPLATE_ID".to_owned(), request.template_id.clone());
        if let Some(vars) = &request.env_vars {
            self.user_env.clone_from(vars);
        }
        if !request.default_user.is_empty() {
            self.default_user.clone_from(&request.default_user);
        }
        if !request.default_workdir.is_empty() {
            self.default_workdir.clone_from(&request.default_workdir);
        }
        if new_lifecycle {
            Applied::NewLifecycle
        } else {
            Applied::SameLifecycle
        }
    }

    /// The sandbox that the memory of this agent belongs to; `None` after a boot.
    pub(crate) fn sandbox_id(&self) -> Option<&str> {
        self.system_env.get("E2B_SANDBOX_ID").map(String::as_str)
    }

    /// The global table: user entries, then system ones, which they cannot replace.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let mut table = self.user_env.clone();
        table.extend(self.system_env.clone());
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(lifecycle: &str, second: i64, vars: Option<&[(&str, &str)]>) -> InitRequest {
        let pairs = |vars: &[(&str, &str)]| {
            vars.iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        InitRequest {
            lifecycle_id: lifecycle.to_owned(),
            timestamp: OffsetDateTime::from_unix_timestamp(second).unwrap(),
            sandbox_id: "s1".to_owned(),
            template_id: "t1".to_owned(),
            hostname: "box".to_owned(),
            access_token: Some("token".to_owned()),
            env_vars: vars.map(pairs),
            default_user: String::new(),
            default_workdir: "/code".to_owned(),
            memory_limit_bytes: None,
            entropy: None,
        }
    }

    #[test]
    fn user_entries_are_replaced_and_cannot_hide_system_ones() {
        let mut settings = Settings::new("root".to_owned());
        let first = [("A", "1"), ("E2B_SANDBOX_ID", "forged")];
        assert_eq!(
            settings.apply(&request("l1", 1, Some(&first))),
            Applied::NewLifecycle
        );
        assert_eq!(settings.environment()["E2B_SANDBOX_ID"], "s1");
        settings.apply(&request("l1", 2, Some(&[("B", "2")])));
        assert!(!settings.environment().contains_key("A"));
        settings.apply(&request("l1", 3, None));
        assert_eq!(settings.environment()["B"], "2");
        assert_eq!(
            (
                settings.default_user.as_str(),
                settings.default_workdir.as_str()
            ),
            ("root", "/code")
        );
    }

    #[test]
    fn an_older_call_of_the_same_lifecycle_changes_nothing() {
        let mut settings = Settings::new("root".to_owned());
        settings.apply(&request("l1", 5, None));
        assert_eq!(
            settings.apply(&request("l1", 4, Some(&[("A", "1")]))),
            Applied::Stale
        );
        assert!(!settings.environment().contains_key("A"));
        assert_eq!(
            settings.apply(&request("l2", 4, None)),
            Applied::NewLifecycle
        );
    }
}

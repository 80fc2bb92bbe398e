//! From the body of a create to a request that the sandbox module understands, or a refusal.

use std::time::Duration;

use api_types::{NewSandbox, NewSandboxNetwork};
use serde_json::Value;

use super::ApiError;
use crate::sandbox::{CreateRequest, HostMask, IngressRules, Lifecycle, OnTimeout, PauseMode};

const LONGEST_REFERENCE: usize = 256;

/// Checks in upstream's order: template reference, timeout, pause options, what is not supported.
pub(super) fn create_request(
    body: NewSandbox,
    default_timeout: Duration,
) -> Result<CreateRequest, ApiError> {
    let template = template_reference(&body.template_id)?;
    let timeout = match body.timeout {
        None => default_timeout,
        Some(0) => return Err(invalid("timeout must be greater than 0")),
        Some(given) => seconds("timeout", given)?,
    };
    let lifecycle = lifecycle(&body)?;
    let ingress = ingress(&body)?;
    refuse_unsupported(&body)?;
    Ok(CreateRequest {
        template,
        timeout,
        lifecycle,
        metadata: body.metadata.unwrap_or_default(),
        env_vars: body.env_vars.unwrap_or_default(),
        allow_internet_access: body.allow_internet_access,
        ingress,
    })
}

/// A number of seconds that is not negative.
pub(super) fn seconds(field: &str, given: i32) -> Result<Duration, ApiError> {
    let seconds = u64::try_from(given).map_err(|_| invalid(&format!("{field} must be at least 0")));
    seconds.map(Duration::from_secs)
}

/// `[namespace/]name[:tag]`, or an id.
fn template_reference(text: &str) -> Result<String, ApiError> {
    let reference = text.trim().to_lowercase();
    let (name, tag) = match reference.split_once(':') {
        Some((name, tag)) => (name, Some(tag)),
        None => (reference.as_str(), None),
    };
    let (namespace, alias) = match name.split_once('/') {
        Some((namespace, alias)) => (Some(namespace), alias),
        None => (None, name),
    };
    let well_formed = namespace.is_none_or(|part| of(part, "-_"))
        && of(alias, "-_")
        && tag.is_none_or(|part| of(part, "-_."))
        && reference.len() <= LONGEST_REFERENCE;
    if !well_formed {
        return Err(invalid(&format!("'{text}' is not a template reference")));
    }
    Ok(reference)
}

/// Not empty and made of `[a-z0-9]` and the characters of `extra`.
fn of(part: &str, extra: &str) -> bool {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || extra.contains(c);
    !part.is_empty() && part.chars().all(valid)
}

fn lifecycle(body: &NewSandbox) -> Result<Lifecycle, ApiError> {
    let auto_pause = body.auto_pause.unwrap_or(false);
    let auto_resume = body.auto_resume.is_some_and(|resume| resume.enabled);
    let mode = match body.auto_pause_memory {
        Some(false) if !auto_pause => {
            return Err(invalid(
                "autoPauseMemory can only be false when autoPause is true",
            ));
        }
        Some(false) if auto_resume => {
            return Err(invalid(
                "autoResume needs the memory that autoPauseMemory: false drops",
            ));
        }
        Some(false) => PauseMode::Filesystem,
        Some(true) | None => PauseMode::Full,
    };
    let on_timeout = if auto_pause {
        OnTimeout::Pause(mode)
    } else {
        OnTimeout::Kill
    };
    Ok(Lifecycle {
        on_timeout,
        auto_resume,
    })
}

fn ingress(body: &NewSandbox) -> Result<IngressRules, ApiError> {
    let Some(network) = &body.network else {
        return Ok(IngressRules::default());
    };
    let private = network.allow_public_traffic == Some(false);
    // Every agent is secured here, but a client that says otherwise expects upstream's refusal.
    if private && body.secure == Some(false) {
        return Err(ApiError::PrivateNotSecure);
    }
    let host_mask =
        match network.mask_request_host.as_deref() {
            None | Some("") => None,
            Some(text) => Some(HostMask::parse(text).ok_or_else(|| {
                invalid(&format!("network.maskRequestHost: '{text}' is not a host"))
            })?),
        };
    Ok(IngressRules { private, host_mask })
}

/// Refuses by name what would otherwise be accepted and ignored. `mcp` is not among it: it is opaque
/// to upstream's server too, the SDK acts on it.
fn refuse_unsupported(body: &NewSandbox) -> Result<(), ApiError> {
    let NewSandboxNetwork {
        allow_public_traffic: _,
        mask_request_host: _,
        allow_out,
        deny_out,
        egress_proxy,
        rules,
        dns_servers,
        https_ports,
    } = body.network.clone().unwrap_or_default();
    let fields = [
        ("iam", means_something(body.iam.as_ref())),
        ("network.allowOut", means_something(allow_out.as_ref())),
        ("network.denyOut", means_something(deny_out.as_ref())),
        (
            "network.egressProxy",
            means_something(egress_proxy.as_ref()),
        ),
        ("network.rules", means_something(rules.as_ref())),
        ("network.dnsServers", means_something(dns_servers.as_ref())),
        ("network.httpsPorts", means_something(https_ports.as_ref())),
        ("volumeMounts", means_something(body.volume_mounts.as_ref())),
    ];
    match fields.into_iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(ApiError::Unsupported(field)),
        None => Ok(()),
    }
}

/// Whether a value says more than its absence would.
pub(super) fn means_something(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(fields)) => fields.values().any(|v| means_something(Some(v))),
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Bool(_) | Value::Number(_)) => true,
    }
}

fn invalid(text: &str) -> ApiError {
    ApiError::Validation(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(json: &str) -> Result<CreateRequest, ApiError> {
        let body = serde_json::from_str(json).unwrap();
        create_request(body, Duration::from_secs(15))
    }

    #[test]
    fn what_the_clients_send_is_understood() {
        let python = from(r#"{"templateID":"base","metadata":{},"envVars":{"E":"2"}}"#).unwrap();
        assert_eq!(python.timeout, Duration::from_secs(15));
        assert_eq!(python.env_vars["E"], "2");
        assert_eq!(python.lifecycle.on_timeout, OnTimeout::Kill);
        let cli =
            r#"{"templateID":"base","timeout":300,"secure":true,"allow_internet_access":true}"#;
        let cli = from(cli).unwrap();
        assert_eq!(
            (cli.timeout.as_secs(), cli.allow_internet_access),
            (300, Some(true))
        );
        let paused = r#"{"templateID":"a/b:v1.2","autoPause":true,"autoResume":{"enabled":true}}"#;
        let paused = from(paused).unwrap();
        assert_eq!(paused.template, "a/b:v1.2");
        assert_eq!(
            paused.lifecycle.on_timeout,
            OnTimeout::Pause(PauseMode::Full)
        );
        assert!(paused.lifecycle.auto_resume);
        let files = r#"{"templateID":"b","autoPause":true,"autoPauseMemory":false}"#;
        let files = from(files).unwrap().lifecycle.on_timeout;
        assert_eq!(files, OnTimeout::Pause(PauseMode::Filesystem));
    }

    #[test]
    fn values_that_mean_the_default_are_accepted() {
        for field in [
            r#""network":{}"#,
            r#""network":null"#,
            r#""network":{"allowOut":[],"denyOut":null,"rules":{},"allowPublicTraffic":true,"maskRequestHost":""}"#,
            r#""secure":false"#,
            r#""mcp":{"any":1}"#,
            r#""iam":{"tokens":{}}"#,
            r#""volumeMounts":[]"#,
            r#""timeout":null"#,
            r#""autoPauseMemory":true"#,
            r#""autoResume":{"enabled":true}"#,
            r#""somethingNew":5"#,
        ] {
            let body = format!(r#"{{"templateID":"base",{field}}}"#);
            assert!(from(&body).is_ok(), "{field}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (field, name) in [
            (r#""network":{"denyOut":["0.0.0.0/0"]}"#, "network.denyOut"),
            (r#""network":{"allowOut":["1.1.1.1"]}"#, "network.allowOut"),
            (r#""network":{"rules":{"a.b":[{}]}}"#, "network.rules"),
            (
                r#""network":{"egressProxy":{"address":"h:1"}}"#,
                "network.egressProxy",
            ),
            (r#""iam":{"tokens":{"t":{"audience":"a"}}}"#, "iam"),
            (
                r#""volumeMounts":[{"name":"v","path":"/v"}]"#,
                "volumeMounts",
            ),
        ] {
            let body = format!(r#"{{"templateID":"base",{field}}}"#);
            let error = from(&body).unwrap_err();
            assert!(
                matches!(error, ApiError::Unsupported(n) if n == name),
                "{field}: {error}"
            );
        }
    }

    #[test]
    fn private_ports_need_a_client_that_has_the_token_of_the_agent() {
        let private = r#""network":{"allowPublicTraffic":false}"#;
        for secure in ["", r#","secure":true"#, r#","secure":null"#] {
            let body = format!(r#"{{"templateID":"base",{private}{secure}}}"#);
            assert!(from(&body).unwrap().ingress.private, "{body}");
        }
        let body = format!(r#"{{"templateID":"base",{private},"secure":false}}"#);
        let told = from(&body).unwrap_err().to_string();
        let expected = "You cannot create a sandbox without public access unless you enable secure \
                        envd access via 'secure' flag.";
        assert_eq!(told, expected);
        let public =
            r#"{"templateID":"base","secure":false,"network":{"allowPublicTraffic":true}}"#;
        assert!(!from(public).unwrap().ingress.private);
    }

    #[test]
    fn what_is_wrong_is_a_validation_error() {
        for fields in [
            r#""templateID":"""#,
            r#""templateID":"a b""#,
            r#""templateID":"a/b/c""#,
            r#""templateID":"a:b:c""#,
            r#""templateID":"b","timeout":0"#,
            r#""templateID":"b","timeout":-1"#,
            r#""templateID":"b","autoPauseMemory":false"#,
            r#""templateID":"b","network":{"maskRequestHost":"a b"}"#,
            r#""templateID":"b","autoPause":true,"autoPauseMemory":false,"autoResume":{"enabled":true}"#,
        ] {
            let error = from(&format!("{{{fields}}}")).unwrap_err();
            assert!(
                error.to_string().starts_with("validation error"),
                "{fields}: {error}"
            );
        }
    }
}

//! Which server a suite looks at.

use clap::Args;
use conformance::Target;

#[derive(Args, Clone)]
pub(crate) struct TargetArguments {
    /// Base URL of the API.
    #[arg(long, env = "E2B_API_URL")]
    url: String,
    /// Base URL for sandboxes. Default: the API's when that is on localhost or an IP address, else
    /// `<port>-<sandbox id>.<domain>`.
    #[arg(long, env = "E2B_SANDBOX_URL", value_name = "URL")]
    sandbox_url: Option<String>,
    /// The API key.
    #[arg(long, env = "E2B_API_KEY", hide_env_values = true)]
    key: String,
}

impl From<TargetArguments> for Target {
    fn from(given: TargetArguments) -> Self {
        Self {
            url: given.url,
            sandbox_url: given.sandbox_url,
            key: given.key,
        }
    }
}

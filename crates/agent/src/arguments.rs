//! Command line. Production uses the defaults; tests move the agent to loopback ports.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How the agent was asked to run.
#[derive(Debug)]
pub(crate) struct Arguments {
    /// Address of the envd contract.
    pub(crate) envd: SocketAddr,
    /// Address of the private channel of the host.
    pub(crate) host_channel: SocketAddr,
    /// The only peer served on the host channel.
    pub(crate) host_peer: IpAddr,
    /// User of requests that name none, before the first init.
    pub(crate) default_user: String,
    /// How long a subscriber may hold back the output of a process.
    pub(crate) stall_limit: Duration,
    /// Where the directories of hooks are.
    pub(crate) hooks: PathBuf,
}

/// A command line that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArgumentError {
    /// A flag the agent does not have.
    #[error("unknown argument {0}")]
    Unknown(String),
    /// A flag without, or with a malformed, value.
    #[error("argument {0} needs a valid value")]
    Value(String),
}

impl Arguments {
    /// Parses the arguments after the program name.
    pub(crate) fn parse(
        mut arguments: impl Iterator<Item = String>,
    ) -> Result<Self, ArgumentError> {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let mut parsed = Self {
            envd: SocketAddr::new(any, agent_api::ENVD_PORT),
            host_channel: SocketAddr::new(any, agent_api::HOST_PORT),
            host_peer: agent_api::HOST_PEER
                .parse()
                .expect("the constant is an address"),
            default_user: "root".to_owned(),
            stall_limit: Duration::from_secs(30),
            hooks: crate::host::hooks::ROOT.into(),
        };
        while let Some(flag) = arguments.next() {
            let invalid = || ArgumentError::Value(flag.clone());
            let mut value = || arguments.next().ok_or_else(invalid);
            match flag.as_str() {
                "--envd" => parsed.envd = value()?.parse().map_err(|_| invalid())?,
                "--host-channel" => {
                    parsed.host_channel = value()?.parse().map_err(|_| invalid())?
                }
                "--host-peer" => parsed.host_peer = value()?.parse().map_err(|_| invalid())?,
                "--hooks" => parsed.hooks = value()?.into(),
                "--default-user" => parsed.default_user = value()?,
                "--stall-limit-ms" => {
                    let milliseconds = value()?.parse().map_err(|_| invalid())?;
                    parsed.stall_limit = Duration::from_millis(milliseconds);
                }
                _ => return Err(ArgumentError::Unknown(flag)),
            }
        }
        Ok(parsed)
    }
}

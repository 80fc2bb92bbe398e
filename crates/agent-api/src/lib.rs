//! What the host and the in-sandbox agent say to each other.
//!
//! The agent listens on two ports. [`ENVD_PORT`] speaks E2B's envd contract and is what clients
//! reach through the edge. [`HOST_PORT`] is ours alone: the edge never forwards to it and the agent
//! refuses peers other than the gateway.

/// TCP port of the envd contract, fixed by the E2B SDKs.
pub const ENVD_PORT: u16 = 49983;
/// TCP port of the private channel between host and agent.
pub const HOST_PORT: u16 = 49982;

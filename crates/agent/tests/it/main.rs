//! The real binary on loopback, spoken to over HTTP. Needs root, as the agent does.

// The attribute tells lints that these are tests, helpers included.
#[cfg(test)]
mod agent;
#[cfg(test)]
mod files;
#[cfg(test)]
mod filesystem;
#[cfg(test)]
mod hooks;
#[cfg(test)]
mod host;
#[cfg(test)]
mod process;
#[cfg(test)]
mod protocol;
#[cfg(test)]
mod uploads;
#[cfg(test)]
mod watch;

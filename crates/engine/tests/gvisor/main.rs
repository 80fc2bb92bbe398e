//! The gVisor engine against a real `runsc`, as root. Nothing here is skipped: what is missing
//! fails the tests and says so.
//!
//! `SANDBASE_RUNSC` names the runsc, `SANDBASE_TEST_ROOTFS` a directory with a Debian-like root
//! filesystem that has python3.

mod disks;
#[cfg(test)]
mod host;
mod images;
mod latency;
mod life;
mod limits;
mod networks;
mod survival;
#[cfg(test)]
mod traces;

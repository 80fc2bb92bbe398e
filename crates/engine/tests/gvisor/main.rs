//! The gVisor engine against a real `runsc`, as root. Nothing here is skipped: what is missing
//! fails the tests and says so.
//!
//! `SANDBASE_RUNSC` names the runsc, `SANDBASE_TEST_ROOTFS` a directory with a Debian-like root
//! filesystem that has python3.

#[cfg(test)]
mod disks;
#[cfg(test)]
mod freezing;
#[cfg(test)]
mod held_files;
#[cfg(test)]
mod host;
#[cfg(test)]
mod images;
#[cfg(test)]
mod latency;
#[cfg(test)]
mod life;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod networks;
#[cfg(test)]
mod prepared;
#[cfg(test)]
mod root;
#[cfg(test)]
mod sealed;
#[cfg(test)]
mod starts;
#[cfg(test)]
mod survival;
#[cfg(test)]
mod traces;

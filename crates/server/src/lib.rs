//! Control plane and edge proxy of SandBase: the only crate that joins the others.

pub mod api;
pub mod app;
mod blocking;
pub mod config;
pub mod db;
pub mod guest;
pub mod history;
mod limits;
pub mod listener;
pub mod logging;
pub mod memory_watch;
pub mod proxy;
mod random;
pub mod sandbox;
pub mod snapshots;
pub mod template;
pub mod transfer;

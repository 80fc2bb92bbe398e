//! Control plane and edge proxy of SandBase: the only crate that joins the others.

pub mod config;
pub mod db;
pub mod guest;
mod random;
pub mod sandbox;
pub mod template;

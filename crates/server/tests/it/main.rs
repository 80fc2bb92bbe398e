//! In-process tests of the server on the fake engine: no root, parallel, failures at every step.

mod api;
mod crash;
mod edge;
mod lifecycle;
mod served;
mod support;

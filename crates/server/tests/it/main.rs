//! In-process tests of the server on the fake engine: no root, parallel, failures at every step.

mod crash;
mod lifecycle;
mod support;

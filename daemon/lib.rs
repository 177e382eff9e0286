//! The library behind `tracecraftd` and `tracecraftctl`: see `daemon/ARCHITECTURE.md`.
#![allow(dead_code, reason = "the skeleton is being filled")]

pub mod api;
pub mod paths;

mod control;
mod durable;
mod harness;
mod mirror;
mod redact;
mod source;
mod store;

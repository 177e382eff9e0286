//! Table of contents of the tests: one file a kind of promise, all of them kept by the real binaries.
//!
//! They know the documented interface (flags, files, exit codes, the bucket's layout) and nothing of the code behind it.
//! Long campaigns are `#[ignore]`d: `tests/campaign`, `cargo test --test main -- --ignored memory` and so on. `TRACECRAFT_SAMPLES`
//! names the folder of sample transcripts; `TRACECRAFT_SEED` repeats a campaign. What needs an S3 server finds it as
//! `support/bucket.rs` says, and is skipped where there is none.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, and says where")]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests say what they skipped and did"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "these files belong to the tests, not to the program"
)]

mod support;

mod bad_input;
mod bucket;
mod bucket_kill;
mod bucket_refusals;
mod campaign;
mod crowd;
mod ctl;
mod doctor;
mod format;
mod hermes;
mod hermes_bucket;
mod hook;
mod hostile;
mod kill;
mod live;
mod memory;
mod once;
mod openclaw;
mod packaging;
mod readme;
mod room;
mod rules;
mod sacred;
mod service;
mod service_life;
mod service_upgrade;
mod surroundings;
mod terminal;
mod tidy;
mod upgrade;
mod verify;
mod verify_bucket;
mod verify_deep;
mod watch;
mod weeks;

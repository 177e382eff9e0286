//! The task that owns the state: timer, hints, commands, capture, send, compaction, recovery.

pub(crate) mod handle;

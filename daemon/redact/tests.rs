//! Guarantees of redaction.
use super::*;

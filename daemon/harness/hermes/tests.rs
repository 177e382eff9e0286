//! Tests come with the next change.

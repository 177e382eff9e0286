//! Table of contents of the tests: one file a kind of promise.

mod ctl;

//! What sources of keys promise, each against a stand-in of its endpoint on this machine and files of its own.

mod errors;
mod process;
mod profiles;
mod renewal;
mod sources;
mod sso;
mod stand_in;

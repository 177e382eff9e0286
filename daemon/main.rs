//! `tracecraftd`: flags, logging, runtime, exit code.

fn main() {}

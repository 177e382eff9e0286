//! `tracecraftctl`: flags, exit code.

fn main() {}

//! The store that speaks S3.

mod credentials;
mod signer;

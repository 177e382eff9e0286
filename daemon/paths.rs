//! Where things are: configuration, state, bucket, socket. The only module that asks the platform.

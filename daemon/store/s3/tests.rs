//! The S3 store against real servers: the suite of every store.

use std::sync::Arc;

use super::credentials::{Fixed, Keys};
use super::{S3Settings, S3Store, Signer, Transport};
use crate::durable::{Blocking, Disk, OsDisk};
use crate::store::Retry;
use crate::store::suite::contract;

/// Names an S3 endpoint for the suite; the bucket is in `TRACECRAFT_TEST_S3_BUCKET`, the keys are where AWS has them.
const ENDPOINT_VAR: &str = "TRACECRAFT_TEST_S3_ENDPOINT";

fn named_store(disk: &Arc<dyn Disk>, project: &str) -> Option<S3Store> {
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let settings = S3Settings {
        scheme: "s3",
        endpoint: var(ENDPOINT_VAR)?,
        region: var("AWS_REGION").unwrap_or_else(|| "us-east-1".into()),
        bucket: var("TRACECRAFT_TEST_S3_BUCKET").expect("the bucket of the suite"),
        project: project.into(),
    };
    let key = var("AWS_ACCESS_KEY_ID").expect("a key");
    let secret = var("AWS_SECRET_ACCESS_KEY").expect("a secret");
    let keys = Keys::lasting(&key, &secret, None, "the test");
    let signer = Signer::new(Arc::new(Fixed(keys)), &settings.region);
    let transport = Transport::new(None).unwrap();
    Some(S3Store::new(settings, transport, signer, disk.clone(), Blocking::Pool))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t41_t45_a_named_s3_store_keeps_the_contract() {
    let scratch = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
    let outbox = scratch.path().join("outbox");
    let tag = fastrand::u32(..);
    let Some(store) = named_store(&disk, &format!("suite-{tag:08x}/plain")) else {
        println!("SKIPPED the suite on a named S3 store: set {ENDPOINT_VAR}");
        return;
    };
    contract(&store, &*disk, &outbox).await;
    let store = named_store(&disk, &format!("suite-{tag:08x}/retried")).unwrap();
    let rng = fastrand::Rng::with_seed(1);
    contract(&Retry::new(store, disk.clone(), Blocking::Pool, rng), &*disk, &outbox).await;
}

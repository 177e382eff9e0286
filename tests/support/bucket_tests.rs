//! Tests of the tests: the proxy must do to requests what it says, and servers and client must understand each other.

#![cfg(test)]

use super::bucket::{Kind as ServerKind, Server};
use super::http::runtime;
use super::proxy::{Fate, Kind, Plan, Proxy, Side};
use super::s3::Client;
use super::wait_for;

/// A client that goes through a proxy before a server.
struct Behind {
    _server: Server,
    direct: Client,
    proxy: Proxy,
    client: Client,
}

fn behind(kind: ServerKind, test: &str) -> Option<Behind> {
    let server = Server::start_or_skip(kind, test)?;
    let direct = server.client.clone();
    let proxy = Proxy::start(direct.address(), 1);
    let client = Client { authority: proxy.authority(), ..direct.clone() };
    Some(Behind { _server: server, direct, proxy, client })
}

/// Puts, gets, lists and deletes through the proxy: signatures hold, and every request is counted as what it is.
fn serves(kind: ServerKind, test: &str) {
    let Some(Behind { direct, proxy, client, _server: server }) = behind(kind, test) else {
        return;
    };
    let keys = ["p/sessions/x/a b~2/meta.json", "p/sessions/x/a%41@é/part-00000-0a1b2c3d.jsonl"];
    keys.iter().for_each(|key| client.put(key, key.as_bytes()).unwrap());
    (0..1100).for_each(|n| direct.put(&format!("many/{n:04}"), b"x").unwrap());
    let listed: Vec<_> = client.list("p/").unwrap().into_iter().map(|entry| entry.key).collect();
    assert_eq!(
        listed,
        [keys[1], keys[0]].map(str::to_owned).iter().rev().cloned().collect::<Vec<_>>()
    );
    assert_eq!(client.get(keys[1]).unwrap().unwrap(), keys[1].as_bytes());
    assert_eq!(direct.get(keys[0]).unwrap().unwrap(), keys[0].as_bytes());
    assert_eq!(client.list("many/").unwrap().len(), 1100);
    client.delete(keys[0]).unwrap();
    assert_eq!(direct.get(keys[0]).unwrap(), None);
    let counts = proxy.by_kind();
    let expected = [
        (Kind::PutPart, 1),
        (Kind::PutManifest, 1),
        (Kind::GetPart, 1),
        (Kind::List, 3),
        (Kind::Delete, 1),
    ];
    assert_eq!(counts, expected.into_iter().collect());
    assert_eq!(server.checks_signatures(), kind != ServerKind::Moto);
}

#[test]
fn a_client_is_served_by_s3s_fs_through_the_proxy() {
    serves(ServerKind::S3sFs, "s3s-fs through the proxy");
}

#[test]
fn a_client_is_served_by_moto_through_the_proxy() {
    serves(ServerKind::Moto, "moto through the proxy");
}

#[test]
fn a_client_is_served_by_garage_through_the_proxy() {
    serves(ServerKind::Garage, "Garage through the proxy");
}

#[test]
fn the_proxy_fails_a_third_of_all_requests_in_every_way_of_its_plan() {
    let Some(Behind { _server: _kept, direct, proxy, client }) =
        behind(ServerKind::S3sFs, "the proxy's plan")
    else {
        return;
    };
    direct.put("p/part-all", &[7; 4000]).unwrap();
    proxy.fail(Plan::a_third());
    let mut failed = 0;
    for n in 0..300 {
        let key = format!("p/part-{n:05}");
        let put = client.put(&key, b"bytes");
        failed += usize::from(put.is_err());
        proxy.settle();
        let fate = proxy.seen().last().unwrap().fate;
        let stored = direct.get(&key).unwrap().is_some();
        assert_eq!(put.is_ok(), fate == Fate::Passed);
        assert_eq!(stored, matches!(fate, Fate::Passed | Fate::LostAfter), "{fate:?}");
        failed += usize::from(client.get("p/part-all").is_err());
    }
    assert!((140..260).contains(&failed), "{failed} of 600 failed");
    let fates = proxy.by_fate();
    assert_eq!(fates.len(), 5, "{fates:?}");
    assert!(fates.values().all(|count| *count >= 10), "{fates:?}");
}

#[test]
fn a_store_that_is_away_refuses_and_comes_back_at_the_same_address() {
    let Some(Behind { _server: _kept, proxy, client, direct: _ }) =
        behind(ServerKind::S3sFs, "a store that is away")
    else {
        return;
    };
    client.put("p/x", b"x").unwrap();
    for _ in 0..3 {
        proxy.there(false);
        let why = client.get("p/x").unwrap_err().to_string();
        assert!(why.contains("refused"), "{why}");
        proxy.there(true);
        assert!(client.get("p/x").unwrap().is_some());
    }
    assert_eq!(proxy.count(), 4, "what is refused is not counted");
}

#[test]
fn a_request_is_held_before_and_after_the_server_has_done_it() {
    let Some(Behind { _server: _kept, direct, proxy, client }) =
        behind(ServerKind::S3sFs, "the gates")
    else {
        return;
    };
    for (number, side) in [(1, Side::Before), (2, Side::After)] {
        proxy.hold(number, Some(Kind::PutPart), side);
        client.put("p/other", b"x").unwrap();
        (1..number).for_each(|n| client.put(&format!("p/part-{n}"), b"x").unwrap());
        let held = format!("p/part-{number}-held");
        let putting = client.begin_put(&held, b"x");
        wait_for("the gate", || proxy.holds().then_some(()));
        assert_eq!(direct.get(&held).unwrap().is_some(), side == Side::After);
        assert!(!putting.is_finished());
        proxy.release();
        assert!(runtime().block_on(putting).unwrap());
        assert!(direct.get(&held).unwrap().is_some());
    }
}

#[test]
fn a_held_request_whose_client_is_gone_never_reaches_the_server() {
    let Some(Behind { _server: _kept, direct, proxy, client }) =
        behind(ServerKind::S3sFs, "a dead client")
    else {
        return;
    };
    proxy.hold(1, None, Side::Before);
    let putting = client.begin_put("p/part-1", b"x");
    wait_for("the gate", || proxy.holds().then_some(()));
    putting.abort();
    proxy.settle();
    proxy.release();
    assert!(direct.get("p/part-1").unwrap().is_none());
}

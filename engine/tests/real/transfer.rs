//! A large snapshot for a member that is killed twice while it receives: hardly more is sent than the snapshot has bytes.
//!
//! 96 MiB by default; `CORACLE_TRANSFER_MIB=1024` for the long run.

use std::net::SocketAddr;
use std::time::Instant;

use crate::kv::{Cluster, call, ready};
use crate::operator::{ask, metric};
use crate::process::{Process, free_addresses, number, wait_for};
use crate::resp::{Connection, Reply, request};

const VALUE_BYTES: usize = 100_000;
/// Commands under way.
const WINDOW: u64 = 64;

/// Sets all keys.
fn fill(connection: &mut Connection, keys: u64, value: &[u8]) {
    for from in (0..keys).step_by(WINDOW as usize) {
        let window = from..keys.min(from + WINDOW);
        for key in window.clone() {
            connection.send(&request(&[b"SET", format!("key-{key:06}").as_bytes(), value])).unwrap();
        }
        for key in window {
            let reply = connection.reply().unwrap();
            if reply != Reply::Simple("OK".into()) {
                call(connection, &["SET", &format!("key-{key:06}"), std::str::from_utf8(value).unwrap()]);
            }
        }
    }
}

/// What a node says of its only group.
fn group(admin: SocketAddr, key: &str) -> Option<u64> {
    ask(admin, "GET", "/api/overview", "")?["groups"][0][key].as_u64()
}

#[test]
fn a_snapshot_whose_receiver_is_killed_twice_is_hardly_sent_more_than_once() {
    let bytes = number("CORACLE_TRANSFER_MIB", 96) << 20;
    let keys = bytes / VALUE_BYTES as u64;
    let mut cluster = Cluster::new(3, 1);
    cluster.admins = free_addresses(3);
    let (mut processes, addresses): (Vec<Process>, Vec<_>) = cluster.start_all().into_iter().unzip();
    let mut connection = Connection::open(addresses[0]).unwrap();
    call(&mut connection, &["SET", "first", "here"]);
    processes[2].kill();
    // Once more with other values: the log is released at the latest when it has as many bytes as the state.
    for value in [b'a', b'b'] {
        fill(&mut connection, keys, &vec![value; VALUE_BYTES]);
    }
    call(&mut connection, &["SET", "last", "there"]);
    let snapshot_at = wait_for("a snapshot of all of it", || {
        group(cluster.admins[0], "first").filter(|first| *first > keys + 1)?;
        group(cluster.admins[1], "first").filter(|first| *first > keys + 1)
    });

    let started = Instant::now();
    let received = |node: usize| metric(cluster.admins[node], "transfer_received_bytes_total");
    for kill in 1..=2 {
        processes[2] = cluster.start(3);
        let part = wait_for("a fifth of it", || received(2).filter(|received| *received > bytes / 5));
        processes[2].kill();
        eprintln!("killed for the {kill}. time after {part} bytes");
        assert!(part < bytes * 3 / 5, "{part} bytes at once: too fast to be killed midway");
    }
    processes[2] = cluster.start(3);
    let address = ready(&mut processes[2]);
    let last = group(cluster.admins[0], "last").unwrap();
    wait_for("the log's end there", || {
        group(cluster.admins[2], "applied").filter(|applied| *applied >= last)
    });
    let sent: u64 = (0..2).filter_map(|node| metric(cluster.admins[node], "transfer_sent_bytes_total")).sum();
    let size = keys * (VALUE_BYTES as u64 + 18);
    eprintln!(
        "{sent} bytes sent of a snapshot of {size}, {:.3} times; {:?}, up to entry {snapshot_at}",
        sent as f64 / size as f64,
        started.elapsed()
    );
    assert!(sent >= size, "{sent} bytes sent of {size}: it came in another way");
    assert!(sent as f64 <= 1.1 * size as f64, "{sent} bytes sent of {size}");
    let mut connection = Connection::open(address).unwrap();
    for key in ["key-000000".to_owned(), format!("key-{:06}", keys - 1)] {
        assert_eq!(call(&mut connection, &["GET", &key]), Reply::Bulk(Some(vec![b'b'; VALUE_BYTES])));
    }
}

//! Clients that flood, do not read, or send what is no command: refused early, and nobody else is held up.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use crate::kv::{Cluster, call};
use crate::process::wait_for;
use crate::resp::{Connection, Reply, request};

/// What the server may have resident with all its bounded buffers full: entries in memory and inbox (limits.rs), and
/// what the program itself takes.
const RSS_BYTES_MAX: u64 = 512 << 20;

#[test]
fn a_client_that_floods_and_does_not_read_holds_up_only_itself() {
    let cluster = Cluster::new(1, 1);
    let (process, address) = cluster.start_all().remove(0);
    let mut other = Connection::open(address).unwrap();
    assert_eq!(call(&mut other, &["INCR", "n"]), Reply::Number(1));

    let mut flood = Connection::open(address).unwrap();
    let value = vec![b'x'; 1000];
    let mut sent = 0u64;
    let set = request(&[b"SET", b"flooded", &value]);
    let get = request(&[b"GET", b"flooded"]);
    flood.send(&set).unwrap();
    // Asks and asks, and reads no answer, until nothing more is taken.
    let mut socket = flood.socket().try_clone().unwrap();
    socket.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let chunk = get.repeat(1000);
    let mut rest: &[u8] = &chunk;
    let stuck = wait_for("the server to stop reading", || match socket.write(rest) {
        Ok(bytes) => {
            sent += bytes as u64;
            rest = if bytes == rest.len() { &chunk } else { &rest[bytes..] };
            assert!(sent < 1 << 30, "the server reads on and on");
            None
        }
        Err(error) => Some(error.kind()),
    });
    assert!(matches!(stuck, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{stuck:?}");

    let asked = Instant::now();
    assert_eq!(call(&mut other, &["INCR", "n"]), Reply::Number(2));
    assert!(asked.elapsed() < Duration::from_secs(5), "another client waited {:?}", asked.elapsed());
    assert!(process.rss_bytes() < RSS_BYTES_MAX, "{} bytes resident", process.rss_bytes());

    // It gets what it asked for as soon as it reads.
    assert_eq!(flood.reply().unwrap(), Reply::Simple("OK".into()));
    for _ in 0..sent / get.len() as u64 {
        assert_eq!(flood.reply().unwrap(), Reply::Bulk(Some(value.clone())));
    }
}

#[test]
fn many_writers_without_patience_are_told_to_wait_and_memory_stays_bounded() {
    let cluster = Cluster::new(1, 1);
    let (process, address) = cluster.start_all().remove(0);
    let value = vec![b'v'; 100_000];
    std::thread::scope(|scope| {
        for writer in 0..16 {
            let value = &value;
            scope.spawn(move || {
                let key = format!("key-{writer}");
                let mut connection = Connection::open(address).unwrap();
                let bytes = request(&[b"SET", key.as_bytes(), value]).repeat(100);
                let mut socket = connection.socket().try_clone().unwrap();
                let sender = std::thread::spawn(move || socket.write_all(&bytes).unwrap());
                for _ in 0..100 {
                    let reply = connection.reply().unwrap();
                    assert!(reply == Reply::Simple("OK".into()) || reply.is_error("TRYAGAIN"), "{reply:?}");
                }
                sender.join().unwrap();
            });
        }
    });
    assert!(process.rss_bytes() < RSS_BYTES_MAX, "{} bytes resident", process.rss_bytes());
    let mut connection = Connection::open(address).unwrap();
    assert_eq!(call(&mut connection, &["INCR", "n"]), Reply::Number(1));
}

#[test]
fn what_is_over_a_limit_or_no_command_is_refused_and_the_server_goes_on() {
    let cluster = Cluster::new(1, 1);
    let (_process, address) = cluster.start_all().remove(0);
    let mut connection = Connection::open(address).unwrap();
    let limit = 512 * 1024;
    // The largest value that an entry can hold beside its key; then one byte more.
    let largest = vec![b'x'; limit - 1 - 4 - 3 - 4];
    assert_eq!(
        wait_for("the first write", || {
            let reply = connection.call(&[b"SET", b"key", &largest]).unwrap();
            (!reply.is_error("TRYAGAIN")).then_some(reply)
        }),
        Reply::Simple("OK".into())
    );
    let reply = connection.call(&[b"SET", b"key", &[&largest[..], b"x"].concat()]).unwrap();
    assert!(reply.is_error("ERR"), "{reply:?}");
    assert_eq!(connection.call(&[b"GET", b"key"]).unwrap(), Reply::Bulk(Some(largest)));

    for hostile in [
        format!("*2\r\n$3\r\nGET\r\n${}\r\n", limit + 1).into_bytes(),
        b"*1000000000\r\n".to_vec(),
        b"*1\r\n$-5\r\n".to_vec(),
        b"*1\r\n!\r\n".to_vec(),
        vec![b'a'; 70_000],
        (0..2000u32).flat_map(u32::to_le_bytes).collect(),
    ] {
        let mut connection = Connection::open(address).unwrap();
        // It may be closed while it still sends.
        let _ = connection.send(&hostile);
        let _ = connection.socket().shutdown(Shutdown::Write);
        loop {
            match connection.reply() {
                Ok(reply) => assert!(reply.is_error("ERR"), "{reply:?}"),
                Err(error)
                    if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) =>
                {
                    break;
                }
                Err(error) => panic!("{error}: {}", hostile[..20].escape_ascii()),
            }
        }
    }
    assert_eq!(call(&mut connection, &["INCR", "n"]), Reply::Number(1));
}

//! One request of HTTP/1.1 over a connection of its own, and its answer. Blocking, bounded in time and bytes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use coracle_io::Clock;
use coracle_io::ring::RealClock;

use super::NodeError;

/// An answer, head and body.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
const HEADERS_MAX: usize = 64;

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Asks and waits for the whole answer.
pub(super) fn ask(
    at: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&str>,
    within: Duration,
) -> Result<Reply, NodeError> {
    let deadline_us = RealClock.now_us() + within.as_micros() as u64;
    // Zero would mean "for ever".
    let left = || Duration::from_micros(deadline_us.saturating_sub(RealClock.now_us()).max(1000));
    let unreachable = |why| NodeError::Unreachable { at, why };
    let in_time = || match RealClock.now_us() < deadline_us {
        true => Ok(()),
        false => Err(unreachable(io::ErrorKind::TimedOut.into())),
    };
    in_time()?;
    let mut socket = TcpStream::connect_timeout(&at, left()).map_err(unreachable)?;
    socket.set_nodelay(true).map_err(unreachable)?;
    socket.set_write_timeout(Some(left())).map_err(unreachable)?;
    let body = body.unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let no_answer = |why| NodeError::NoAnswer { at, why };
    // Nothing is said whose answer nobody would wait for.
    in_time()?;
    socket.write_all(request.as_bytes()).map_err(no_answer)?;
    let mut answer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        if let Some(reply) = parse(&answer).map_err(|why| NodeError::NotANode { at, why })? {
            return Ok(reply);
        }
        if answer.len() > ANSWER_BYTES_MAX {
            let why = format!("its answer has more than {ANSWER_BYTES_MAX} bytes");
            return Err(NodeError::NotANode { at, why });
        }
        if RealClock.now_us() >= deadline_us {
            return Err(no_answer(io::ErrorKind::TimedOut.into()));
        }
        socket.set_read_timeout(Some(left())).map_err(no_answer)?;
        match socket.read(&mut chunk) {
            Ok(0) => return Err(no_answer(io::ErrorKind::UnexpectedEof.into())),
            Ok(bytes) => answer.extend_from_slice(&chunk[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(no_answer(io::ErrorKind::TimedOut.into()));
            }
            Err(error) => return Err(no_answer(error)),
        }
    }
}

/// The answer, once all of it is there.
fn parse(bytes: &[u8]) -> Result<Option<Reply>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let start = match head.parse(bytes).map_err(|error| error.to_string())? {
        httparse::Status::Complete(start) => start,
        httparse::Status::Partial => return Ok(None),
    };
    let length = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
    let length =
        length.filter(|length| *length <= ANSWER_BYTES_MAX).ok_or("its answer has no fitting length")?;
    let body = bytes[start..].get(..length);
    Ok(body.map(|body| Reply { status: head.code.unwrap_or_default(), body: body.to_vec() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_or_not_yet() {
        let whole = b"HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\n{}";
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), Ok(None), "cut at {cut}");
        }
        let reply = Reply { status: 409, body: b"{}".to_vec() };
        assert_eq!(parse(whole), Ok(Some(reply)));
        for bad in
            ["+PONG\r\n", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"]
        {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}

//! A RESP2 client as small as possible. It checks what it reads.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::process::DEADLINE;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple(String),
    Error(String),
    Number(i64),
    Bulk(Option<Vec<u8>>),
}

impl Reply {
    /// An error whose first word is `kind`.
    pub(crate) fn is_error(&self, kind: &str) -> bool {
        matches!(self, Reply::Error(text) if text.split(' ').next() == Some(kind))
    }
}

pub(crate) struct Connection {
    socket: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        Ok(Self { socket: BufReader::new(socket) })
    }

    /// Sends one request and waits for its reply.
    pub(crate) fn call(&mut self, args: &[&[u8]]) -> io::Result<Reply> {
        self.send(&request(args))?;
        self.reply()
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.get_mut().write_all(bytes)
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        self.socket.get_ref()
    }

    pub(crate) fn reply(&mut self) -> io::Result<Reply> {
        let line = self.line()?;
        let (kind, text) = line.split_at_checked(1).unwrap_or_default();
        let number = || text.parse::<i64>().map_err(|_| bad(&line));
        match kind {
            "+" => Ok(Reply::Simple(text.to_owned())),
            "-" => Ok(Reply::Error(text.to_owned())),
            ":" => Ok(Reply::Number(number()?)),
            "$" if text == "-1" => Ok(Reply::Bulk(None)),
            "$" => {
                let mut bytes = vec![0; usize::try_from(number()?).map_err(|_| bad(&line))? + 2];
                self.socket.read_exact(&mut bytes)?;
                let value = bytes.strip_suffix(b"\r\n").ok_or_else(|| bad(&line))?;
                Ok(Reply::Bulk(Some(value.to_vec())))
            }
            _ => Err(bad(&line)),
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.socket.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.strip_suffix("\r\n").map(str::to_owned).ok_or_else(|| bad(&line))
    }
}

fn bad(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not RESP2: {line:?}"))
}

/// A request's bytes.
pub(crate) fn request(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

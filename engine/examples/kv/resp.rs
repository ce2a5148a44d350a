//! RESP2, the Redis protocol: requests in, replies out. Pure: bytes and slices.
//!
//! A request is an array of bulk strings (`*2\r\n$3\r\nGET\r\n$1\r\na\r\n`) or one inline line (`GET a\r\n`). Invariant:
//! every length is checked against its bound before it is believed; nothing is allocated for what has not arrived.

/// Arguments of one request.
const ARGS_MAX: usize = 1024;
/// Bytes of one argument: what one entry of the engine can hold.
const BULK_BYTES_MAX: usize = 512 * 1024;
/// Bytes of a line: an inline request, or a length.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a whole request. A connection buffers at most this much of one that has not wholly arrived.
pub(crate) const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// Bytes that are not RESP2, or beyond its bounds. The connection cannot go on: nobody knows where the next one begins.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("Protocol error: invalid multibulk length")]
    ArgumentCount,
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    #[error("Protocol error: expected '$'")]
    ExpectedBulk,
    #[error("Protocol error: a bulk string does not end where it says")]
    BulkEnd,
    #[error("Protocol error: too big inline request")]
    LineLength,
    #[error("Protocol error: too big request")]
    RequestLength,
}

/// A request's arguments and how many bytes it takes; `None` if it has not wholly arrived.
type Parsed<'a> = Result<Option<(Vec<&'a [u8]>, usize)>, ProtocolError>;

/// The request at the start of `input`; an empty line is one without arguments.
pub(crate) fn parse(input: &[u8]) -> Parsed<'_> {
    let request = match input.first() {
        None => return Ok(None),
        Some(b'*') => parse_array(input)?,
        Some(_) => parse_inline(input)?,
    };
    if request.is_none() && input.len() >= REQUEST_BYTES_MAX {
        return Err(ProtocolError::RequestLength);
    }
    Ok(request)
}

fn parse_inline(input: &[u8]) -> Parsed<'_> {
    let Some((line, rest)) = split_line(input)? else { return Ok(None) };
    let args: Vec<&[u8]> = line.split(u8::is_ascii_whitespace).filter(|arg| !arg.is_empty()).collect();
    if args.len() > ARGS_MAX {
        return Err(ProtocolError::ArgumentCount);
    }
    Ok(Some((args, input.len() - rest.len())))
}

fn parse_array(input: &[u8]) -> Parsed<'_> {
    let Some((line, mut rest)) = split_line(input)? else { return Ok(None) };
    let count = length(&line[1..], ARGS_MAX).ok_or(ProtocolError::ArgumentCount)?;
    let mut args = Vec::new();
    for _ in 0..count {
        let Some((line, after)) = split_line(rest)? else { return Ok(None) };
        let (b'$', digits) = line.split_first().map_or((0, line), |(first, digits)| (*first, digits)) else {
            return Err(ProtocolError::ExpectedBulk);
        };
        let bytes = length(digits, BULK_BYTES_MAX).ok_or(ProtocolError::BulkLength)?;
        let Some((arg, after)) = after.split_at_checked(bytes) else { return Ok(None) };
        let Some((end, after)) = after.split_first_chunk() else { return Ok(None) };
        if end != b"\r\n" {
            return Err(ProtocolError::BulkEnd);
        }
        args.push(arg);
        rest = after;
    }
    Ok(Some((args, input.len() - rest.len())))
}

/// A line and what follows it; `None` if its end has not arrived.
type Line<'a> = Result<Option<(&'a [u8], &'a [u8])>, ProtocolError>;

/// The line at the start of `input`, without its end.
fn split_line(input: &[u8]) -> Line<'_> {
    let window = &input[..input.len().min(LINE_BYTES_MAX)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(end) => {
            let line = &input[..end];
            Ok(Some((line.strip_suffix(b"\r").unwrap_or(line), &input[end + 1..])))
        }
        None if window.len() < LINE_BYTES_MAX => Ok(None),
        None => Err(ProtocolError::LineLength),
    }
}

/// A decimal length of at most `max`.
fn length(digits: &[u8], max: usize) -> Option<usize> {
    let length = integer(digits)?;
    usize::try_from(length).ok().filter(|length| *length <= max)
}

/// A decimal integer in its one canonical form, as Redis reads them: no sign but `-`, no zeros in front.
pub(crate) fn integer(bytes: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let number: i64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// Appends `+text`.
pub(crate) fn simple(out: &mut Vec<u8>, text: &str) {
    line(out, b'+', text.as_bytes());
}

/// Appends `-text`; what could end the line early becomes spaces.
pub(crate) fn error(out: &mut Vec<u8>, text: &str) {
    let text: Vec<u8> = text.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }).collect();
    line(out, b'-', &text);
}

/// Appends `:number`.
pub(crate) fn number(out: &mut Vec<u8>, number: i64) {
    line(out, b':', number.to_string().as_bytes());
}

/// Appends a bulk string, or nil.
pub(crate) fn bulk(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else { return line(out, b'$', b"-1") };
    line(out, b'$', bytes.len().to_string().as_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn line(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    out.push(kind);
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_and_a_line_are_read_to_their_ends() {
        let input = b"*2\r\n$3\r\nGET\r\n$3\r\na\r\n\r\nPING  x\n";
        let (args, bytes) = parse(input).unwrap().unwrap();
        assert_eq!((args, bytes), (vec![&b"GET"[..], b"a\r\n"], 22));
        let (args, rest) = parse(&input[bytes..]).unwrap().unwrap();
        assert_eq!((args, rest), (vec![&b"PING"[..], b"x"], 8));
    }

    #[test]
    fn every_truncation_waits_for_more() {
        let input = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\nhi\r\n";
        for cut in 0..input.len() {
            assert_eq!(parse(&input[..cut]), Ok(None), "cut at {cut}");
        }
        assert_eq!(parse(input).unwrap().unwrap().1, input.len());
    }

    #[test]
    fn hostile_lengths_are_refused_before_anything_arrives() {
        for (input, error) in [
            (&b"*1025\r\n"[..], ProtocolError::ArgumentCount),
            (b"*-1\r\n", ProtocolError::ArgumentCount),
            (b"*99999999999999999999\r\n", ProtocolError::ArgumentCount),
            (b"*1\r\n$524289\r\n", ProtocolError::BulkLength),
            (b"*1\r\n$-1\r\n", ProtocolError::BulkLength),
            (b"*1\r\n:1\r\n", ProtocolError::ExpectedBulk),
            (b"*1\r\n\r\n", ProtocolError::ExpectedBulk),
            (b"*1\r\n$1\r\nabc", ProtocolError::BulkEnd),
        ] {
            assert_eq!(parse(input), Err(error), "{}", input.escape_ascii());
        }
        assert_eq!(parse(&[b'x'; LINE_BYTES_MAX]), Err(ProtocolError::LineLength));
        let mut large = b"*9\r\n".to_vec();
        for _ in 0..3 {
            bulk(&mut large, Some(&[0; BULK_BYTES_MAX]));
        }
        assert_eq!(parse(&large[..REQUEST_BYTES_MAX]), Err(ProtocolError::RequestLength));
    }

    #[test]
    fn integers_have_one_form() {
        assert_eq!(integer(b"-12"), Some(-12));
        for text in ["", "+1", "01", "-0", " 1", "1.0", "9223372036854775808"] {
            assert_eq!(integer(text.as_bytes()), None, "{text}");
        }
    }
}

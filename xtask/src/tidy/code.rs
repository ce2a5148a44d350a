//! Rust text without its comments, strings and characters, so that a word in prose is not taken for code.
//!
//! Invariant: the result has the same number of bytes and the same line breaks as the text.

/// `text` with every byte of a comment or a literal replaced by a space.
pub(super) fn code_only(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = skipped_bytes(rest, out.as_bytes().last().copied());
        match skipped {
            0 => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
            bytes => {
                out.extend(rest[..bytes].bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
                rest = &rest[bytes..];
            }
        }
    }
    out
}

/// The lines of `text` without comments and literals, numbered from 1.
pub(super) fn code_lines(text: &str) -> Vec<(usize, String)> {
    code_only(text).lines().enumerate().map(|(i, line)| (i + 1, line.to_owned())).collect()
}

/// Whether `line` has `word` with no letter, digit or underscore next to it.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(is_part)
            && !line[at + word.len()..].chars().next().is_some_and(is_part)
    })
}

/// Length of the comment or literal at the start of `rest`; 0 if it is code. `before` is the byte in front.
fn skipped_bytes(rest: &str, before: Option<u8>) -> usize {
    let in_word = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if rest.starts_with("//") {
        rest.find('\n').unwrap_or(rest.len())
    } else if rest.starts_with("/*") {
        block_comment_bytes(rest)
    } else if rest.starts_with('"') {
        quoted_bytes(rest, '"')
    } else if !in_word && (rest.starts_with("r\"") || rest.starts_with("r#") || rest.starts_with("br")) {
        raw_string_bytes(rest)
    } else if rest.starts_with('\'') {
        character_bytes(rest)
    } else {
        0
    }
}

fn block_comment_bytes(rest: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn quoted_bytes(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// A raw string (`r".."`, `r#".."#`, `br".."`), or 0 for a raw identifier and anything else.
fn raw_string_bytes(rest: &str) -> usize {
    let after_r = rest.trim_start_matches('b').strip_prefix('r').unwrap_or("");
    let hashes = after_r.len() - after_r.trim_start_matches('#').len();
    if !after_r[hashes..].starts_with('"') {
        return 0;
    }
    let start = rest.len() - after_r.len() + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    rest[start..].find(&end).map_or(rest.len(), |at| start + at + end.len())
}

/// A character, or 0 for a lifetime.
fn character_bytes(rest: &str) -> usize {
    let mut chars = rest.chars().skip(1);
    match (chars.next(), chars.next()) {
        (Some('\\'), _) => quoted_bytes(rest, '\''),
        (Some(c), Some('\'')) => c.len_utf8() + 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_become_spaces() {
        let text =
            "a // no\n/* no /* no */ no */ b \"no\\\"no\" c r#\"no\"no\"# d 'n' '\\'' e<'life> br\"no\" r#fn";
        let code = code_only(text);
        assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "b", "c", "d", "e<'life>", "r#fn"]);
        assert_eq!((code.len(), code.lines().count()), (text.len(), 2));
    }

    #[test]
    fn words_have_borders() {
        assert!(has_word("let x = unsafe { 1 }", "unsafe"));
        assert!(!has_word("#![forbid(unsafe_code)]", "unsafe"));
        assert!(!has_word("not_unsafe", "unsafe"));
    }
}

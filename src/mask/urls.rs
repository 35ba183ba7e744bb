//! The last pass: credentials in the user part of addresses.

use std::ops::Range;
use std::sync::LazyLock;

use aho_corasick::AhoCorasick;

use super::needles;
use super::stage::{Place, Rules, Verdict};

const AFTER_SCHEME: &[u8] = b"://";
/// A user part that is longer is not recognised.
const LONGEST_USER_PART: usize = 4096;

static STARTS: LazyLock<AhoCorasick> = LazyLock::new(|| needles::search(&[AFTER_SCHEME], None));

#[derive(Debug)]
pub(super) struct Urls;

impl Rules for Urls {
    const FINDERS: usize = 1;
    const LONGEST_START: usize = AFTER_SCHEME.len();

    fn find(&self, _: usize, text: &[u8], from: usize) -> Option<usize> {
        needles::find(&STARTS, text, from)
    }

    fn may_start(&self, end: &[u8]) -> bool {
        end.len() < AFTER_SCHEME.len() && AFTER_SCHEME.starts_with(end)
    }

    fn may_be_secret(&self, _: &[u8]) -> bool {
        false
    }

    fn look(&self, _: usize, place: &Place<'_>) -> Verdict {
        let start = place.at + AFTER_SCHEME.len();
        let authority = &place.text[start..];
        let authority = &authority[..authority.len().min(LONGEST_USER_PART)];
        let end = match authority.iter().position(|byte| ends_authority(*byte)) {
            Some(end) => end,
            None if authority.len() == LONGEST_USER_PART => return Verdict::Nothing,
            None if !place.last => return Verdict::More,
            None => authority.len(),
        };
        match credential(&place.text[..place.at], &authority[..end]) {
            Some(credential) => Verdict::Hide {
                range: start + credential.range.start..start + credential.range.end,
                run: None,
            },
            None => Verdict::Nothing,
        }
    }
}

fn ends_authority(byte: u8) -> bool {
    byte <= b' '
        || matches!(byte, 0x7f | b'/' | b'?' | b'#' | b'"' | b'\'')
        || matches!(byte, b'<' | b'>' | b'\\' | b'`')
}

struct Credential {
    range: Range<usize>,
    /// It is all there is before the `@`, and may be only a name.
    alone: bool,
}

/// Where in `authority` the credential is.
fn credential(before: &[u8], authority: &[u8]) -> Option<Credential> {
    let at_sign = authority.iter().rposition(|byte| *byte == b'@')?;
    let (user_part, host) = (&authority[..at_sign], &authority[at_sign + 1..]);
    // An image by its digest.
    if host.starts_with(b"sha256:") {
        return None;
    }
    let colon = user_part.iter().position(|byte| *byte == b':');
    let range = match colon {
        // In these the token is where the name should be.
        Some(colon) if matches!(&user_part[colon + 1..], b"" | b"x-oauth-basic") => 0..colon,
        Some(colon) => colon + 1..at_sign,
        // A lone name is often a token, but for git's user in ssh://git@host.
        None if is_http(before) => 0..at_sign,
        None => return None,
    };
    (!range.is_empty()).then_some(Credential {
        range,
        alone: colon.is_none(),
    })
}

fn is_http(before: &[u8]) -> bool {
    let ends_with = |scheme: &[u8]| {
        let start = before.len().checked_sub(scheme.len());
        start.is_some_and(|start| before[start..].eq_ignore_ascii_case(scheme))
    };
    ends_with(b"http") || ends_with(b"https")
}

/// The passwords in the addresses in `text`, as they are written there.
pub(super) fn passwords(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("://").filter_map(|(at, _)| {
        let rest = &text[at + AFTER_SCHEME.len()..];
        let end = rest.bytes().position(ends_authority).unwrap_or(rest.len());
        let credential = credential(&text.as_bytes()[..at], &rest.as_bytes()[..end])?;
        let password = &rest[credential.range];
        let is_token = password.len() >= 16 && password.bytes().any(|b| b.is_ascii_digit());
        (is_token || !credential.alone).then_some(password)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_addresses() {
        for (text, expected) in [
            ("https://u:p@h/", vec!["p"]),
            ("-i https://u:p@h --x http://v:q@h/a", vec!["p", "q"]),
            ("https://jenkins@h/", vec![]),
            ("https://0123456789abcdef0@h/", vec!["0123456789abcdef0"]),
            (
                "https://0123456789abcdef0:x-oauth-basic@h/",
                vec!["0123456789abcdef0"],
            ),
            ("https://h/u:p@h", vec![]),
            ("git@h:u/r", vec![]),
        ] {
            assert_eq!(passwords(text).collect::<Vec<_>>(), expected, "{text:?}");
        }
    }
}

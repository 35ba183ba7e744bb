//! The second pass: values that are secret because of the name before them, in headers, in the
//! queries of addresses and in connection strings.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;

use super::needles;
use super::stage::{Place, Rules, Run, Verdict};

/// The ends of the names, in the cases they are written in.
const NAME_ENDS: &[&str] = &[
    // Parameters
    "oken=",
    "OKEN=",
    "ignature=",
    "IGNATURE=",
    "sig=",
    "Sig=",
    "SIG=",
    "redential=",
    "REDENTIAL=",
    "assword=",
    "ASSWORD=",
    "asswd=",
    "ASSWD=",
    "pwd=",
    "Pwd=",
    "PWD=",
    "ecret=",
    "ECRET=",
    "key=",
    "Key=",
    "KEY=",
    "auth=",
    // Headers and entries
    "uthorization",
    "UTHORIZATION",
    "-token",
    "-Token",
    "-TOKEN",
    "-key",
    "-Key",
    "-KEY",
    "ccess_key",
    "CCESS_KEY",
    "ccessKey",
    "ssion_token",
    "SSION_TOKEN",
    "essionToken",
];
/// `Bearer` without a header around it.
const BEARER: [&str; 2] = ["earer ", "EARER "];

/// In lower case, with `_` for `-`. A parameter whose name ends in `token` or `secret` is secret, too.
const SECRET_PARAMETERS: &[&str] = &[
    "sig",
    "signature",
    "x_amz_signature",
    "x_amz_credential",
    "x_goog_signature",
    "x_goog_credential",
    "password",
    "passwd",
    "pwd",
    "auth",
    "apikey",
    "api_key",
    "access_key",
    "accesskey",
    "accountkey",
    "sharedaccesskey",
    "secret_key",
    "secretkey",
    "private_key",
    "subscription_key",
    "auth_key",
];

/// In lower case, with `_` for `-`.
const SECRET_HEADERS: &[&str] = &[
    "private_token",
    "job_token",
    "deploy_token",
    "x_auth_token",
    "x_vault_token",
    "x_gitlab_token",
    "x_amz_security_token",
    "x_api_key",
    "api_key",
    "x_goog_api_key",
    "ocp_apim_subscription_key",
];
/// Of entries the name may have something before it.
const SECRET_ENTRIES: &[&str] = &[
    "secret_access_key",
    "secretaccesskey",
    "aws_session_token",
    "sessiontoken",
];
const SCHEMES: &[&str] = &["bearer", "basic", "token", "negotiate", "ntlm", "apikey"];

const LONGEST_NAME: usize = 48;
/// Of a value so much is looked at to see whether it is one.
const LOOKED_AT: usize = 64;

static STARTS: LazyLock<AhoCorasick> = LazyLock::new(|| {
    let words: Vec<&str> = starts().collect();
    needles::search(&words, None)
});

fn starts() -> impl Iterator<Item = &'static str> {
    NAME_ENDS.iter().chain(&BEARER).copied()
}

#[derive(Debug)]
pub(super) struct Fields;

impl Rules for Fields {
    const FINDERS: usize = 1;
    const LONGEST_START: usize = 12;

    fn find(&self, _: usize, text: &[u8], from: usize) -> Option<usize> {
        needles::find(&STARTS, text, from)
    }

    fn may_start(&self, end: &[u8]) -> bool {
        starts().any(|start| start.len() > end.len() && start.as_bytes().starts_with(end))
    }

    fn may_be_secret(&self, _: &[u8]) -> bool {
        false
    }

    fn look(&self, _: usize, place: &Place<'_>) -> Verdict {
        let text = &place.text[place.at..];
        let mut verdict = Verdict::Nothing;
        for start in starts().filter(|start| text.starts_with(start.as_bytes())) {
            let end = place.at + start.len();
            let found = match start.strip_suffix('=') {
                _ if start.ends_with(' ') => bearer(place, end),
                Some(_) => parameter(place, end - 1),
                None => header(place, end),
            };
            match found {
                Verdict::Nothing => {}
                Verdict::More => verdict = Verdict::More,
                hide => return hide,
            }
        }
        verdict
    }
}

/// Where the name that ends at `end` begins, and the name as the lists have it.
fn name(text: &[u8], end: usize) -> Option<(usize, String)> {
    let before = &text[end.saturating_sub(LONGEST_NAME)..end];
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let length = before.iter().rev().take_while(|b| is_name(b)).count();
    if length == LONGEST_NAME {
        return None;
    }
    let start = end - length;
    let lower = |b: &u8| match b {
        b'-' => '_',
        b => char::from(b.to_ascii_lowercase()),
    };
    Some((start, text[start..end].iter().map(lower).collect()))
}

/// `?name=value`, `&name=value`, `;Name=value`; `equals` is where the `=` is.
fn parameter(place: &Place<'_>, equals: usize) -> Verdict {
    let Some((start, name)) = name(place.text, equals) else {
        return Verdict::Nothing;
    };
    let name = match (start.checked_sub(1).map(|at| place.text[at]), &*name) {
        (Some(b'?' | b'&' | b';'), name) => name,
        // `&` as some write it in JSON.
        (Some(b'\\'), name) if name.starts_with("u0026") => &name[5..],
        _ => return Verdict::Nothing,
    };
    let is_secret = SECRET_PARAMETERS.contains(&name)
        || ["token", "secret"].iter().any(|end| name.ends_with(end));
    let value = equals + 1;
    if !is_secret {
        return Verdict::Nothing;
    }
    match place.text.get(value) {
        None => place.more(),
        Some(byte) if Run::Parameter.contains(*byte) => Verdict::Hide {
            range: value..value,
            run: Some(Run::Parameter),
        },
        Some(_) => Verdict::Nothing,
    }
}

/// `Name: value`, also as the entry of a printed dictionary; `end` is where the name ends.
fn header(place: &Place<'_>, end: usize) -> Verdict {
    let Some((_, name)) = name(place.text, end) else {
        return Verdict::Nothing;
    };
    let is_authorization = name.ends_with("authorization");
    let is_secret = is_authorization
        || SECRET_HEADERS.contains(&&*name)
        || SECRET_ENTRIES.iter().any(|entry| name.ends_with(entry));
    if !is_secret {
        return Verdict::Nothing;
    }
    let mut at = end;
    let mut separated = false;
    loop {
        match place.text.get(at) {
            None => return place.more(),
            Some(b' ' | b'\t' | b'"' | b'\'' | b'\\') => {}
            Some(b':' | b'=' | b',' | b'>') => separated = true,
            Some(_) => break,
        }
        at += 1;
        if at > end + 8 {
            return Verdict::Nothing;
        }
    }
    if !separated {
        return Verdict::Nothing;
    }
    // Bytes as Python prints them.
    if place.text[at] == b'b' {
        match place.text.get(at + 1) {
            None => return place.more(),
            Some(b'"' | b'\'') => at += 2,
            Some(_) => {}
        }
    }
    if !is_authorization {
        return value(place, at, 16);
    }
    let text = &place.text[at..];
    let longest = SCHEMES.iter().map(|s| s.len()).max().unwrap_or_default();
    let scheme = Run::Alphanumeric.length(&text[..text.len().min(longest + 1)]);
    if scheme == text.len() && scheme <= longest {
        return place.more();
    }
    let is_scheme = SCHEMES
        .iter()
        .any(|known| text[..scheme].eq_ignore_ascii_case(known.as_bytes()));
    if !is_scheme || text[scheme] != b' ' {
        return value(place, at, 16);
    }
    let blanks = text[scheme..].iter().take(4).take_while(|b| **b == b' ');
    value(place, at + scheme + blanks.count(), 6)
}

/// The value at `at`, if it is at least so long and no word of a sentence.
fn value(place: &Place<'_>, at: usize, least: usize) -> Verdict {
    let text = &place.text[at..];
    let text = &text[..text.len().min(LOOKED_AT)];
    let length = Run::Header.length(text);
    if length == text.len() && length < LOOKED_AT && !place.last {
        return Verdict::More;
    }
    let value = &text[..length];
    let tells = |(at, b): (usize, &u8)| !b.is_ascii_lowercase() && (at > 0 || b.is_ascii_digit());
    let is_no_word = length >= 32 || value.iter().enumerate().any(tells);
    // What is secret of an address is found as such.
    let is_address = value.starts_with(b"//") || value.windows(3).any(|part| part == b"://");
    if length >= least && is_no_word && !is_address {
        return Verdict::Hide {
            range: at..at,
            run: Some(Run::Header),
        };
    }
    Verdict::Nothing
}

/// `Bearer token`, where the token looks like one.
fn bearer(place: &Place<'_>, at: usize) -> Verdict {
    const LEAST: usize = 20;
    let is_word = place.at > 0 && matches!(place.text[place.at - 1], b'b' | b'B');
    let text = &place.text[at..];
    let text = &text[..text.len().min(LEAST)];
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(b);
    if !is_word || !text.iter().all(is_token) {
        return Verdict::Nothing;
    }
    if text.len() < LEAST {
        return place.more();
    }
    if text.iter().any(u8::is_ascii_digit) && text.iter().any(u8::is_ascii_alphabetic) {
        return Verdict::Hide {
            range: at..at,
            run: Some(Run::Header),
        };
    }
    Verdict::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_start_is_longer_than_said() {
        let longest = starts().map(str::len).max();
        assert_eq!(longest, Some(Fields::LONGEST_START));
    }

    #[test]
    fn names_are_compared_in_one_spelling() {
        for (text, expected) in [
            ("?X-Amz-Signature", Some((1, "x_amz_signature"))),
            ("Authorization", Some((0, "authorization"))),
            (" a.b_C", Some((1, "a.b_c"))),
            ("?", Some((1, ""))),
            (&"x".repeat(LONGEST_NAME), None),
        ] {
            let found = name(text.as_bytes(), text.len());
            let expected = expected.map(|(start, name)| (start, name.to_owned()));
            assert_eq!(found, expected, "{text:?}");
        }
    }
}

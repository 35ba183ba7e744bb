//! The first pass: known secrets, and tokens that tell themselves by their shape.

use std::sync::{Arc, LazyLock};

use aho_corasick::AhoCorasick;

use super::needles::{self, At, Needles};
use super::stage::{Place, Rules, Run, Verdict, is_separator};

/// What begins with `prefix` and goes on with at least `least` of `run` is a token.
struct Shape {
    prefix: &'static [u8],
    run: Run,
    least: usize,
    /// Among these are a digit and a capital: the prefix alone says too little.
    mixed: bool,
}

const fn shape(prefix: &'static str, run: Run, least: usize) -> Shape {
    Shape {
        prefix: prefix.as_bytes(),
        run,
        least,
        mixed: false,
    }
}

const fn mixed(prefix: &'static str, run: Run, least: usize) -> Shape {
    Shape {
        mixed: true,
        ..shape(prefix, run, least)
    }
}

const SHAPES: &[Shape] = &[
    // GitHub
    shape("ghp_", Run::Word, 36),
    shape("gho_", Run::Word, 36),
    shape("ghu_", Run::Word, 36),
    shape("ghs_", Run::Dotted, 36),
    shape("ghr_", Run::Word, 36),
    shape("github_pat_", Run::Word, 36),
    // GitLab: personal, deploy, runner, CI job, trigger, feed, SCIM, client, agent, OAuth application
    shape("glpat-", Run::Dotted, 20),
    shape("gldt-", Run::Dotted, 20),
    shape("glrt-", Run::Dotted, 20),
    shape("glrtr-", Run::Dotted, 20),
    shape("glcbt-", Run::Dotted, 20),
    shape("glptt-", Run::Dotted, 20),
    shape("glft-", Run::Dotted, 20),
    shape("glsoat-", Run::Dotted, 20),
    shape("glffct-", Run::Dotted, 20),
    shape("glagent-", Run::Dotted, 20),
    shape("gloas-", Run::Dotted, 20),
    // AWS: the id of a key; the key itself has no shape (see `fields`)
    shape("AKIA", Run::UpperAlphanumeric, 16),
    shape("ASIA", Run::UpperAlphanumeric, 16),
    // Google: API key, OAuth
    shape("AIza", Run::Dashed, 35),
    shape("ya29.", Run::Dotted, 30),
    // Slack
    shape("xoxa-", Run::Dashed, 10),
    shape("xoxb-", Run::Dashed, 10),
    shape("xoxe-", Run::Dashed, 10),
    shape("xoxe.", Run::Dotted, 20),
    shape("xoxo-", Run::Dashed, 10),
    shape("xoxp-", Run::Dashed, 10),
    shape("xoxr-", Run::Dashed, 10),
    shape("xoxs-", Run::Dashed, 10),
    shape("xapp-", Run::Dashed, 20),
    // Models and clouds of machine learning
    shape("hf_", Run::Alphanumeric, 30),
    shape("api_org_", Run::Alphanumeric, 30),
    shape("sk-proj-", Run::Dashed, 32),
    shape("sk-svcacct-", Run::Dashed, 32),
    shape("sk-admin-", Run::Dashed, 32),
    shape("sk-ant-", Run::Dashed, 32),
    shape("sk-or-v1-", Run::LowerHex, 32),
    mixed("sk-", Run::Dashed, 40),
    shape("gsk_", Run::Alphanumeric, 40),
    shape("nvapi-", Run::Dashed, 40),
    shape("r8_", Run::Alphanumeric, 30),
    shape("dapi", Run::LowerHex, 32),
    // Package indexes and registries; pypi: the beginning that all its macaroons have
    shape("pypi-AgE", Run::Dashed, 40),
    shape("npm_", Run::Alphanumeric, 36),
    shape("dckr_pat_", Run::Dashed, 20),
    // Vault, Stripe
    shape("hvs.", Run::Dashed, 24),
    shape("sk_live_", Run::Alphanumeric, 24),
    shape("rk_live_", Run::Alphanumeric, 24),
];

/// A JSON web token: base64 of `{"` begins its first two parts.
const JWT: &[u8] = b"eyJ";
const JWT_PART: usize = 10;
/// The header of a JSON web token is not longer.
const LONGEST_JWT_HEADER: usize = 1024;

const KEY_BLOCK: &[u8] = b"-----BEGIN ";
const DASHES: &[u8] = b"-----";
/// `RSA PRIVATE KEY`, `PGP PRIVATE KEY BLOCK` and such.
const LONGEST_LABEL: usize = 64;
/// A line of a key block has at least so many characters, but for the last one.
const KEY_LINE: usize = 40;
/// How the headers of an encrypted or armoured key begin.
const KEY_HEADERS: [&[u8]; 4] = [b"Proc-Type:", b"Version:", b"Comment:", b"Charset:"];
/// They are not longer.
const LONGEST_KEY_HEADERS: usize = 512;

static STARTS: LazyLock<AhoCorasick> = LazyLock::new(|| {
    let words: Vec<&[u8]> = starts().collect();
    needles::search(&words, None)
});

fn starts() -> impl Iterator<Item = &'static [u8]> {
    SHAPES.iter().map(|s| s.prefix).chain([JWT, KEY_BLOCK])
}

#[derive(Debug)]
pub(super) struct Tokens {
    pub needles: Arc<Needles>,
}

const NEEDLES: usize = 0;

impl Rules for Tokens {
    const FINDERS: usize = 2;
    const LONGEST_START: usize = 11;

    fn find(&self, finder: usize, text: &[u8], from: usize) -> Option<usize> {
        match finder {
            NEEDLES => self.needles.find(text, from),
            _ => needles::find(&STARTS, text, from),
        }
    }

    fn may_start(&self, end: &[u8]) -> bool {
        (end.len() < Needles::LONGEST_START && self.needles.is_beginning(end))
            || starts().any(|start| start.len() > end.len() && start.starts_with(end))
    }

    fn may_be_secret(&self, end: &[u8]) -> bool {
        self.needles.is_beginning(end) || self.needles.at(end, false) != At::Nothing
    }

    fn look(&self, finder: usize, place: &Place<'_>) -> Verdict {
        let text = &place.text[place.at..];
        if finder == NEEDLES {
            return match self.needles.at(text, place.last) {
                At::Nothing => Verdict::Nothing,
                At::Open => Verdict::More,
                At::Needle(length) => Verdict::Hide {
                    range: place.at..place.at + length,
                    run: None,
                },
            };
        }
        if text.starts_with(KEY_BLOCK) {
            return key_block(place);
        }
        if !place.after_mask && is_in_word(&place.text[..place.at]) {
            return Verdict::Nothing;
        }
        if text.starts_with(JWT) {
            return jwt(place);
        }
        let mut verdict = Verdict::Nothing;
        for shape in SHAPES {
            match token(shape, place) {
                Verdict::Nothing => {}
                Verdict::More => verdict = Verdict::More,
                hide => return hide,
            }
        }
        verdict
    }
}

fn token(shape: &Shape, place: &Place<'_>) -> Verdict {
    let Some(rest) = place.text[place.at..].strip_prefix(shape.prefix) else {
        return match shape.prefix.starts_with(&place.text[place.at..]) {
            true => place.more(),
            false => Verdict::Nothing,
        };
    };
    let needed = &rest[..rest.len().min(shape.least)];
    let length = shape.run.length(needed);
    if length < needed.len() {
        return Verdict::Nothing;
    }
    if length < shape.least {
        return place.more();
    }
    let is_mixed =
        || needed.iter().any(u8::is_ascii_digit) && needed.iter().any(u8::is_ascii_uppercase);
    if shape.mixed && !is_mixed() {
        return Verdict::Nothing;
    }
    let within = place.at + shape.prefix.len() + length;
    Verdict::Hide {
        range: place.at..within,
        run: Some(shape.run),
    }
}

/// Header and payload are recognised; the signature goes with them.
fn jwt(place: &Place<'_>) -> Verdict {
    let text = &place.text[place.at..];
    let header = Run::Dashed.length(&text[..text.len().min(LONGEST_JWT_HEADER)]);
    if header == LONGEST_JWT_HEADER || header < text.len() && header < JWT.len() + JWT_PART {
        return Verdict::Nothing;
    }
    let expected = [b".", JWT].concat();
    let rest = &text[header..];
    let Some(payload) = rest.strip_prefix(expected.as_slice()) else {
        return match expected.starts_with(rest) {
            true => place.more(),
            false => Verdict::Nothing,
        };
    };
    let needed = &payload[..payload.len().min(JWT_PART)];
    let length = Run::Dashed.length(needed);
    if length == JWT_PART {
        let within = place.at + header + expected.len();
        return Verdict::Hide {
            range: place.at..within,
            run: Some(Run::Dotted),
        };
    }
    match length == payload.len() {
        true => place.more(),
        false => Verdict::Nothing,
    }
}

/// The lines between `-----BEGIN … PRIVATE KEY-----` and what cannot be part of a key.
fn key_block(place: &Place<'_>) -> Verdict {
    let label_at = place.at + KEY_BLOCK.len();
    let label = &place.text[label_at..];
    let label = &label[..label.len().min(LONGEST_LABEL)];
    let is_label = |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b' ';
    let Some(length) = label.iter().position(|b| !is_label(b)) else {
        return match label.len() == LONGEST_LABEL {
            true => Verdict::Nothing,
            false => place.more(),
        };
    };
    let (label, rest) = place.text[label_at..].split_at(length);
    if !label.ends_with(b"PRIVATE KEY") && !label.ends_with(b"PRIVATE KEY BLOCK") {
        return Verdict::Nothing;
    }
    if !rest.starts_with(DASHES) {
        return match DASHES.starts_with(rest) {
            true => place.more(),
            false => Verdict::Nothing,
        };
    }
    let begin = label_at + length + DASHES.len();
    let text = &place.text[begin..];
    let text = &text[..text.len().min(LONGEST_KEY_HEADERS)];
    let mut at = 0;
    let mut headers = false;
    loop {
        at += separators(&text[at..]);
        if at >= text.len() {
            break;
        }
        let rest = &text[at..];
        let line = Run::Base64.length(&rest[..rest.len().min(KEY_LINE)]);
        if line == KEY_LINE {
            return Verdict::Hide {
                range: begin + at..begin + at,
                run: Some(Run::KeyBlock),
            };
        }
        let Some(word) = rest.iter().position(|b| is_separator(*b)) else {
            break;
        };
        let word = &rest[..word];
        // The end of it, or lines that are hidden already.
        let is_over = word.windows(5).any(|part| part == DASHES) || word.contains(&b'*');
        headers |= KEY_HEADERS.contains(&word);
        if !headers || is_over {
            return Verdict::Nothing;
        }
        at += word.len();
    }
    match text.len() == LONGEST_KEY_HEADERS {
        true => Verdict::Nothing,
        false => place.more(),
    }
}

/// How many bytes of separators `text` begins with: white space, quotes, and `\n` as it is escaped.
fn separators(text: &[u8]) -> usize {
    let mut at = 0;
    while at < text.len() && is_separator(text[at]) {
        at += match text[at] {
            b'\\' if matches!(text.get(at + 1), None | Some(b'n' | b'r')) => 2,
            _ => 1,
        };
    }
    at
}

/// Whether what follows `before` is in the middle of a word. The end of an escape is no word: of a
/// colour (`\x1b[31m`), of `\n`, of `%3D`, of `\u003d`.
fn is_in_word(before: &[u8]) -> bool {
    let is_word = |b: &u8| Run::Word.contains(*b);
    match before {
        [.., byte] if !is_word(byte) => false,
        [] => false,
        [.., b'\\', b'n' | b'r' | b't' | b'f' | b'v' | b'b' | b'0'] => false,
        [.., b'%' | b'=', a, b] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => false,
        [.., b'\\', b'x', _, _] | [.., b'\\', b'u', _, _, _, _] => false,
        [parameters @ .., b'm'] => {
            let start = &parameters[parameters.len().saturating_sub(20)..];
            let bracket = start
                .iter()
                .rposition(|b| !(b.is_ascii_digit() || *b == b';'));
            bracket.is_none_or(|at| start[at] != b'[')
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_start_is_longer_than_said_or_hidden_in_another() {
        let all: Vec<&[u8]> = starts().collect();
        let longest = all.iter().map(|start| start.len()).max();
        assert_eq!(longest, Some(Tokens::LONGEST_START));
        // What `flush` gives out is a beginning of one start; no other may be within it.
        for start in &all {
            for other in &all {
                let inner = &start[1..];
                assert!(
                    !inner.windows(other.len()).any(|part| part == *other),
                    "{} in {}",
                    String::from_utf8_lossy(other),
                    String::from_utf8_lossy(start)
                );
            }
        }
    }

    #[test]
    fn escapes_end_a_word() {
        for (before, in_word) in [
            ("", false),
            ("a", true),
            ("_", true),
            ("a ", false),
            ("a=", false),
            ("a-", false),
            ("\x1b[31m", false),
            ("\x1b[0;1m", false),
            ("\x1b[m", false),
            ("them", true),
            ("31m", true),
            (r"line\n", false),
            (r"line\\x", true),
            ("a%3D", false),
            (r"\x3d", false),
            (r"\u003d", false),
            ("3D", true),
        ] {
            assert_eq!(is_in_word(before.as_bytes()), in_word, "{before:?}");
        }
    }
}

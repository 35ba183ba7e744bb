//! What holds for any input: nothing depends on how bytes come, nothing known comes out, memory is
//! bounded. Inputs are random and the same in each run.

use super::tests::{PASSWORD, TOKEN, letters, mask};
use super::*;

/// What comes out of pieces.
fn streamed<'a>(mask: &Mask, parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut masker = mask.masker();
    let mut out = Vec::new();
    for part in parts {
        masker.push(part, &mut out);
    }
    masker.finish(&mut out);
    out
}

/// Random, but the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % below
    }

    fn parts<'a>(&mut self, bytes: &'a [u8], longest: usize) -> Vec<&'a [u8]> {
        let mut parts = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(1 + self.below(rest.len().min(longest)));
            parts.push(part);
            rest = after;
        }
        parts
    }
}

fn has(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|part| part == word)
}

/// What random inputs are made of.
fn pieces() -> Vec<Vec<u8>> {
    let words = [
        TOKEN,
        PASSWORD,
        "-and-more",
        "-overlap",
        "p%40ss%2Fw0rd%26more",
        "dXNlcjpwQHNzL3cwcmQmbW9yZQ==",
        "https://",
        "ssh://git",
        "://",
        "user:",
        "@host/",
        "@",
        ":",
        "/",
        "?access_token=",
        "&sig=",
        ";AccountKey=",
        "abc",
        "Authorization: ",
        "'Authorization': '",
        "Bearer ",
        "Basic ",
        "x-api-key: ",
        "0123456789abcdef",
        "secret_access_key = ",
        "ghp_",
        "sk-",
        "hf_",
        "eyJhbGciOiJIUzI1NiJ9",
        ".eyJzdWIiOiIxMjM0NTY3",
        "AKIA",
        "ABCDEFGH23456723",
        "-----BEGIN RSA PRIVATE KEY-----",
        "-----END RSA PRIVATE KEY-----",
        "Proc-Type: ",
        "aB3dE5gH7jK9mN1pQrStUvWxYzaB3dE5gH7jK9mN1pQrStUvWxYz",
        "plain text ",
        "word",
        " ",
        "\n",
        "\r",
        "\r\n",
        "\\n",
        "\"",
        "'",
        "\x1b[31m",
        "é€🦀",
        "****",
        "*",
    ];
    let mut pieces: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    pieces.extend([b"\xff\xfe".to_vec(), b"\xe2\x82".to_vec(), vec![0]]);
    // Parts of secrets, to come near and not be there.
    pieces.extend([TOKEN[..9].into(), TOKEN[9..].into(), PASSWORD[..5].into()]);
    pieces.extend([
        PASSWORD[5..].into(),
        b"p%40ss".to_vec(),
        b"%2Fw0rd%26more".to_vec(),
    ]);
    pieces
}

fn random_input(random: &mut Random, pieces: &[Vec<u8>]) -> Vec<u8> {
    let count = 1 + random.below(40);
    (0..count)
        .flat_map(|_| pieces[random.below(pieces.len())].clone())
        .collect()
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn how_the_input_is_split_does_not_matter() {
    let mask = mask();
    let pieces = pieces();
    let mut random = Random(7);
    for round in 0..1_000 {
        let input = random_input(&mut random, &pieces);
        let whole = streamed(mask, [&input[..]]);
        for longest in [1, 3, 20, 200] {
            let parts = random.parts(&input, longest);
            let split = streamed(mask, parts);
            assert_eq!(shown(&split), shown(&whole), "{round}: {:?}", shown(&input));
            assert_eq!(split, whole);
        }
    }
}

#[test]
fn every_single_split_is_the_same() {
    let mask = mask();
    let pieces = pieces();
    let mut random = Random(11);
    for _ in 0..60 {
        let input = random_input(&mut random, &pieces);
        let whole = streamed(mask, [&input[..]]);
        for at in 0..=input.len() {
            let (first, second) = input.split_at(at);
            assert_eq!(
                shown(&streamed(mask, [first, second])),
                shown(&whole),
                "{:?} at {at}",
                shown(&input)
            );
        }
    }
}

#[test]
fn no_known_value_comes_out_whatever_comes_in() {
    let mask = mask();
    let pieces = pieces();
    let forms = [TOKEN, PASSWORD].map(forms::forms);
    let forms: Vec<&String> = forms.iter().flatten().collect();
    let mut random = Random(13);
    for _ in 0..600 {
        let input = random_input(&mut random, &pieces);
        // With pauses, too.
        let mut masker = mask.masker();
        let mut out = Vec::new();
        for part in random.parts(&input, 30) {
            masker.push(part, &mut out);
            if random.below(2) == 0 {
                masker.flush(&mut out);
            }
        }
        masker.finish(&mut out);
        for form in &forms {
            assert!(!has(&out, form.as_bytes()), "{form} {:?}", shown(&input));
        }
        // Lines stay lines.
        let breaks = |bytes: &[u8]| bytes.iter().filter(|b| matches!(b, b'\n' | b'\r')).count();
        assert_eq!(breaks(&out), breaks(&input), "{:?}", shown(&input));
    }
}

#[test]
fn masking_again_changes_nothing() {
    let mask = mask();
    let pieces = pieces();
    let mut random = Random(17);
    for round in 0..4_000 {
        let input = random_input(&mut random, &pieces);
        let once = streamed(mask, [&input[..]]);
        let twice = streamed(mask, [&once[..]]);
        assert_eq!(shown(&twice), shown(&once), "{round} {:?}", shown(&input));
    }
}

/// What has come out when the stream pauses.
fn at_pause(text: &str) -> String {
    let mut masker = mask().masker();
    let mut out = Vec::new();
    masker.push(text.as_bytes(), &mut out);
    masker.flush(&mut out);
    shown(&out)
}

#[test]
fn a_pause_shows_prompts_and_no_part_of_a_secret() {
    for (text, expected) in [
        ("Password: ", "Password: "),
        ("Password:", "Password:"),
        ("Enter login", "Enter login"),
        ("Yes", "Yes"),
        ("\x1b[1m>>> \x1b[0m", "\x1b[1m>>> \x1b[0m"),
        ("50%|█████     |", "50%|█████     |"),
        ("see github_pa", "see github_pa"),
        ("-----BEG", "-----BEG"),
        ("x tok-5f3c", "x "),
        ("x p%40ss", "x "),
        ("tok-5f3c9a7e21", ""),
        ("tok-5f3c9a7e21 ", "**** "),
        ("see ghp_aaaaaa", "see "),
        ("https://user:pass", "https"),
        ("https://host/", "https://host/"),
        ("Authorization: Bea", "Author"),
    ] {
        let shown = at_pause(text);
        match text.strip_prefix("Authorization") {
            // Of a header the name may be shown or not; its value must not.
            Some(_) => assert!(text.starts_with(&shown), "{shown:?}"),
            None => assert_eq!(shown, expected, "{text:?}"),
        }
    }
}

#[test]
fn a_secret_that_comes_after_a_pause_is_hidden() {
    let token = format!("ghp_{}", letters(36));
    for (text, secret) in [
        (format!("a {TOKEN} b"), TOKEN),
        (format!("a {token} b"), &token[6..]),
        ("a https://user:hunter2@host/ b".to_owned(), "hunter2"),
        (
            "a Authorization: Bearer hunter2abc b".to_owned(),
            "hunter2abc",
        ),
        ("a ?token=hunter2abc b".to_owned(), "hunter2abc"),
    ] {
        for at in 0..text.len() {
            let mut masker = mask().masker();
            let mut out = Vec::new();
            masker.push(&text.as_bytes()[..at], &mut out);
            masker.flush(&mut out);
            masker.push(&text.as_bytes()[at..], &mut out);
            masker.finish(&mut out);
            let out = shown(&out);
            assert!(out.contains("****") && out.ends_with(" b"), "{at} {out:?}");
            assert!(!out.contains(secret), "{at} {out:?}");
        }
    }
}

#[test]
fn values_can_be_added_while_a_stream_flows() {
    let mask = Mask::new(Secrets::new());
    let mut masker = mask.masker();
    let mut out = Vec::new();
    masker.push(b"first-value second-va", &mut out);
    mask.add("api token", "second-value");
    mask.extend(|secrets| secrets.add("short", "abc"));
    masker.push(b"lue first-value second-value\n", &mut out);
    masker.finish(&mut out);
    assert_eq!(shown(&out), "first-value second-value first-value ****\n");
    assert_eq!(mask.too_short(), ["short"]);
    assert_eq!(mask.clone().mask("second-value").as_str(), "****");
}

#[test]
fn little_is_held_back_and_kept_whatever_comes() {
    let mask = mask();
    let random_bytes = {
        let mut random = Random(23);
        (0..4096).map(|_| random.below(256) as u8).collect()
    };
    for unit in [
        b"x".to_vec(),
        b"x\r".to_vec(),
        b"https://".to_vec(),
        b"https://u:".to_vec(),
        b"eyJ-".to_vec(),
        b"-eyJaaaaaaaaaaaaaa".to_vec(),
        b"-----BEGIN PRIVATE KEY-----".to_vec(),
        b"-----BEGIN PRIVATE KEY-----\nProc-Type: ".to_vec(),
        b"?token=".to_vec(),
        b"Authorization: ".to_vec(),
        b"ghp_".to_vec(),
        TOKEN.as_bytes().to_vec(),
        TOKEN.as_bytes()[..13].to_vec(),
        format!("sk-{}", letters(60)).into_bytes(),
        random_bytes,
    ] {
        let mut masker = mask.masker();
        let mut out = Vec::new();
        let chunk: Vec<u8> = unit.iter().copied().cycle().take(7_777).collect();
        for _ in 0..40 {
            masker.push(&chunk, &mut out);
            out.clear();
        }
        let held = masker.held_back();
        assert!(held <= 2 * 4096, "{held} {:?}", shown(&chunk[..20]));
    }
}

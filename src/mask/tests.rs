//! The passes together: what is hidden, what is not, and that nothing depends on how bytes come.

use super::*;

const PASSWORD: &str = "p@ss/w0rd&more";
const TOKEN: &str = "tok-5f3c9a7e21";

fn mask() -> Mask {
    let mut secrets = Secrets::new();
    secrets.add("GIT_PASS", PASSWORD);
    secrets.add("SERVICE_TOKEN", TOKEN);
    secrets.add("LONGER_TOKEN", &format!("{TOKEN}-and-more"));
    secrets.add("OVERLAP", "e21-overlap");
    Mask::new(secrets)
}

fn masked(text: &str) -> String {
    mask().mask(text).into_string()
}

/// The same letters over and over.
fn letters(length: usize) -> String {
    "aB3dE5gH7jK9mN1pQrStUvWxYz"
        .chars()
        .cycle()
        .take(length)
        .collect()
}

fn table(rows: &[(String, String)]) {
    for (text, expected) in rows {
        assert_eq!(masked(text), *expected, "{text:?}");
        // In the middle of a line, and once more.
        let line = format!("\x1b[1mbefore\x1b[0m {text} after\n");
        assert_eq!(
            masked(&line),
            line.replace(text.as_str(), expected),
            "{line:?}"
        );
        assert_eq!(masked(expected), *expected, "again");
    }
}

fn row(text: impl Into<String>, expected: impl Into<String>) -> (String, String) {
    (text.into(), expected.into())
}

#[test]
fn known_values_are_hidden() {
    table(&[
        row(TOKEN, "****"),
        row(format!("x{TOKEN}y"), "x****y"),
        row(format!("{TOKEN}{TOKEN}"), "****"),
        row(format!("{TOKEN},{TOKEN}"), "****,****"),
        row(format!("{TOKEN}-and-more"), "****"),
        row(format!("{TOKEN}-and-mor"), "****-and-mor"),
        row(format!("{TOKEN}-overlap"), "****"),
        row(&TOKEN[..12], &TOKEN[..12]),
        row(format!("pw={PASSWORD}"), "pw=****"),
        row("p%40ss%2Fw0rd%26more", "****"),
        row("p%40ss/w0rd%26more", "****"),
        row("p%40ss%2fw0rd%26more", "****"),
        row(r"p@ss\/w0rd&more", "****"),
        // base64 of `user:` and the password; the last characters are not the password's alone
        row("dXNlcjpwQHNzL3cwcmQmbW9yZQ==", "dXNlcjp****Q=="),
        row(format!("\x1b[31m{TOKEN}\x1b[0m"), "\x1b[31m****\x1b[0m"),
        row(format!("{TOKEN}\r{TOKEN}\r"), "****\r****\r"),
        // A value that begins a shape does not hide the rest from being recognised.
        row(format!("{TOKEN}ghp_{}", letters(36)), "****"),
    ]);
}

#[test]
fn credentials_in_addresses_are_hidden() {
    for (url, shown) in [
        ("https://u:p@h:8443/a.git", "https://u:****@h:8443/a.git"),
        ("https://u:p@w@h/a", "https://u:****@h/a"),
        (
            "'git+https://u:x@h/a.git@v1#egg=a'",
            "'git+https://u:****@h/a.git@v1#egg=a'",
        ),
        ("https://sometoken@h/a", "https://****@h/a"),
        ("https://sometoken:@h/a", "https://****:@h/a"),
        (
            "HTTPS://sometoken:x-oauth-basic@h",
            "HTTPS://****:x-oauth-basic@h",
        ),
        ("postgres://u:p@h/db", "postgres://u:****@h/db"),
        ("redis://:p@h:6379", "redis://:****@h:6379"),
        ("ssh://u:p@h/a", "ssh://u:****@h/a"),
        (
            "https://u:p@h/?next=https://v:q@i/",
            "https://u:****@h/?next=https://v:****@i/",
        ),
        ("\"https://u:p@h\",\"a@b\"", "\"https://u:****@h\",\"a@b\""),
        (
            "https://h/a?access_token=abc&b=1",
            "https://h/a?access_token=****&b=1",
        ),
        (
            "https://h/a?b=1&private_token=abc",
            "https://h/a?b=1&private_token=****",
        ),
        (
            "https://h/a?sv=2&sig=a%2Bb%3D&se=3",
            "https://h/a?sv=2&sig=****&se=3",
        ),
        (
            "https://h/a?X-Amz-Signature=0af#x",
            "https://h/a?X-Amz-Signature=****#x",
        ),
        (
            r"https://h/?a=1\u0026token=abc\u0026b",
            r"https://h/?a=1\u0026token=****\u0026b",
        ),
        (
            "https://h/?a=1&amp;token=abc&amp;b",
            "https://h/?a=1&amp;token=****&amp;b",
        ),
        (
            "AccountName=n;AccountKey=ab/c==;Suffix=x",
            "AccountName=n;AccountKey=****;Suffix=x",
        ),
    ] {
        table(&[row(url, shown)]);
    }
}

#[test]
fn headers_and_entries_are_hidden() {
    for (text, shown) in [
        (
            "Authorization: Bearer abc123def",
            "Authorization: Bearer ****",
        ),
        (
            "> authorization: Basic dXNlcjpw",
            "> authorization: Basic ****",
        ),
        (
            "{'Authorization': 'Bearer abc123def'}",
            "{'Authorization': 'Bearer ****'}",
        ),
        (
            r#"{"Authorization":"token abc123def"}"#,
            r#"{"Authorization":"token ****"}"#,
        ),
        (
            r#"\"Authorization\": \"Bearer abc123def\""#,
            r#"\"Authorization\": \"Bearer ****\""#,
        ),
        (
            "(b'authorization', b'Bearer abc123def')",
            "(b'authorization', b'Bearer ****')",
        ),
        (
            "Proxy-Authorization: Basic dXNlcjpw",
            "Proxy-Authorization: Basic ****",
        ),
        ("Authorization: 0123456789abcdef01", "Authorization: ****"),
        (
            "-H 'PRIVATE-TOKEN: abcdefgh12345678'",
            "-H 'PRIVATE-TOKEN: ****'",
        ),
        ("x-api-key: abcdefgh-1234-5678", "x-api-key: ****"),
        ("got Bearer abcdefghij0123456789.", "got Bearer ****"),
        (
            "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzKEY1",
            "aws_secret_access_key = ****",
        ),
        (
            r#""SecretAccessKey": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzKEY1","#,
            r#""SecretAccessKey": "****","#,
        ),
    ] {
        assert_eq!(masked(text), shown, "{text:?}");
        assert_eq!(masked(shown), shown, "again");
    }
}

#[test]
fn tokens_are_known_by_their_shape() {
    let upper = "ABCDEFGH23456723";
    let hex = "0123456789abcdef0123456789abcdef";
    let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.SflKxwRJSMeKKF2QT4";
    let mut tokens: Vec<String> = [
        ("ghp_", 36),
        ("gho_", 36),
        ("ghu_", 36),
        ("ghs_", 36),
        ("ghr_", 36),
        ("github_pat_", 82),
        ("glpat-", 20),
        ("gldt-", 20),
        ("glrt-", 20),
        ("glcbt-", 20),
        ("glptt-", 20),
        ("glft-", 20),
        ("glsoat-", 20),
        ("glffct-", 20),
        ("glagent-", 50),
        ("gloas-", 64),
        ("AIza", 35),
        ("ya29.", 60),
        ("xoxb-", 40),
        ("xoxp-", 40),
        ("xoxa-", 40),
        ("xoxr-", 40),
        ("xoxs-", 40),
        ("xoxe.", 60),
        ("xapp-", 40),
        ("hf_", 34),
        ("api_org_", 34),
        ("sk-", 48),
        ("sk-proj-", 156),
        ("sk-ant-", 95),
        ("sk-svcacct-", 100),
        ("gsk_", 52),
        ("nvapi-", 64),
        ("r8_", 37),
        ("pypi-AgE", 150),
        ("npm_", 36),
        ("dckr_pat_", 27),
        ("hvs.", 90),
        ("sk_live_", 24),
    ]
    .iter()
    .map(|(prefix, length)| format!("{prefix}{}", letters(*length)))
    .collect();
    tokens.extend([
        format!("AKIA{upper}"),
        format!("ASIA{upper}"),
        format!("dapi{hex}"),
        format!("sk-or-v1-{hex}{hex}"),
        jwt.to_owned(),
        jwt.rsplit_once('.').unwrap().0.to_owned(),
    ]);
    for token in &tokens {
        for (before, after) in [
            ("", ""),
            ("token=", ""),
            ("\"", "\","),
            (r"line\n", r"\n"),
            ("%3D", "%26"),
            ("\x1b[32m", "\x1b[0m"),
            ("/", "/"),
            ("https://", "@h/"),
        ] {
            let text = format!("{before}{token}{after}");
            assert_eq!(masked(&text), format!("{before}****{after}"), "{text:?}");
        }
        let longer = format!("{token}{}", "2".repeat(50_000));
        assert!(masked(&longer) == "****", "{token}");
        let shorter = &token[..14];
        assert_eq!(masked(shorter), shorter);
    }
}

#[test]
fn private_keys_are_hidden_line_by_line() {
    let line = &letters(64);
    for (label, header) in [
        ("PRIVATE KEY", ""),
        (
            "RSA PRIVATE KEY",
            "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0A1B\n\n",
        ),
        ("OPENSSH PRIVATE KEY", ""),
        ("PGP PRIVATE KEY BLOCK", "Version: GnuPG v2\n\n"),
    ] {
        let key = format!(
            "-----BEGIN {label}-----\n{header}{line}\n{line}\nab==\n-----END {label}-----\n"
        );
        let shown =
            format!("-----BEGIN {label}-----\n{header}****\n****\n****\n-----END {label}-----\n");
        assert_eq!(masked(&key), shown);
        assert_eq!(masked(&shown), shown);
        assert_eq!(
            masked(&key.replace('\n', "\r\n")),
            shown.replace('\n', "\r\n")
        );
        let quoted = masked(&key.replace('\n', "\\n"));
        assert!(
            !quoted.contains(&line[..8]) && quoted.contains("END"),
            "{quoted}"
        );
    }
    // A key that was cut ends where the text cannot be one.
    let cut = format!("-----BEGIN PRIVATE KEY-----\n{line}\nERROR: no more\nnext line\n");
    assert!(masked(&cut).ends_with(": no more\nnext line\n"));
}

#[test]
fn a_value_of_many_lines_is_hidden_in_every_writing() {
    let mut secrets = Secrets::new();
    let key = "-----BEGIN CERTIFICATE-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSj\n-----END CERTIFICATE-----";
    secrets.add("TLS_SECRET", key);
    let mask = Mask::new(secrets);
    let shown = "-----BEGIN CERTIFICATE-----\n****\n****\n-----END CERTIFICATE-----";
    for break_as in ["\n", "\r\n", "\\n", "%0A"] {
        let masked = mask.mask(&key.replace('\n', break_as)).into_string();
        assert_eq!(masked, shown.replace('\n', break_as));
    }
}

#[test]
fn ordinary_output_is_left_alone() {
    for text in [
        "commit 63dbd49a1f0e9c8b7a6d5e4f3c2b1a0987654321",
        "task 0123456789abcdef0123456789abcdef started",
        "550e8400-e29b-41d4-a716-446655440000",
        "python:3.11@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "docker://python:3.11@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "\r 45%|████▌     | 450/1000 [00:12<00:15, 36.2it/s, loss=0.123, lr=1e-4]",
        "Requirement already satisfied: scikit-learn>=1.0 in ./venv/lib/python3.11/site-packages (1.4.0)",
        "Downloading https://files.pythonhosted.org/packages/b7/8c/torch-2.1.0-cp311-none-any.whl (670.2 MB)",
        "Looking in indexes: https://pypi.org/simple, https://download.pytorch.org/whl/cu121",
        "Collecting git+https://github.com/clearml/clearml.git@v1.0#egg=clearml",
        "  File \"/usr/lib/python3.11/site-packages/a.py\", line 12, in <module>\n    raise KeyError(key)",
        "mail ada@example.com or https://example.com/~ada",
        "git@github.com:clearml/clearml-agent.git",
        "ssh://git@github.com/clearml/clearml-agent.git",
        "https://h/a?x=b@c and http://localhost:8080/path?page=2&limit=10",
        "['https://host', 'user@example.com']",
        "s3://bucket/path/to/model.bin gs://b/c file:///tmp/x",
        r"C:\Users\ada\Documents\token.txt and \\server\share",
        "password=  token: none  secret key pass",
        "f(token=5, key=value, password=None)",
        "sorted(items, key=lambda x: x.sig)",
        "tokenizer.pad_token = tokenizer.eos_token",
        "Authorization: required",
        "Authorization failed, token expired",
        "the Authorization header, Bearer scheme and Basic authentication",
        "Authorization: Bearer authentication",
        "X-Api-Key: missing",
        "WWW-Authenticate: Bearer realm=\"https://h/token\",service=\"registry\"",
        "import hf_hub_download, sk-learn, npm_config_registry, ghp_short",
        "sk-some-conda-environment-with-a-very-long-name-of-words",
        "AKIAlowercase AIzashort eyJ eyJhbGciOiJIUzI1NiJ9 alone",
        "-----BEGIN CERTIFICATE-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n-----END CERTIFICATE-----",
        "-----BEGIN PUBLIC KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n-----END PUBLIC KEY-----",
        "no start line: -----BEGIN PRIVATE KEY-----\nTraceback (most recent call last):",
        "<img src=\"data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4\">",
        "====================== 12 passed in 0.34s ======================",
        "ClearML results page: https://app.clear.ml/projects/0123456789abcdef0123456789abcdef/experiments/x/output/log",
        "**** already hidden ********",
        "a\u{0}b\u{7f} \u{fffd} é€🦀",
    ] {
        assert_eq!(masked(text), text);
        let line = format!("{text}\n");
        assert_eq!(masked(&line), line);
    }
}

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
    for round in 0..20_000 {
        let input = random_input(&mut random, &pieces);
        let whole = streamed(&mask, [&input[..]]);
        for longest in [1, 3, 20, 200] {
            let parts = random.parts(&input, longest);
            let split = streamed(&mask, parts);
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
    for _ in 0..2_000 {
        let input = random_input(&mut random, &pieces);
        let whole = streamed(&mask, [&input[..]]);
        for at in 0..=input.len() {
            let (first, second) = input.split_at(at);
            assert_eq!(
                shown(&streamed(&mask, [first, second])),
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
    for _ in 0..40_000 {
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
    for round in 0..80_000 {
        let input = random_input(&mut random, &pieces);
        let once = streamed(&mask, [&input[..]]);
        let twice = streamed(&mask, [&once[..]]);
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
        let mut came = 0;
        let mut out = Vec::new();
        let mut flat = Vec::new();
        let chunk: Vec<u8> = unit.iter().copied().cycle().take(7_777).collect();
        for _ in 0..40 {
            masker.push(&chunk, &mut out);
            came += chunk.len();
            flat.append(&mut out);
        }
        let held = masker.held_back();
        assert!(
            held <= 3 * 4096,
            "{:?}: {held} of {came}",
            shown(&unit[..4.min(unit.len())])
        );
    }
}

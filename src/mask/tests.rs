//! The passes together: what is hidden and what is not.

use std::sync::LazyLock;

use super::*;

pub(super) const PASSWORD: &str = "p@ss/w0rd&more";
pub(super) const TOKEN: &str = "tok-5f3c9a7e21";

pub(super) fn mask() -> &'static Mask {
    static MASK: LazyLock<Mask> = LazyLock::new(|| {
        let mut secrets = Secrets::new();
        secrets.add("GIT_PASS", PASSWORD);
        secrets.add("SERVICE_TOKEN", TOKEN);
        secrets.add("LONGER_TOKEN", &format!("{TOKEN}-and-more"));
        secrets.add("OVERLAP", "e21-overlap");
        Mask::new(secrets)
    });
    &MASK
}

fn masked(text: &str) -> String {
    mask().mask(text).into_string()
}

/// The same letters over and over.
pub(super) fn letters(length: usize) -> String {
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

#[test]
fn debug_output_shows_no_secret() {
    let mut masker = mask().masker();
    masker.push(b"tok-5f3c", &mut Vec::new());
    let text = format!("{masker:?}");
    assert!(text.contains("SERVICE_TOKEN"), "{text}");
    // As text, or as bytes.
    for part in ["tok-", "[116, 111"] {
        assert!(!text.contains(part), "{text}");
    }
}

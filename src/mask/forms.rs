//! How a value may be written: percent-encoded, in base64, escaped. Pure.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Values, and their forms, are not shorter.
pub(super) const SHORTEST: usize = 6;
/// So many characters a line must have that is hidden by itself.
const SHORTEST_LINE: usize = 8;
/// Longer ones are searched piece by piece, so that little has to be held back.
const LONGEST: usize = 1024;

/// All forms to search for. No form has a line break in it.
pub(super) fn forms(value: &str) -> BTreeSet<String> {
    let mut forms = BTreeSet::new();
    base64_forms(value, &mut forms);
    if value.contains(['\n', '\r']) {
        // Quoted with both kinds of line ends.
        for line in value.split(['\n', '\r']).map(str::trim) {
            if line.chars().count() >= SHORTEST_LINE && !line.starts_with("-----") {
                base64_forms(line, &mut forms);
                text_forms(line, &mut forms);
            }
        }
    } else {
        text_forms(value, &mut forms);
    }
    let mut pieces = BTreeSet::new();
    for form in forms {
        pieces.extend(cut(&form).map(str::to_owned));
    }
    pieces
}

/// Whether any line of the value is long enough to be hidden.
pub(super) fn has_line(value: &str) -> bool {
    !value.contains(['\n', '\r'])
        || value
            .split(['\n', '\r'])
            .map(str::trim)
            .any(|line| line.chars().count() >= SHORTEST_LINE && !line.starts_with("-----"))
}

fn text_forms(value: &str, forms: &mut BTreeSet<String>) {
    forms.insert(value.to_owned());
    percent_forms(value, forms);
    json_forms(value, forms);
    python_forms(value, forms);
    shell_forms(value, forms);
}

/// The characters that stay as they are besides letters, digits, `-`, `.` and `_`: RFC 3986 (strict),
/// older Python, Python's `quote`, forms, JavaScript, user parts of addresses, whole addresses.
const KEPT: [&str; 8] = [
    "~",
    "",
    "/",
    "~/",
    "*",
    "~!'()*",
    "~!$&'()*+,;=",
    "~!$&'()*+,;=:@/?#",
];

fn percent_forms(value: &str, forms: &mut BTreeSet<String>) {
    for kept in KEPT {
        for blank in ["%20", "+"] {
            let encode = |hex: &str| {
                let mut form = String::new();
                for byte in value.bytes() {
                    let c = char::from(byte);
                    if c.is_ascii_alphanumeric() || "-._".contains(c) || kept.contains(c) {
                        form.push(c);
                    } else if c == ' ' {
                        form.push_str(blank);
                    } else {
                        let digit = |n: u8| char::from(hex.as_bytes()[usize::from(n)]);
                        form.extend(['%', digit(byte >> 4), digit(byte & 15)]);
                    }
                }
                form
            };
            forms.insert(encode("0123456789ABCDEF"));
            forms.insert(encode("0123456789abcdef"));
        }
    }
}

/// In base64 a value looks different by what stands before it; of each of the three ways, the
/// characters that depend on the value alone.
fn base64_forms(value: &str, forms: &mut BTreeSet<String>) {
    for before in 0..3 {
        let mut bytes = vec![0; before];
        bytes.extend_from_slice(value.as_bytes());
        let first = (8 * before).div_ceil(6);
        let after = 8 * bytes.len() / 6;
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            forms.insert(engine.encode(&bytes)[first..after].to_owned());
        }
    }
}

/// Inside the quotes of JSON: as it is, in ASCII only, with `\/`.
fn json_forms(value: &str, forms: &mut BTreeSet<String>) {
    let quoted = serde_json::Value::from(value).to_string();
    let form = &quoted[1..quoted.len() - 1];
    let mut ascii = String::new();
    for c in form.chars() {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    forms.insert(form.replace('/', "\\/"));
    forms.insert(ascii);
    forms.insert(form.to_owned());
}

/// Inside the quotes of Python's `repr`, of text and of bytes.
fn python_forms(value: &str, forms: &mut BTreeSet<String>) {
    for quote in ['\'', '"'] {
        let mut text = String::new();
        let mut bytes = String::new();
        for c in value.chars() {
            let escaped = match c {
                '\\' => "\\\\".to_owned(),
                '\t' => "\\t".to_owned(),
                c if c == quote => format!("\\{c}"),
                c if c.is_ascii_control() => format!("\\x{:02x}", u32::from(c)),
                c => c.to_string(),
            };
            text.push_str(&escaped);
            match c.is_ascii() {
                true => bytes.push_str(&escaped),
                false => {
                    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                        bytes.push_str(&format!("\\x{byte:02x}"));
                    }
                }
            }
        }
        forms.insert(text);
        forms.insert(bytes);
    }
}

/// Inside a shell's single quotes, in two ways, and with backslashes.
fn shell_forms(value: &str, forms: &mut BTreeSet<String>) {
    forms.insert(value.replace('\'', r"'\''"));
    forms.insert(value.replace('\'', r#"'"'"'"#));
    let mut form = String::new();
    for c in value.chars() {
        if c.is_ascii() && !c.is_ascii_alphanumeric() && !"_@%+=:,./-".contains(c) {
            form.push('\\');
        }
        form.push(c);
    }
    forms.insert(form);
}

/// Pieces that cover all of `form`; neighbours may overlap.
fn cut(form: &str) -> impl Iterator<Item = &str> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start >= form.len() {
            return None;
        }
        let mut end = form.floor_char_boundary(start + LONGEST);
        if form.len() - start <= LONGEST {
            end = form.len();
            if start > 0 {
                start = form.ceil_char_boundary(end - LONGEST);
            }
        }
        let piece = &form[start..end];
        start = end;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    #[test]
    fn plain_values_have_few_forms() {
        let forms = forms("hunter2hunter2");
        // Itself, and base64 at three places; both alphabets are the same.
        assert_eq!(forms.len(), 4, "{forms:?}");
    }

    #[test]
    fn every_writing_is_a_form() {
        let value = "p@ss/w0rd +x'\"\\é~";
        let forms = forms(value);
        for form in [
            value,
            // RFC 3986; Python quote(safe=''), quote(), quote_plus(); encodeURIComponent; encodeURI
            "p%40ss%2Fw0rd%20%2Bx%27%22%5C%C3%A9~",
            "p%40ss%2fw0rd%20%2bx%27%22%5c%c3%a9~",
            "p%40ss/w0rd%20%2Bx%27%22%5C%C3%A9~",
            "p%40ss%2Fw0rd+%2Bx%27%22%5C%C3%A9~",
            "p%40ss%2Fw0rd%20%2Bx'%22%5C%C3%A9~",
            "p@ss/w0rd%20+x'%22%5C%C3%A9~",
            // A form, as browsers and the url crate write it
            "p%40ss%2Fw0rd+%2Bx%27%22%5C%C3%A9%7E",
            // JSON: serde, Python, PHP
            r#"p@ss/w0rd +x'\"\\é~"#,
            r#"p@ss/w0rd +x'\"\\\u00e9~"#,
            r#"p@ss\/w0rd +x'\"\\é~"#,
            // repr of str and bytes
            r#"p@ss/w0rd +x\'"\\é~"#,
            r#"p@ss/w0rd +x\'"\\\xc3\xa9~"#,
            // set -x and shlex.quote
            r#"p@ss/w0rd +x'\''"\é~"#,
            r#"p@ss/w0rd +x'"'"'"\é~"#,
            r#"p@ss/w0rd\ +x\'\"\\é\~"#,
        ] {
            assert!(forms.contains(form), "{form}");
        }
    }

    #[test]
    fn base64_shows_nothing_whatever_surrounds_the_value() {
        let value = "s3cr3t?>ÿpass";
        let forms = forms(value);
        for before in ["", "u", "us", "use", "user:"] {
            for after in ["", "x", "xy", "xyz"] {
                let text = format!("{before}{value}{after}");
                for encoded in [STANDARD.encode(&text), URL_SAFE.encode(&text)] {
                    let mut left = encoded.clone();
                    for form in &forms {
                        left = left.replace(form.as_str(), "*");
                    }
                    // Nothing left of it is longer than what stands around the value.
                    let most = (before.len() + after.len()) * 4 / 3 + 1 + 2 + 4;
                    assert!(left.contains('*') && left.len() <= most, "{encoded} {left}");
                }
            }
        }
    }

    #[test]
    fn lines_are_hidden_one_by_one() {
        let forms = forms("-----BEGIN X-----\r\nMIIEvQIBADAN\r\nab==\n  long enough\n");
        for (text, expected) in [
            ("MIIEvQIBADAN", true),
            ("long enough", true),
            ("ab==", false),
            ("-----BEGIN X-----", false),
        ] {
            assert_eq!(forms.contains(text), expected, "{text}");
        }
        assert!(forms.iter().all(|form| !form.contains(['\n', '\r'])));
        assert!(!has_line("short\nones\n-----END X-----"));
        assert!(has_line("short") && has_line("short\nand longer"));
    }

    #[test]
    fn long_values_are_cut() {
        for length in [1, 1023, 1024, 1025, 2047, 2048, 2049, 5000] {
            for text in ["x".repeat(length), "é".repeat(length)] {
                let pieces: Vec<&str> = cut(&text).collect();
                let least = text.len().min(LONGEST - 3);
                assert!(pieces.iter().all(|p| (least..=LONGEST).contains(&p.len())));
                assert!(pieces.iter().map(|p| p.len()).sum::<usize>() >= text.len());
            }
        }
    }
}

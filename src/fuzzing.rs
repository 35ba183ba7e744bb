//! What must hold for any input, for the fuzz targets in `tests/fuzz`. Not a part of any normal build.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::LazyLock;

use serde::Serialize as _;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use crate::config::hocon;
use crate::container::run_args::{self, Host, RunArgs};
use crate::container::template;
use crate::mask::{Mask, Masker, Secrets};
use crate::python::requirements::{self, Line, List, Reading};

pub use crate::journal::fuzz_lines as lines;
pub use crate::source::fuzzing::{diff, patch};

/// Divides `input` into pieces of at most `most` bytes; its bytes say how long each is.
pub(crate) fn pieces(most: u8, input: &[u8]) -> Vec<&[u8]> {
    let most = usize::from(most % 16) + 1;
    let mut pieces = Vec::new();
    let mut rest = input;
    while !rest.is_empty() {
        let length = (usize::from(rest[0]) % most + 1).min(rest.len());
        let (piece, after) = rest.split_at(length);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

const SECRETS: [&str; 4] = [
    "hunter2-hunter2",
    "p@ss w0rd/%41'quoted",
    "aaaaaab",
    "-----BEGIN X-----\nbm9uZSBvZiB5b3Vy\n-----END X-----",
];

/// What must not be seen of [`SECRETS`].
const HIDDEN: [&str; 7] = [
    SECRETS[0],
    SECRETS[1],
    SECRETS[2],
    "bm9uZSBvZiB5b3Vy",
    // In base64 and in an address.
    "aHVudGVyMi1odW50ZXIy",
    "p%40ss%20w0rd%2F%2541%27quoted",
    "p%40ss+w0rd%2f%2541%27quoted",
];

/// The division of the input changes nothing, no secret comes out, not at a pause either, and what is
/// masked stays as it is. The first byte says how the rest is divided.
pub fn masking(input: &[u8]) {
    let Some((most, whole)) = input.split_first() else {
        return;
    };
    let pieces = pieces(*most, whole);
    static MASK: LazyLock<Mask> = LazyLock::new(|| {
        let mut secrets = Secrets::new();
        for secret in SECRETS {
            secrets.add("A_SECRET", secret);
        }
        Mask::new(secrets)
    });
    let once = masked(MASK.masker(), &[whole], false);
    assert_eq!(once, masked(MASK.masker(), &pieces, false));
    assert_eq!(once, masked(MASK.masker(), &[&once], false));
    let paused = masked(MASK.masker(), &pieces, true);
    for hidden in HIDDEN {
        for text in [&once, &paused] {
            let shown = text.windows(hidden.len()).any(|w| w == hidden.as_bytes());
            assert!(!shown, "{hidden}");
        }
    }
}

fn masked(mut masker: Masker, pieces: &[&[u8]], pauses: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        masker.push(piece, &mut out);
        if pauses {
            masker.flush(&mut out);
        }
    }
    masker.finish(&mut out);
    out
}

/// What can be read can be written as JSON and read again, and is the same.
pub fn hocon(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let env = BTreeMap::from([("NAME".to_owned(), "value".to_owned())]);
    match hocon::parse_text("fuzz", text, &env) {
        Ok(object) => {
            let mut written = Vec::new();
            let json = object.to_json();
            json.serialize(&mut Serializer::with_formatter(&mut written, Escapes))
                .expect("JSON in memory");
            let written = String::from_utf8(written).expect("JSON is text");
            match hocon::parse_text("again", &written, &env) {
                Ok(again) => assert_eq!(again.to_json(), json),
                // Substitutions make deeper sections than may be written.
                Err(e) if e.to_string().contains("levels of nesting") => {}
                Err(e) => panic!("what was written is not read: {e}"),
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// JSON with those escapes alone that the SDK's parser knows: `\b` is a word's end in a pattern.
struct Escapes;

impl Formatter for Escapes {
    fn write_char_escape<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        let escape: &[u8] = match escape {
            CharEscape::Quote => b"\\\"",
            CharEscape::ReverseSolidus => b"\\\\",
            CharEscape::Solidus => b"\\/",
            CharEscape::Backspace => b"\\u0008",
            CharEscape::FormFeed => b"\\u000c",
            CharEscape::LineFeed => b"\\n",
            CharEscape::CarriageReturn => b"\\r",
            CharEscape::Tab => b"\\t",
            CharEscape::AsciiControl(byte) => return write!(writer, "\\u{byte:04x}"),
        };
        writer.write_all(escape)
    }
}

/// A list is read or refused with a reason; an address never becomes a bare name.
pub fn requirements(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let parse = |text: &str| {
        // `-r` and `-c` lead to files, of which there are none there.
        let nowhere = Path::new("/nonexistent");
        let env = BTreeMap::from([("NAME".to_owned(), "value".to_owned())]);
        let reading = Reading {
            origin: "fuzz",
            folder: nowhere,
            root: nowhere,
            env: &env,
            original: Some("lost==1.0"),
        };
        requirements::parse(text, &reading)
    };
    match parse(text) {
        Ok(list) => drop(list.file()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    for line in text.lines() {
        if let Ok(list) = parse(line) {
            assert_address_stays(line.trim(), &list);
        }
    }
}

/// What names a place is installed from there, or a person is told.
fn assert_address_stays(line: &str, list: &List) {
    const SCHEMES: [&str; 8] = [
        "git+", "hg+", "svn+", "bzr+", "http://", "https://", "ftp://", "git://",
    ];
    let line = line.strip_prefix("-e ").unwrap_or(line).trim_start();
    if let Some(scheme) = SCHEMES.iter().find(|scheme| line.starts_with(**scheme)) {
        let [Line::Reference { text, .. }] = list.lines.as_slice() else {
            panic!("{line:?} became {list:?}");
        };
        assert!(text.contains(scheme), "{line:?} became {text:?}");
    }
    for package in &list.lines {
        if let Line::Package { text, .. } = package {
            // `name[extras] @ address`, and no `@` in extras, a version, a marker or a hash.
            let said = list
                .notes
                .iter()
                .any(|note| note.contains("not on this machine"));
            let (name, _) = line.split_once('@').unwrap_or(("=", ""));
            let names_a_place = !name.contains(['=', '<', '>', '~', '!', ';', '#', ':'])
                && name.contains('[') == name.contains(']');
            assert!(said || !names_a_place, "{line:?} became {text:?}");
        }
    }
}

/// Arguments are read or refused with a reason; taken apart and written again they are the same, and
/// what is left out of them is not in them.
pub fn docker_args(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let named = template::substitute(text, &|name| name.strip_prefix("TASK.").map(str::to_owned));
    if !named.contains('$') {
        assert_eq!(named, template::substitute(&named, &|_| None));
    }
    // Lines are words as a list in the configuration has them.
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for words in [run_args::split(text).unwrap_or_default(), lines] {
        docker_words(&words);
    }
}

fn docker_words(words: &[String]) {
    let flags = match run_args::flags(words) {
        Ok(flags) => flags,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let again = run_args::without(&flags, |_| false);
    assert_eq!(run_args::flags(&again).expect("they were flags"), flags);
    let volume = |word: &run_args::Word| run_args::is_named(word, "v");
    let less = run_args::flags(&run_args::without(&flags, volume)).expect("they were flags");
    assert!(less.iter().all(|word| word.name != "volume"));

    let env = BTreeMap::from([("NAME".to_owned(), "value".to_owned())]);
    let host = Host {
        env: &env,
        cwd: Path::new("/nonexistent"),
    };
    let body = RunArgs::parse(words).and_then(|args| {
        drop(args.check_engine((1, 41)));
        drop(args.further_networks());
        args.to_create(&host)
    });
    match body {
        Ok(body) => assert!(serde_json::to_value(&body).is_ok()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

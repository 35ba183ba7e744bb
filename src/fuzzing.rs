//! What must hold for any input, for the fuzz targets in `tests/fuzz`. Not a part of any normal build.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::hocon;
use crate::mask::{Mask, Masker, Secrets};
use crate::python::requirements::{self, Reading};

pub use crate::journal::fuzz_lines as lines;
pub use crate::source::fuzz_diff as diff;

/// Cuts `input` as its first byte says.
fn pieces(input: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let (seed, rest) = input.split_first()?;
    let most = usize::from(*seed % 16) + 1;
    let mut pieces = Vec::new();
    let mut left = rest;
    while !left.is_empty() {
        let length = (usize::from(left[0]) % most + 1).min(left.len());
        let (piece, after) = left.split_at(length);
        pieces.push(piece);
        left = after;
    }
    Some((rest, pieces))
}

const SECRETS: [&str; 4] = [
    "hunter2-hunter2",
    "p@ss w0rd/%41'quoted",
    "aaaaaab",
    "-----BEGIN X-----\nbm9uZSBvZiB5b3Vy\n-----END X-----",
];

/// The division of the input changes nothing, no secret comes out, and what is masked stays as it is.
pub fn masking(input: &[u8]) {
    let Some((whole, pieces)) = pieces(input) else {
        return;
    };
    let mut secrets = Secrets::new();
    for secret in SECRETS {
        secrets.add("A_SECRET", secret);
    }
    let mask = Mask::new(secrets);
    let once = masked(&mut mask.masker(), &[whole]);
    assert_eq!(once, masked(&mut mask.masker(), &pieces));
    assert_eq!(once, masked(&mut mask.masker(), &[&once]));
    for secret in &SECRETS[..3] {
        let shown = once.windows(secret.len()).any(|w| w == secret.as_bytes());
        assert!(!shown, "{secret}");
    }
}

fn masked(masker: &mut Masker, pieces: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        masker.push(piece, &mut out);
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
    if let Ok(object) = hocon::parse_text("fuzz", text, &env) {
        let json = object.to_json();
        let again = hocon::parse_text("again", &json.to_string(), &env);
        assert_eq!(again.map(|o| o.to_json()).ok(), Some(json));
    }
}

/// A list that was read, written and read again is the same; an address never becomes a bare name.
pub fn requirements(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    // `-r` and `-c` lead to files, of which there are none there.
    let nowhere = Path::new("/nonexistent");
    let env = BTreeMap::new();
    let reading = Reading {
        origin: "fuzz",
        folder: nowhere,
        root: nowhere,
        env: &env,
        original: None,
    };
    let Ok(list) = requirements::parse(text, &reading) else {
        return;
    };
    let written = list.file();
    let again = requirements::parse(&written, &reading).expect("what was written is read");
    assert_eq!(again.file(), written);
    let addresses = |text: &str| text.matches("git+").count();
    if text.lines().count() == 1 && !text.contains(['#', '\\', ';']) {
        assert_eq!(addresses(text) > 0, addresses(&written) > 0, "{written}");
    }
}

/// A folder in memory.
pub(crate) fn folder() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    tempfile::tempdir_in(place).expect("a temporary folder")
}

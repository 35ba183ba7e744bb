//! `GIT binary patch`: base-85 text of deflated content, whole or as a delta.

use std::io::Read;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Payload {
    /// The file's content.
    Literal(Vec<u8>),
    /// git's delta against the old content.
    Delta(Vec<u8>),
}

/// git's own alphabet of base 85.
const ALPHABET: &[u8; 85] =
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";

/// Reads one part: its header (`literal 12`, `delta 12`) and its encoded lines.
pub(super) fn decode(header: &str, lines: &[&str]) -> Result<Payload, &'static str> {
    let (kind, size) = header.split_once(' ').ok_or("not a binary patch")?;
    let size: usize = size
        .trim()
        .parse()
        .map_err(|_| "not a binary patch's size")?;
    let mut deflated = Vec::new();
    for line in lines {
        deflated.extend(decode_line(line).ok_or("a damaged line in a binary patch")?);
    }
    let mut content = Vec::new();
    flate2::read::ZlibDecoder::new(deflated.as_slice())
        // One more than it should be shows a wrong size without unpacking without end.
        .take((size as u64).saturating_add(1))
        .read_to_end(&mut content)
        .map_err(|_| "the content of a binary patch is damaged")?;
    if content.len() != size {
        return Err("the content of a binary patch is not of the size that is stated");
    }
    match kind {
        "literal" => Ok(Payload::Literal(content)),
        "delta" => Ok(Payload::Delta(content)),
        _ => Err("an unknown kind of binary patch"),
    }
}

/// A letter for the number of bytes, then five digits for each four bytes.
fn decode_line(line: &str) -> Option<Vec<u8>> {
    let (&length, digits) = line.as_bytes().split_first()?;
    let length = match length {
        b'A'..=b'Z' => length - b'A' + 1,
        b'a'..=b'z' => length - b'a' + 27,
        _ => return None,
    };
    let mut bytes = Vec::with_capacity(digits.len() / 5 * 4);
    for group in digits.chunks(5) {
        let mut value: u64 = 0;
        for digit in group {
            value = value * 85 + ALPHABET.iter().position(|letter| letter == digit)? as u64;
        }
        bytes.extend(
            u32::try_from(value)
                .ok()
                .filter(|_| group.len() == 5)?
                .to_be_bytes(),
        );
    }
    let length = usize::from(length);
    (bytes.len() >= length).then(|| {
        bytes.truncate(length);
        bytes
    })
}

/// The new content that `delta` makes of `old`.
pub(super) fn apply_delta(old: &[u8], delta: &[u8]) -> Option<Vec<u8>> {
    let mut rest = delta;
    let old_size = size(&mut rest)?;
    let new_size = size(&mut rest)?;
    if old_size != old.len() {
        return None;
    }
    let mut new = Vec::new();
    while let Some((&command, tail)) = rest.split_first() {
        rest = tail;
        if command & 0x80 != 0 {
            let mut field = |bits: u8, first: u8| -> Option<usize> {
                let mut value = 0;
                for bit in 0..bits {
                    if command & (1 << (first + bit)) != 0 {
                        let (&byte, tail) = rest.split_first()?;
                        rest = tail;
                        value |= usize::from(byte) << (8 * bit);
                    }
                }
                Some(value)
            };
            let offset = field(4, 0)?;
            let length = match field(3, 4)? {
                0 => 0x10000,
                length => length,
            };
            new.extend_from_slice(old.get(offset..offset.checked_add(length)?)?);
        } else if command != 0 {
            let (inserted, tail) = rest.split_at_checked(usize::from(command))?;
            new.extend_from_slice(inserted);
            rest = tail;
        } else {
            return None;
        }
        if new.len() > new_size {
            return None;
        }
    }
    (new.len() == new_size).then_some(new)
}

/// A number in groups of seven bits, lowest first.
fn size(rest: &mut &[u8]) -> Option<usize> {
    let mut value: usize = 0;
    for shift in (0..usize::BITS - 7).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_input_is_refused() {
        for (header, lines) in [
            ("literal", vec![]),
            ("literal x", vec![]),
            ("literal 18446744073709551615", vec!["HcmV?d00001"]),
            ("literal 3", vec!["!"]),
            ("literal 3", vec!["Dabc"]),
            ("other 0", vec![]),
        ] {
            assert!(decode(header, &lines).is_err(), "{header}");
        }
        assert!(apply_delta(b"abc", &[9, 1]).is_none());
        assert!(apply_delta(b"abc", &[3, 1, 0x91, 200, 1]).is_none());
    }

    #[test]
    fn a_delta_copies_and_inserts() {
        // Sizes 3 and 4; copy 2 bytes from 1; insert "xy".
        let delta = [3, 4, 0x91, 1, 2, 2, b'x', b'y'];
        assert_eq!(apply_delta(b"abc", &delta).unwrap(), b"bcxy");
    }
}

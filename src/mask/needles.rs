//! The known secrets in all their written forms, ready to be found.

use std::fmt;

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind};

/// No form is shorter (`forms`): by so many bytes the search recognises it.
const START: usize = 6;
/// More starts make a table that is not worth its memory.
const MOST_IN_TABLE: usize = 5_000;

#[derive(Default)]
pub(super) struct Needles {
    /// In order, each once.
    needles: Vec<Vec<u8>>,
    /// Finds the first bytes of any of them. `None`: there are no needles.
    starts: Option<AhoCorasick>,
}

/// Without the needles.
impl fmt::Debug for Needles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} needles", self.needles.len())
    }
}

/// What stands at a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum At {
    Nothing,
    /// The longest needle there has this length.
    Needle(usize),
    /// A needle, or a longer one, may be on its way.
    Open,
}

impl Needles {
    /// Needles shorter than the search can recognise are left out.
    pub fn new(needles: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut needles: Vec<Vec<u8>> = needles.into_iter().collect();
        needles.retain(|needle| needle.len() >= START);
        needles.sort_unstable();
        needles.dedup();
        let mut starts: Vec<&[u8]> = needles.iter().map(|needle| &needle[..START]).collect();
        starts.dedup();
        let starts = match starts.len() {
            0 => None,
            count => {
                let kind = (count <= MOST_IN_TABLE).then_some(AhoCorasickKind::DFA);
                Some(search(&starts, kind))
            }
        };
        Self { needles, starts }
    }

    pub fn find(&self, text: &[u8], from: usize) -> Option<usize> {
        find(self.starts.as_ref()?, text, from)
    }

    pub fn at(&self, text: &[u8], last: bool) -> At {
        let mut longest = At::Nothing;
        let Some(start) = text.get(..START) else {
            return longest;
        };
        let first = self.needles.partition_point(|n| n.as_slice() < start);
        // In order, the shorter of two with the same beginning comes first.
        for needle in &self.needles[first..] {
            if !needle.starts_with(start) {
                break;
            }
            if text.starts_with(needle) {
                longest = At::Needle(needle.len());
            } else if !last && needle.starts_with(text) {
                return At::Open;
            }
        }
        longest
    }

    /// Whether `text` is the beginning of a needle, but not all of it.
    pub fn is_beginning(&self, text: &[u8]) -> bool {
        let first = self.needles.partition_point(|n| n.as_slice() <= text);
        self.needles
            .get(first)
            .is_some_and(|needle| needle.starts_with(text))
    }

    /// The longest beginning that `find` needs.
    pub const LONGEST_START: usize = START;
}

/// A search for the first place where one of `words` stands.
pub(super) fn search<W: AsRef<[u8]>>(words: &[W], kind: Option<AhoCorasickKind>) -> AhoCorasick {
    let mut builder = AhoCorasick::builder();
    // Leftmost, not standard: only so the search is vectorised.
    builder.match_kind(MatchKind::LeftmostFirst).kind(kind);
    #[expect(
        clippy::unwrap_used,
        reason = "fails with more than 2^31 states only, 350 million words"
    )]
    builder.build(words).unwrap()
}

pub(super) fn find(search: &AhoCorasick, text: &[u8], from: usize) -> Option<usize> {
    let found = search.find(Input::new(text).range(from..))?;
    Some(found.start())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needles(texts: &[&str]) -> Needles {
        Needles::new(texts.iter().map(|text| text.as_bytes().to_vec()))
    }

    #[test]
    fn the_longest_needle_at_a_place_counts() {
        let needles = needles(&["secret-1", "secret-1-long", "secret", "other-one"]);
        for (text, last, expected) in [
            ("secret-1-long!", false, At::Needle(13)),
            ("secret-1-lo", false, At::Open),
            ("secret-1-lo", true, At::Needle(8)),
            ("secret-2", false, At::Needle(6)),
            ("secret", false, At::Open),
            ("secret", true, At::Needle(6)),
            ("other-on", true, At::Nothing),
            ("other-two", false, At::Nothing),
            ("sec", false, At::Nothing),
        ] {
            assert_eq!(
                needles.at(text.as_bytes(), last),
                expected,
                "{text:?} {last}"
            );
        }
    }

    #[test]
    fn beginnings_are_known_at_any_length() {
        let needles = needles(&["hunter2!", "hunter2?x"]);
        for (text, expected) in [
            ("h", true),
            ("hunter2", true),
            ("hunter2!", false),
            ("hunter2?", true),
            ("u", false),
            ("hunterx", false),
        ] {
            assert_eq!(needles.is_beginning(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn no_needles_find_nothing() {
        let none = needles(&["short"]);
        assert_eq!(none.find(b"short and more", 0), None);
        assert!(!none.is_beginning(b"s"));
    }
}

//! One pass over a stream: finds what may begin something to hide, asks the rules, and replaces what
//! they say by a mask. It knows nothing of secrets; it knows that bytes come in pieces of any size,
//! that what is given out cannot be taken back, and that memory is bounded.
//!
//! The output depends on the input alone and not on how it is divided: a place is decided only when
//! enough has come for it, and places are decided in their order.

use std::fmt;
use std::ops::Range;

use super::MASK;

/// How far the rules may look back.
pub(super) const LOOK_BEHIND: usize = 64;

/// What is to be hidden, and where to look for it.
pub(super) trait Rules {
    /// The finders, each a fast search of its own.
    const FINDERS: usize;
    /// What a finder looks for is not longer.
    const LONGEST_START: usize;

    /// The first place at or after `from` that `look` must see.
    fn find(&self, finder: usize, text: &[u8], from: usize) -> Option<usize>;

    /// Whether more bytes can make of `end`, the last that came, what a finder looks for.
    fn may_start(&self, end: &[u8]) -> bool;

    /// Whether `end` is, or may become, a value that must not be shown even in part.
    fn may_be_secret(&self, end: &[u8]) -> bool;

    fn look(&self, finder: usize, place: &Place<'_>) -> Verdict;
}

/// A place a finder found.
pub(super) struct Place<'a> {
    pub text: &'a [u8],
    pub at: usize,
    /// Nothing comes after `text`.
    pub last: bool,
    /// The byte before `at` is hidden.
    pub after_mask: bool,
}

impl Place<'_> {
    /// More bytes are needed, if there can be any.
    pub fn more(&self) -> Verdict {
        match self.last {
            true => Verdict::Nothing,
            false => Verdict::More,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Nothing,
    /// Cannot be said before more bytes come. Rules must say this within bounds.
    More,
    /// This is hidden, and of what follows it all that belongs to `run`.
    Hide {
        range: Range<usize>,
        run: Option<Run>,
    },
}

/// What the characters of a token can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    Alphanumeric,
    UpperAlphanumeric,
    LowerHex,
    Word,
    /// And `-`.
    Dashed,
    /// And `.`.
    Dotted,
    Base64,
    /// What stands between the first line of a key block and its end, with the forms of a line break.
    KeyBlock,
    /// A credential in a header (RFC 9110 token68 and what is seen besides).
    Header,
    /// A value in a URL's query or in a connection string.
    Parameter,
}

impl Run {
    pub fn contains(self, byte: u8) -> bool {
        match self {
            Run::Alphanumeric => byte.is_ascii_alphanumeric(),
            Run::UpperAlphanumeric => byte.is_ascii_uppercase() || byte.is_ascii_digit(),
            Run::LowerHex => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            Run::Word => byte.is_ascii_alphanumeric() || byte == b'_',
            Run::Dashed => Run::Word.contains(byte) || byte == b'-',
            Run::Dotted => Run::Dashed.contains(byte) || byte == b'.',
            Run::Base64 => byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='),
            Run::KeyBlock => Run::Base64.contains(byte) || is_separator(byte),
            Run::Header => {
                byte > b' '
                    && !matches!(
                        byte,
                        0x7f | b'"' | b'\'' | b'\\' | b'`' | b',' | b';' | b'<'
                    )
                    // And none of what begins a parameter or ends a user part.
                    && !matches!(byte, b'>' | b')' | b']' | b'}' | b'@' | b'?' | b'&')
            }
            Run::Parameter => {
                byte > b' '
                    && !matches!(byte, 0x7f | b'"' | b'\'' | b'\\' | b'`' | b'&' | b';')
                    && !matches!(byte, b'<' | b'>' | b'#')
            }
        }
    }

    /// How much of the beginning of `text` belongs to it.
    pub fn length(self, text: &[u8]) -> usize {
        text.iter()
            .position(|byte| !self.contains(*byte))
            .unwrap_or(text.len())
    }
}

/// What stands between the lines of a key block, also where it is quoted or escaped.
pub(super) fn is_separator(byte: u8) -> bool {
    matches!(
        byte,
        b' ' | b'\t' | b'\n' | b'\r' | b'"' | b'\'' | b'\\' | b','
    )
}

pub(super) struct Stage<R> {
    pub rules: R,
    /// A little of what has been given out, to look back at, and all that has not.
    text: Vec<u8>,
    /// All before it has been given out.
    given: usize,
    /// All places before it are decided.
    decided: usize,
    /// What is hidden: in order, and with gaps between.
    hidden: Vec<Range<usize>>,
    /// Runs that went up to the end of what had come, and where that was.
    open: Vec<(Run, usize)>,
    /// What was given out last is a mask.
    masked: bool,
    /// At `decided` something is seen whose end has not come; else only a possible beginning of it.
    found: bool,
}

/// Without the text.
impl<R: fmt::Debug> fmt::Debug for Stage<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage")
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

impl<R: Rules> Stage<R> {
    pub fn new(rules: R) -> Self {
        Self {
            rules,
            text: Vec::new(),
            given: 0,
            decided: 0,
            hidden: Vec::new(),
            open: Vec::new(),
            masked: false,
            found: false,
        }
    }

    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.text.extend_from_slice(bytes);
        self.decide(false);
        self.give(self.decided, out);
        self.forget();
    }

    /// Gives out the possible beginning of something that is no secret by itself, as the `:` of a
    /// prompt, which may begin a `://`.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        if self.found {
            return;
        }
        let mut to = self.decided;
        while to < self.text.len() && !self.rules.may_be_secret(&self.text[to..]) {
            to += 1;
        }
        self.give(to, out);
    }

    /// Nothing more comes; afterwards the stage is as new.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.decide(true);
        self.give(self.text.len(), out);
        self.text.clear();
        self.hidden.clear();
        (self.given, self.decided) = (0, 0);
        (self.masked, self.found) = (false, false);
    }

    fn decide(&mut self, last: bool) {
        self.follow_runs(last);
        let limit = match last {
            true => self.text.len(),
            false => self.possible_start(),
        };
        self.found = false;
        // What each finder found last, and from where it has to search on.
        let mut next = [None; 2];
        let mut from = [self.decided; 2];
        // Where the last run of each kind was.
        let mut runs: Vec<(Run, Range<usize>)> = Vec::new();
        loop {
            let mut first: Option<(usize, usize)> = None;
            for finder in 0..R::FINDERS {
                if next[finder].is_none_or(|at| at < from[finder]) {
                    let at = self.rules.find(finder, &self.text, from[finder]);
                    next[finder] = Some(at.unwrap_or(usize::MAX));
                }
                if let Some(at) = next[finder]
                    && first.is_none_or(|(earliest, _)| at < earliest)
                {
                    first = Some((at, finder));
                }
            }
            let Some((at, finder)) = first.filter(|(at, _)| *at < limit) else {
                self.decided = limit;
                return;
            };
            let place = Place {
                text: &self.text,
                at,
                last,
                after_mask: self.is_hidden_before(at),
            };
            match self.rules.look(finder, &place) {
                Verdict::More => {
                    self.decided = at;
                    self.found = true;
                    return;
                }
                Verdict::Nothing => {}
                Verdict::Hide { range, run: None } => self.hide(range),
                Verdict::Hide {
                    range: Range { start, end },
                    run: Some(run),
                } => {
                    // Of many in the same run the first has gone through it.
                    let known = runs.iter().find(|(known, range)| {
                        *known == run && range.start <= end && end <= range.end
                    });
                    let run_end = match known {
                        Some((_, range)) => range.end,
                        None => {
                            let run_end = end + run.length(&self.text[end..]);
                            runs.retain(|(known, _)| *known != run);
                            runs.push((run, end..run_end));
                            run_end
                        }
                    };
                    self.hide(start..run_end);
                    if run_end == self.text.len() && !last {
                        self.open(run);
                    }
                }
            }
            from[finder] = at + 1;
        }
    }

    fn follow_runs(&mut self, last: bool) {
        for (run, start) in std::mem::take(&mut self.open) {
            let end = start + run.length(&self.text[start..]);
            if end > start {
                self.hide(start..end);
            }
            if end == self.text.len() && !last {
                self.open(run);
            }
        }
    }

    /// The run goes on in what comes next.
    fn open(&mut self, run: Run) {
        let open = (run, self.text.len());
        if !self.open.contains(&open) {
            self.open.push(open);
        }
    }

    /// Where the last bytes that came may be the beginning of what a finder looks for.
    fn possible_start(&self) -> usize {
        let length = self.text.len();
        let from = (length + 1).saturating_sub(R::LONGEST_START);
        (from.max(self.decided)..length)
            .find(|at| self.rules.may_start(&self.text[*at..]))
            .unwrap_or(length)
    }

    fn is_hidden_before(&self, at: usize) -> bool {
        let after = self.hidden.partition_point(|range| range.start < at);
        after > 0 && at <= self.hidden[after - 1].end
    }

    fn hide(&mut self, range: Range<usize>) {
        let Range { mut start, mut end } = range;
        let first = self.hidden.partition_point(|range| range.end < start);
        let after = self.hidden.partition_point(|range| range.start <= end);
        if first < after {
            start = start.min(self.hidden[first].start);
            end = end.max(self.hidden[after - 1].end);
        }
        self.hidden
            .splice(first..after, std::iter::once(start..end));
    }

    fn give(&mut self, to: usize, out: &mut Vec<u8>) {
        let mut at = self.given;
        if to <= at {
            // Given out by `flush`.
            return;
        }
        let first = self.hidden.partition_point(|range| range.end <= at);
        for range in &self.hidden[first..] {
            if range.start >= to {
                break;
            }
            if range.start > at {
                out.extend_from_slice(&self.text[at..range.start]);
                self.masked = false;
                at = range.start;
            }
            let end = range.end.min(to);
            for byte in &self.text[at..end] {
                // Lines stay lines.
                if matches!(byte, b'\n' | b'\r') {
                    out.push(*byte);
                    self.masked = false;
                } else if !std::mem::replace(&mut self.masked, true) {
                    out.extend_from_slice(MASK.as_bytes());
                }
            }
            at = end;
        }
        if at < to {
            out.extend_from_slice(&self.text[at..to]);
            self.masked = false;
            at = to;
        }
        self.given = at;
    }

    fn forget(&mut self) {
        // Not at every small piece: moving the rest costs.
        let cut = self.decided.saturating_sub(LOOK_BEHIND);
        if cut < 16 * LOOK_BEHIND {
            return;
        }
        self.text.drain(..cut);
        self.given -= cut;
        self.decided -= cut;
        self.hidden.retain(|range| range.end > cut);
        for range in &mut self.hidden {
            *range = range.start.saturating_sub(cut)..range.end - cut;
        }
        for (_, start) in &mut self.open {
            *start -= cut;
        }
    }
}

#[cfg(test)]
impl<R> Stage<R> {
    pub fn held_back(&self) -> usize {
        self.text.len() - self.given
    }
}

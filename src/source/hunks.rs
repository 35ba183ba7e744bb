//! Hunks of text in the lines of a file: where they fit, and what comes of it. Pure.

use super::patch::{Hunk, Kind};

/// How a hunk's old lines are looked for, strictest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Matching {
    /// At the line that the hunk names.
    InPlace,
    /// Wherever they are, nearest to that line.
    Anywhere,
    /// As `Anywhere`, for line ends that a form or an editor rewrote on the way.
    IgnoringLineEnds,
    /// Where that fails: in the content that the changes were made on, which is then merged with what
    /// the file has become.
    ThreeWay,
}

impl Matching {
    pub(super) const ALL: [Matching; 4] = [
        Self::InPlace,
        Self::Anywhere,
        Self::IgnoringLineEnds,
        Self::ThreeWay,
    ];
}

/// `old` with the hunks applied, or the first that does not fit.
pub(super) fn with_hunks<'h>(
    old: &[u8],
    hunks: &'h [Hunk],
    matching: Matching,
) -> Result<Vec<u8>, (usize, &'h Hunk)> {
    let mut lines: Vec<Vec<u8>> = split_lines(old);
    // Where the next hunk may begin: behind what earlier ones have changed.
    let mut free_from = 0;
    // How far hunks were found from where they were said to be.
    let mut shift: isize = 0;
    for (index, hunk) in hunks.iter().enumerate() {
        let side = |left_out: Kind| -> Vec<&[u8]> {
            let lines = hunk.lines.iter().filter(|line| line.kind != left_out);
            lines.map(|line| line.text.as_bytes()).collect()
        };
        let before = side(Kind::Added);
        let adds_nothing = hunk.lines.iter().all(|line| line.kind == Kind::Removed);
        // The file's lines up to here are those of the new side already. With no line on that
        // side, its number is that of the line before.
        let expected = match adds_nothing {
            true => hunk.new_start,
            false => hunk.new_start.saturating_sub(1),
        };
        let expected = expected.saturating_add_signed(shift);
        let fits = |at: usize| {
            at >= free_from
                && lines.get(at..at + before.len()).is_some_and(|found| {
                    found
                        .iter()
                        .zip(&before)
                        .all(|(a, b)| same_line(a, b, matching))
                })
        };
        let place = match matching {
            Matching::InPlace => Some(expected).filter(|&at| fits(at)),
            _ => nearest_place(expected, lines.len(), &fits),
        };
        let place = place.ok_or((index, hunk))?;
        shift += place as isize - expected as isize;
        let replacement = replacement(&lines[place..place + before.len()], hunk, matching, &lines);
        let length = replacement.len();
        lines.splice(place..place + before.len(), replacement);
        free_from = place + length;
    }
    // Only the last line may be without its end: a line added behind it gives it one.
    let last = lines.len().saturating_sub(1);
    for line in lines.iter_mut().take(last) {
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
    }
    Ok(lines.concat())
}

/// The place that fits nearest to `expected`, looking both ways.
fn nearest_place(expected: usize, length: usize, fits: &dyn Fn(usize) -> bool) -> Option<usize> {
    let expected = expected.min(length);
    (0..=length).find_map(|distance| {
        let before = expected.checked_sub(distance).filter(|&at| fits(at));
        before.or_else(|| Some(expected + distance).filter(|&at| at <= length && fits(at)))
    })
}

/// The hunk's new lines; context lines are the file's own.
fn replacement(
    found: &[Vec<u8>],
    hunk: &Hunk,
    matching: Matching,
    lines: &[Vec<u8>],
) -> Vec<Vec<u8>> {
    let crlf = |lines: &[Vec<u8>]| lines.first().map(|line| line.ends_with(b"\r\n"));
    // The surroundings say which line ends the file has.
    let crlf = crlf(found).or_else(|| crlf(lines)).unwrap_or(false);
    let mut found = found.iter();
    let mut result = Vec::with_capacity(hunk.lines.len());
    for line in &hunk.lines {
        match line.kind {
            Kind::Context => result.extend(found.next().cloned()),
            Kind::Removed => {
                found.next();
            }
            Kind::Added if matching == Matching::IgnoringLineEnds => {
                let (text, newline) = match line.text.strip_suffix('\n') {
                    Some(text) => (text, true),
                    None => (line.text.as_str(), false),
                };
                let mut bytes = text.trim_end_matches('\r').as_bytes().to_vec();
                match (newline, crlf) {
                    (true, true) => bytes.extend_from_slice(b"\r\n"),
                    (true, false) => bytes.push(b'\n'),
                    (false, _) => {}
                }
                result.push(bytes);
            }
            Kind::Added => result.push(line.text.as_bytes().to_vec()),
        }
    }
    result
}

fn same_line(file: &[u8], diff: &[u8], matching: Matching) -> bool {
    match matching {
        Matching::InPlace | Matching::Anywhere | Matching::ThreeWay => file == diff,
        Matching::IgnoringLineEnds => file.trim_ascii_end() == diff.trim_ascii_end(),
    }
}

/// Lines with their newlines; the last may have none.
fn split_lines(content: &[u8]) -> Vec<Vec<u8>> {
    content
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect()
}

//! From bytes to the text that the server gets: whole lines where they fit, progress bars folded,
//! what a web page cannot show removed. Pure: time comes with the bytes.

use std::borrow::Cow;

use super::Amount;

#[cfg(fuzzing)]
pub mod fuzzing;

/// A longer line is given out in pieces. With its newline one fits a log event of 64 KiB.
const LONGEST: usize = 64 * 1024 - 1;
/// How long the beginning of a line is held back in the hope of its end (ms).
const OPEN_LINE: u64 = 1_500;
/// How often a line that is drawn over and over is shown (ms): the Python agent's pace.
const DRAWN_LINE: u64 = 5_000;

/// Takes bytes in pieces of any size; `out` gets the text, when its last byte came, and how much of
/// the input it stands for. All texts joined are the cleaned input; where they are divided depends on
/// the input alone, but for [`Frames::flush`].
#[derive(Debug)]
pub(super) struct Frames {
    /// Of a line with carriage returns only the last state counts; else each state is a line.
    fold: bool,
    longest: usize,
    /// The open line's present state, as far as it is not given out as plain text.
    line: Vec<u8>,
    /// A carriage return came: the next byte shows whether it belongs to a newline.
    returned: bool,
    /// The open line has been drawn over.
    drawn: bool,
    shown: Shown,
    /// Input that no text has stood for yet.
    owed: Amount,
    at_line_start: bool,
    /// When the last byte came.
    time: u64,
    /// When the first byte came that is not given out, drawn over or not.
    since: Option<u64>,
    /// When the open line was last given out by `flush`.
    flushed: Option<u64>,
}

/// What has been given out of the open line.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    Nothing,
    /// Its beginning, without a newline.
    Beginning,
    /// This state of it, with a newline.
    State(Vec<u8>),
}

impl Frames {
    pub fn new(fold: bool) -> Self {
        Self {
            fold,
            longest: LONGEST,
            line: Vec::new(),
            returned: false,
            drawn: false,
            shown: Shown::Nothing,
            owed: Amount::default(),
            at_line_start: true,
            time: 0,
            since: None,
            flushed: None,
        }
    }

    pub fn push(&mut self, time: u64, bytes: &[u8], out: &mut impl FnMut(&str, u64, Amount)) {
        self.time = time;
        let mut rest = bytes;
        while !rest.is_empty() {
            let plain = memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
            if plain > 0 {
                self.add(&rest[..plain], out);
                rest = &rest[plain..];
                continue;
            }
            self.owed.bytes += 1;
            if rest[0] == b'\n' {
                self.owed.lines += 1;
                self.end_line(out);
                self.at_line_start = true;
            } else {
                self.returned = true;
                self.at_line_start = false;
            }
            rest = &rest[1..];
        }
    }

    /// Part of a line.
    fn add(&mut self, text: &[u8], out: &mut impl FnMut(&str, u64, Amount)) {
        if std::mem::take(&mut self.returned) {
            self.draw_over(out);
        }
        self.at_line_start = false;
        self.since.get_or_insert(self.time);
        self.owed.bytes += text.len() as u64;
        self.line.extend_from_slice(text);
        let mut start = 0;
        while self.line.len() - start > self.longest {
            let piece = &self.line[start..start + self.longest];
            let length = match boundary(piece) {
                0 => piece.len(),
                boundary => boundary,
            };
            let rest = self.line.len() - start - length;
            let owed = take_but(&mut self.owed, rest);
            out(&clean(&piece[..length]), self.time, owed);
            start += length;
            self.shown = Shown::Beginning;
        }
        self.line.drain(..start);
        if start > 0 {
            self.since = Some(self.time);
        }
    }

    /// The line is begun anew, over its present state.
    fn draw_over(&mut self, out: &mut impl FnMut(&str, u64, Amount)) {
        if !self.fold {
            if !self.line.is_empty() || self.shown != Shown::Nothing {
                self.end_line(out);
            }
            return;
        }
        if self.shown == Shown::Beginning {
            out("\n", self.time, Amount::default());
            self.shown = Shown::Nothing;
        }
        self.drawn = true;
        self.line.clear();
    }

    fn end_line(&mut self, out: &mut impl FnMut(&str, u64, Amount)) {
        let owed = std::mem::take(&mut self.owed);
        if self.is_shown() {
            out("", self.time, owed);
        } else {
            self.line.push(b'\n');
            out(&clean(&self.line), self.time, owed);
        }
        self.line.clear();
        self.returned = false;
        self.drawn = false;
        self.shown = Shown::Nothing;
        self.since = None;
        self.flushed = None;
    }

    /// Whether the line's present state is given out, with a newline. A bar that was wiped away at
    /// its end is none to show again.
    fn is_shown(&self) -> bool {
        match &self.shown {
            Shown::State(state) => {
                *state == self.line || self.line.iter().all(u8::is_ascii_whitespace)
            }
            Shown::Nothing | Shown::Beginning => false,
        }
    }

    /// When `flush` will have something to give out, if nothing more comes.
    pub fn flush_at(&self) -> Option<u64> {
        if self.line.is_empty() || self.is_shown() {
            return None;
        }
        let first = self.since? + OPEN_LINE;
        match self.flushed {
            Some(last) if self.is_drawn() => Some(first.max(last + DRAWN_LINE)),
            _ => Some(first),
        }
    }

    /// Gives out an open line that has waited long enough at `now`: a prompt, a progress bar.
    pub fn flush(&mut self, now: u64, out: &mut impl FnMut(&str, u64, Amount)) {
        if self.flush_at().is_none_or(|due| now < due) {
            return;
        }
        self.since = None;
        if self.is_drawn() {
            let mut text = clean(&self.line).into_owned();
            if text.trim().is_empty() {
                // Wiped, and about to be drawn again.
                return;
            }
            text.push('\n');
            self.flushed = Some(now);
            out(&text, self.time, std::mem::take(&mut self.owed));
            self.shown = Shown::State(self.line.clone());
            return;
        }
        // What is cut in the middle waits for its other half.
        let length = boundary(&self.line);
        if length == 0 {
            return;
        }
        self.flushed = Some(now);
        let owed = take_but(&mut self.owed, self.line.len() - length);
        out(&clean(&self.line[..length]), self.time, owed);
        self.line.drain(..length);
        self.shown = Shown::Beginning;
    }

    fn is_drawn(&self) -> bool {
        self.fold && (self.drawn || self.returned)
    }

    /// Nothing more will come.
    pub fn finish(&mut self, out: &mut impl FnMut(&str, u64, Amount)) {
        let mut owed = std::mem::take(&mut self.owed);
        if !self.at_line_start {
            owed.lines += 1;
        }
        if owed == Amount::default() {
            return;
        }
        let text = if self.is_shown() {
            Cow::Borrowed("")
        } else {
            clean(&self.line)
        };
        out(&text, self.time, owed);
        *self = Frames {
            longest: self.longest,
            ..Frames::new(self.fold)
        };
    }
}

/// Takes what is owed but for the last `kept` bytes, which are not given out yet.
fn take_but(owed: &mut Amount, kept: usize) -> Amount {
    let kept = (kept as u64).min(owed.bytes);
    let mut taken = std::mem::take(owed);
    taken.bytes -= kept;
    owed.bytes = kept;
    taken
}

/// `bytes` as the web page shows them: invalid UTF-8 replaced, backspaces and terminal commands
/// removed, colours kept.
fn clean(bytes: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(bytes);
    if !text.bytes().any(|b| matches!(b, 0x08 | ESCAPE)) {
        return text;
    }
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some(special) = rest.find(['\x08', '\x1b']) {
        kept.push_str(&rest[..special]);
        rest = &rest[special..];
        if rest.starts_with('\x08') {
            rest = &rest[1..];
            continue;
        }
        // A command that does not end is none that could be shown either.
        let length = command_length(rest.as_bytes()).unwrap_or(rest.len());
        // What ends a command is ASCII, or the byte before something that is none: always a
        // character boundary.
        let (command, after) = rest.split_at(length);
        if command.starts_with("\x1b[") && command.ends_with('m') {
            kept.push_str(command);
        }
        rest = after;
    }
    kept.push_str(rest);
    Cow::Owned(kept)
}

const ESCAPE: u8 = 0x1b;
/// No terminal command that is worth waiting for is longer.
const LONGEST_COMMAND: usize = 64;

/// The length of the terminal command (ECMA-48) that `bytes` begins with an escape; `None` if it is
/// not complete. A newline ends what is no command.
fn command_length(bytes: &[u8]) -> Option<usize> {
    let is_end = |b: &u8| !(0x20..=0x3f).contains(b);
    match bytes.get(1)? {
        b'[' => {
            let end = 2 + bytes[2..].iter().position(is_end)?;
            Some(end + usize::from((0x40..=0x7e).contains(&bytes[end])))
        }
        // A title or a link: ended by BEL, or by escape and backslash.
        b']' => {
            let end = bytes
                .iter()
                .skip(1)
                .position(|b| matches!(*b, 0x07 | ESCAPE | b'\n'))?
                + 1;
            match bytes[end] {
                0x07 => Some(end + 1),
                ESCAPE if bytes.get(end + 1)? == &b'\\' => Some(end + 2),
                _ => Some(end),
            }
        }
        0x20..=0x2f => {
            let end = 1 + bytes[1..].iter().position(|b| !(0x20..=0x2f).contains(b))?;
            Some(end + usize::from((0x30..=0x7e).contains(&bytes[end])))
        }
        0x30..=0x7e => Some(2),
        _ => Some(1),
    }
}

/// The most of `bytes` that can be given out with no character and no terminal command cut.
fn boundary(bytes: &[u8]) -> usize {
    let mut end = bytes.len();
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let length = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        if length > back {
            end -= back;
        }
        break;
    }
    let tail = end.saturating_sub(LONGEST_COMMAND);
    match bytes[tail..end].iter().rposition(|b| *b == ESCAPE) {
        Some(at) if command_length(&bytes[tail + at..end]).is_none() => tail + at,
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out, joined, and what it stands for.
    fn joined(frames: &mut Frames, parts: &[&[u8]]) -> (String, Amount) {
        let mut text = String::new();
        let mut amount = Amount::default();
        let mut out = |piece: &str, _, part: Amount| {
            text.push_str(piece);
            amount.add(part);
        };
        for part in parts {
            frames.push(0, part, &mut out);
        }
        frames.finish(&mut out);
        (text, amount)
    }

    #[test]
    fn lines_as_the_server_gets_them() {
        for (input, folded, unfolded) in [
            ("", "", ""),
            ("a\nb\n", "a\nb\n", "a\nb\n"),
            ("no end", "no end", "no end"),
            ("\n\n", "\n\n", "\n\n"),
            ("dos\r\nline\r\n", "dos\nline\n", "dos\nline\n"),
            (
                "\r10%\r20%\r100%\ndone\n",
                "100%\ndone\n",
                "10%\n20%\n100%\ndone\n",
            ),
            ("10%\r20%\r", "20%", "10%\n20%"),
            ("10%\r\r\n", "10%\n", "10%\n"),
            ("bar\r   \rtext\n", "text\n", "bar\n   \ntext\n"),
            ("a\x08b\n", "ab\n", "ab\n"),
            (
                "\x1b[31mred\x1b[0m\n",
                "\x1b[31mred\x1b[0m\n",
                "\x1b[31mred\x1b[0m\n",
            ),
            ("x\x1b[2K\x1b[1Ay\n", "xy\n", "xy\n"),
            ("\x1b]0;title\x07x\x1b]8;;u\x1b\\y\n", "xy\n", "xy\n"),
            ("\x1b(Bx\x1b=y\n", "xy\n", "xy\n"),
            ("\x1b[3ü\x1bü\n", "üü\n", "üü\n"),
            ("unended \x1b[3", "unended ", "unended "),
            ("unended \x1b[3\nx\n", "unended \nx\n", "unended \nx\n"),
        ] {
            let expected = Amount {
                lines: input.matches('\n').count() as u64
                    + u64::from(!input.is_empty() && !input.ends_with('\n')),
                bytes: input.len() as u64,
            };
            for (fold, text) in [(true, folded), (false, unfolded)] {
                assert_eq!(
                    joined(&mut Frames::new(fold), &[input.as_bytes()]),
                    (text.to_owned(), expected),
                    "{input:?} fold {fold}"
                );
            }
        }
    }

    #[test]
    fn invalid_bytes_are_replaced() {
        let (text, _) = joined(&mut Frames::new(true), &[b"a\xff\xc3\nb\xe2\x82"]);
        assert_eq!(text, "a\u{fffd}\u{fffd}\nb\u{fffd}");
    }

    #[test]
    fn no_character_and_no_command_is_cut() {
        for (bytes, expected) in [
            (&b"abc"[..], 3),
            ("aé".as_bytes(), 3),
            (&"aé".as_bytes()[..2], 1),
            (&"a€".as_bytes()[..3], 1),
            (&"a🦀".as_bytes()[..4], 1),
            ("a🦀".as_bytes(), 5),
            (b"a\x80\x80\x80\x80", 5),
            (b"ab\x1b", 2),
            (b"ab\x1b[3", 2),
            (b"ab\x1b[31m", 7),
            (b"", 0),
        ] {
            assert_eq!(boundary(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn how_the_input_is_split_does_not_matter() {
        let words = [
            "line\n",
            "\r",
            "\n",
            "10%",
            "\r\n",
            "é",
            "€",
            "🦀",
            "\x1b[32m",
            "\x1b[K",
            "\x08",
            "text ",
            "a rather long run of text without any end ",
        ];
        let mut seed = 7_u64;
        let mut random = move |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % below
        };
        for round in 0..300 {
            let input: String = (0..60).map(|_| words[random(words.len())]).collect();
            let frames = || Frames {
                longest: 64,
                ..Frames::new(round % 2 == 0)
            };
            let whole = joined(&mut frames(), &[input.as_bytes()]);
            let mut parts = Vec::new();
            let mut rest = input.as_bytes();
            while !rest.is_empty() {
                let (part, after) = rest.split_at(1 + random(rest.len().min(12)));
                parts.push(part);
                rest = after;
            }
            assert_eq!(joined(&mut frames(), &parts), whole, "{input:?}");
            assert_eq!(whole.1.bytes, input.len() as u64);
        }
    }

    /// Times, what comes then, and what is given out by then.
    fn played(steps: &[(u64, &str, &str)]) {
        let mut frames = Frames::new(true);
        for (time, input, expected) in steps {
            let mut text = String::new();
            let mut out = |piece: &str, _, _| text.push_str(piece);
            frames.push(*time, input.as_bytes(), &mut out);
            frames.flush(*time, &mut out);
            assert_eq!(text, *expected, "at {time}, {input:?}");
        }
    }

    #[test]
    fn a_prompt_is_shown_before_its_line_ends() {
        played(&[
            (0, "name? ", ""),
            (1_400, "", ""),
            (1_500, "", "name? "),
            (9_000, "", ""),
            (9_001, "ada\n", "ada\n"),
        ]);
    }

    #[test]
    fn a_character_that_is_not_whole_waits() {
        let mut frames = Frames::new(true);
        let mut text = String::new();
        let mut amount = Amount::default();
        let mut out = |piece: &str, _, part: Amount| {
            text.push_str(piece);
            amount.add(part);
        };
        frames.push(0, &"5 €".as_bytes()[..3], &mut out);
        frames.flush(2_000, &mut out);
        frames.push(2_001, &"5 €\n".as_bytes()[3..], &mut out);
        assert_eq!(text, "5 €\n");
        assert_eq!(amount, Amount { lines: 1, bytes: 6 });
    }

    #[test]
    fn a_progress_bar_is_shown_now_and_then_and_never_twice() {
        played(&[
            (0, "\r 1%", ""),
            (1_000, "\r 2%", ""),
            (1_500, "\r 3%", " 3%\n"),
            (2_500, "\r 4%", ""),
            (4_000, "\r50%", ""),
            (6_499, "\r50%", ""),
            (6_500, "\r60%", "60%\n"),
            (9_600, "\r60%", ""),
            (20_000, "\r\x1b[2K", ""),
            (20_000, "", ""),
            (21_000, "\r100%", ""),
            (22_500, "", "100%\n"),
            (30_000, "\n", ""),
            (30_001, "next\n", "next\n"),
        ]);
    }

    #[test]
    fn a_bar_drawn_over_a_shown_text_begins_its_own_line() {
        played(&[
            (0, "Loading", ""),
            (1_500, "", "Loading"),
            (1_600, "\rLoaded\n", "\nLoaded\n"),
        ]);
    }
}

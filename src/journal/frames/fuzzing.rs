//! What must hold for the output of any job, for the fuzz target `lines`.

use super::*;
use crate::fuzzing::pieces;

#[derive(Debug, Default, PartialEq)]
struct Played {
    text: String,
    amount: Amount,
}

/// The first three bytes say whether lines are folded, which length is the longest, and how the rest
/// is divided; a piece's first byte says how long the pause after it is.
pub fn lines(input: &[u8]) {
    let Some((&[fold, longest, most], input)) = input.split_first_chunk::<3>() else {
        return;
    };
    let fold = fold & 1 == 1;
    let longest = 2 * LONGEST_COMMAND + usize::from(longest);
    let pieces = pieces(most, input);
    let played = |pieces: &[&[u8]], pauses: bool| {
        let mut frames = Frames {
            longest,
            ..Frames::new(fold)
        };
        played(&mut frames, pieces, pauses)
    };
    let whole = played(&[input], false);
    let paused = played(&pieces, true);
    assert_eq!(whole, played(&pieces, false), "how it comes matters");
    assert_eq!(whole.amount, paused.amount, "a pause matters");
    let ends = memchr::memchr_iter(b'\n', input).count();
    let open = usize::from(input.last().is_some_and(|byte| *byte != b'\n'));
    let amount = Amount {
        lines: (ends + open) as u64,
        bytes: input.len() as u64,
    };
    assert_eq!(whole.amount, amount, "not all is accounted for");

    let lines: Vec<&[u8]> = input.split_inclusive(|byte| *byte == b'\n').collect();
    if lines.iter().any(|line| line.len() > longest) {
        return;
    }
    let states: Vec<String> = lines.iter().flat_map(|line| states(line, fold)).collect();
    assert_eq!(whole.text, states.concat());
    // A command may be cut by a pause where it is longer than any that is known.
    if input.len() > LONGEST_COMMAND && input.contains(&ESCAPE) {
        return;
    }
    if !fold || !input.contains(&b'\r') {
        assert_eq!(whole.text, paused.text, "a pause matters");
    } else if !input.contains(&ESCAPE) {
        let mut rest = paused.text.as_str();
        for state in states.iter().map(|state| state.trim()) {
            let at = rest.find(state);
            rest = &rest[at.unwrap_or_else(|| panic!("{state:?} is lost")) + state.len()..];
        }
    }
}

/// What is to be seen of one line.
fn states(line: &[u8], fold: bool) -> Vec<String> {
    let (line, end) = match line.strip_suffix(b"\n") {
        Some(line) => (line, &b"\n"[..]),
        None => (line, &b""[..]),
    };
    let mut states: Vec<&[u8]> = line.split(|byte| *byte == b'\r').collect();
    states.retain(|state| !state.is_empty());
    if fold || states.is_empty() {
        states = vec![states.last().copied().unwrap_or_default()];
    }
    let last = states.len() - 1;
    let text = |(at, state): (usize, &&[u8])| {
        let end = if at == last { end } else { b"\n" };
        clean(&[*state, end].concat()).into_owned()
    };
    states.iter().enumerate().map(text).collect()
}

fn played(frames: &mut Frames, pieces: &[&[u8]], pauses: bool) -> Played {
    let mut played = Played::default();
    let mut now = 0;
    let mut latest = 0;
    for piece in pieces {
        let mut out = |text: &str, time: u64, amount: Amount| {
            assert!((latest..=now).contains(&time), "time goes back");
            latest = time;
            assert_clean(text);
            played.text.push_str(text);
            played.amount.add(amount);
        };
        frames.push(now, piece, &mut out);
        if pauses {
            now += [0, 400, OPEN_LINE, DRAWN_LINE][usize::from(piece[0] % 4)];
            let mut out = |text: &str, _: u64, amount: Amount| {
                assert_clean(text);
                played.text.push_str(text);
                played.amount.add(amount);
            };
            frames.flush(now, &mut out);
            let next = frames.flush_at();
            assert!(next.is_none_or(|at| at > now), "it would be asked for ever");
        }
    }
    frames.finish(&mut |text, _, amount| {
        assert_clean(text);
        played.text.push_str(text);
        played.amount.add(amount);
    });
    played
}

/// Nothing that a web page cannot show.
fn assert_clean(text: &str) {
    assert!(!text.contains('\x08'), "{text:?}");
    for (at, _) in text.match_indices('\x1b') {
        let colour = text[at..].strip_prefix("\x1b[").is_some_and(|rest| {
            rest.trim_start_matches(|c| ('\x20'..='\x3f').contains(&c))
                .starts_with('m')
        });
        assert!(colour, "{text:?}");
    }
}

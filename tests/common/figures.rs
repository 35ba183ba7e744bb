//! What became of numbered lines on their way to a server.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used)]

/// What arrived of numbered lines: how often each came, and whether they came in order, repetitions
/// aside.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub lost: usize,
    pub duplicated: usize,
    pub in_order: bool,
}

/// Of a log that should have the lines `line 0` to `line N-1`, and may have others.
pub fn figures(log: &str, expected: usize) -> Figures {
    let mut times_seen = vec![0_usize; expected];
    let mut highest = None;
    let mut in_order = true;
    let lines = log.lines().filter_map(|line| line.strip_prefix("line "));
    for number in lines.map(|n| n.parse::<usize>().unwrap()) {
        if times_seen[number] == 0 {
            in_order &= highest.is_none_or(|h| h + 1 == number);
            highest = Some(number);
        }
        times_seen[number] += 1;
    }
    let figures = Figures {
        lost: times_seen.iter().filter(|seen| **seen == 0).count(),
        duplicated: times_seen.iter().filter(|seen| **seen > 1).count(),
        in_order,
    };
    println!("{expected} lines: {figures:?}");
    figures
}

pub const NOTHING_WRONG: Figures = Figures {
    lost: 0,
    duplicated: 0,
    in_order: true,
};

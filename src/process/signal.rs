//! Signals by number and name; the numbers are Linux's.

pub const HUP: i32 = 1;
pub const INT: i32 = 2;
pub const QUIT: i32 = 3;
pub const ILL: i32 = 4;
pub const TRAP: i32 = 5;
pub const ABRT: i32 = 6;
pub const BUS: i32 = 7;
pub const FPE: i32 = 8;
pub const KILL: i32 = 9;
pub const USR1: i32 = 10;
pub const SEGV: i32 = 11;
pub const USR2: i32 = 12;
pub const PIPE: i32 = 13;
pub const TERM: i32 = 15;
pub const XCPU: i32 = 24;
pub const XFSZ: i32 = 25;
pub const SYS: i32 = 31;

/// `SIGTERM` and so on.
pub fn name(signal: i32) -> String {
    let name = match signal {
        HUP => "HUP",
        INT => "INT",
        QUIT => "QUIT",
        ILL => "ILL",
        TRAP => "TRAP",
        ABRT => "ABRT",
        BUS => "BUS",
        FPE => "FPE",
        KILL => "KILL",
        10 => "USR1",
        SEGV => "SEGV",
        12 => "USR2",
        PIPE => "PIPE",
        14 => "ALRM",
        TERM => "TERM",
        XCPU => "XCPU",
        XFSZ => "XFSZ",
        SYS => "SYS",
        other => return format!("signal {other}"),
    };
    format!("SIG{name}")
}

/// The number of a signal by its name (`TERM`, `SIGTERM`, any case) or its number.
pub fn number(text: &str) -> Option<i32> {
    let text = text.trim().to_uppercase();
    if let Ok(number) = text.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = format!("SIG{}", text.strip_prefix("SIG").unwrap_or(&text));
    (1..=31).find(|number| self::name(*number) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_by_name_and_number() {
        for (text, expected) in [
            ("TERM", Some(15)),
            ("sigusr1", Some(10)),
            (" 2 ", Some(2)),
            ("SIGNAL", None),
            ("0", None),
            ("", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }
}

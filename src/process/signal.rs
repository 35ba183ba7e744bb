//! Signals by number and name; the numbers are Linux's.

pub const QUIT: i32 = 3;
pub const ILL: i32 = 4;
pub const TRAP: i32 = 5;
pub const ABRT: i32 = 6;
pub const BUS: i32 = 7;
pub const FPE: i32 = 8;
pub const KILL: i32 = 9;
pub const SEGV: i32 = 11;
pub const PIPE: i32 = 13;
pub const TERM: i32 = 15;
pub const XCPU: i32 = 24;
pub const XFSZ: i32 = 25;
pub const SYS: i32 = 31;

/// `SIGTERM` and so on.
pub fn name(signal: i32) -> String {
    let name = match signal {
        1 => "HUP",
        2 => "INT",
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

//! Numbers, sizes and times as docker's client reads them: Go's `strconv` and `time`, and
//! `docker/go-units`.

const KIB: f64 = 1024.0;

/// `1`, `0`, `true`, `f`, …: what Go takes for a boolean.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

/// An integer, also `0x10`, `0o20`, `020`, `0b1_0000`.
pub(super) fn integer(text: &str) -> Result<i64, String> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, rest) = match lower.as_str() {
        s if s.starts_with("0x") => (16, &s[2..]),
        s if s.starts_with("0o") => (8, &s[2..]),
        s if s.starts_with("0b") => (2, &s[2..]),
        s if s.len() > 1 && s.starts_with('0') => (8, &s[1..]),
        s => (10, s),
    };
    // Go takes `_` between digits only where the base is written out.
    let rest = match digits.starts_with('0') {
        true => rest.replace('_', ""),
        false => rest.to_owned(),
    };
    let wrong = || "expected a whole number".to_owned();
    if rest.starts_with(['+', '-']) {
        return Err(wrong());
    }
    let signed = match negative {
        true => format!("-{rest}"),
        false => rest,
    };
    i64::from_str_radix(&signed, radix).map_err(|_| wrong())
}

/// A weight between 10 and 1000, or 0 for none.
pub(super) fn weight(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(weight) if weight == 0 || (10..=1000).contains(&weight) => Ok(weight),
        _ => Err("expected a weight between 10 and 1000, or 0 for none".into()),
    }
}

/// Bytes: `512`, `64m`, `1.5g`, `10 MiB`. Units are powers of 1024.
pub(super) fn bytes(text: &str) -> Result<i64, String> {
    let wrong = || "expected a size, like 512m or 8g".to_owned();
    let last = text
        .rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')
        .ok_or_else(wrong)?;
    let (number, suffix) = (&text[..=last], &text[last + 1..]);
    let number = number.strip_suffix(' ').unwrap_or(number);
    let suffix = suffix.to_lowercase();
    let power = match suffix.strip_suffix('b').unwrap_or(&suffix) {
        "" => 0,
        "k" | "ki" => 1,
        "m" | "mi" => 2,
        "g" | "gi" => 3,
        "t" | "ti" => 4,
        "p" | "pi" => 5,
        _ => return Err(wrong()),
    };
    // `10mi` is none, `10mib` is.
    if suffix.ends_with('i') {
        return Err(wrong());
    }
    let size = number.parse::<f64>().map_err(|_| wrong())? * KIB.powi(power);
    // Rounded towards zero as Go does.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    match size.is_finite() && size >= 0.0 && size < i64::MAX as f64 {
        true => Ok(size as i64),
        false => Err(wrong()),
    }
}

/// As [`bytes`], and `-1` for no limit.
pub(super) fn bytes_or_unlimited(text: &str) -> Result<i64, String> {
    match text {
        "-1" => Ok(-1),
        text => bytes(text),
    }
}

/// A number of CPUs in billionths: `2`, `1.5`, `3/2`.
pub(super) fn cpus(text: &str) -> Result<i64, String> {
    const BILLION: i64 = 1_000_000_000;
    let wrong = || "expected a number of CPUs, like 1.5".to_owned();
    let precise = || "no more than nine digits may follow the point".to_owned();
    let digits = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse::<i64>().map_err(|_| wrong()),
        false => Err(wrong()),
    };
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some((over, under)) = text.split_once('/') {
        let (over, under) = (digits(over)?, digits(under)?);
        let nano = over.checked_mul(BILLION).ok_or_else(wrong)?;
        return match nano.checked_rem(under) {
            Some(0) => Ok(nano / under),
            Some(_) => Err(precise()),
            None => Err(wrong()),
        };
    }
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() && part.is_empty() {
        return Err(wrong());
    }
    let part = part.trim_end_matches('0');
    if part.len() > 9 {
        return Err(precise());
    }
    let whole = match whole {
        "" => 0,
        whole => digits(whole)?,
    };
    let part = digits(&format!("{part:0<9}"))?;
    whole
        .checked_mul(BILLION)
        .and_then(|nano| nano.checked_add(part))
        .ok_or_else(wrong)
}

/// A time in nanoseconds as Go writes it: `30s`, `1m30s`, `1.5h`, `0`.
pub(super) fn duration(text: &str) -> Result<i64, String> {
    let wrong = || "expected a time with its unit, like 30s or 1m30s".to_owned();
    if text == "0" {
        return Ok(0);
    }
    if text.starts_with('-') {
        return Err("a time can't be negative".into());
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total = 0_f64;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .ok_or_else(wrong)?;
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(wrong()),
        };
        rest = &rest[end..];
        total += number * unit;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    match total < i64::MAX as f64 {
        true => Ok(total.round() as i64),
        false => Err(wrong()),
    }
}

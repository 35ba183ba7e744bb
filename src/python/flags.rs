//! pip's ways of saying things, for uv: flags, version rules.

/// `pip` with one entry of `pip_version`; an entry with no operator is an exact version.
pub fn pip_requirement(spec: &str) -> String {
    match spec.starts_with(|c: char| c.is_ascii_digit()) {
        true => format!("pip=={spec}"),
        false => format!("pip{spec}"),
    }
}

/// What uv is told for pip's flags. The error is the flag that uv has nothing for.
pub fn uv_flags(flags: &[String]) -> Result<Vec<String>, String> {
    let mut args: Vec<String> = Vec::new();
    let mut words = flags.iter();
    while let Some(word) = words.next() {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (word.as_str(), None),
        };
        let mut value = || {
            inline
                .clone()
                .or_else(|| words.next().cloned())
                .ok_or_else(|| name.to_owned())
        };
        match name {
            "--no-deps"
            | "--no-build-isolation"
            | "--upgrade"
            | "-U"
            | "--require-hashes"
            | "--no-index"
            | "-q"
            | "--quiet"
            | "-v"
            | "--verbose" => args.push(name.to_owned()),
            "--force-reinstall" => args.push("--reinstall".into()),
            "--pre" => args.push("--prerelease=allow".into()),
            "--no-cache-dir" => args.push("--no-cache".into()),
            // These say what uv does anyhow.
            "--no-input"
            | "--disable-pip-version-check"
            | "--no-warn-script-location"
            | "--use-pep517" => {}
            "--constraint" | "-c" => args.push(format!("--constraint={}", value()?)),
            "--no-binary" | "--only-binary" => args.push(format!("{name}={}", value()?)),
            "--trusted-host" => args.push(format!("--allow-insecure-host={}", value()?)),
            _ => return Err(name.to_owned()),
        }
    }
    Ok(args)
}

/// Whether a version fits a rule such as `>=20.3,<24.3`; plain dotted numbers only.
pub fn fits(version: &str, rule: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        let mut numbers: Vec<u32> = text
            .trim()
            .split('.')
            .map_while(|part| {
                let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
                digits.parse().ok()
            })
            .collect();
        while numbers.last() == Some(&0) {
            numbers.pop();
        }
        numbers
    };
    let version = numbers(version);
    rule.split(',').map(str::trim).all(|part| {
        let end = part
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(part.len());
        let (operator, other) = part.split_at(end);
        let other = numbers(other);
        match operator.trim() {
            ">=" => version >= other,
            ">" => version > other,
            "<=" => version <= other,
            "<" => version < other,
            "==" | "" => version == other,
            "!=" => version != other,
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pips_flags_for_uv() {
        let words = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        for (flags, expected) in [
            ("", Ok("")),
            ("--no-deps --pre", Ok("--no-deps --prerelease=allow")),
            (
                "-c /w --trusted-host=h",
                Ok("--constraint=/w --allow-insecure-host=h"),
            ),
            ("--no-cache-dir --no-input", Ok("--no-cache")),
            ("--prefer-binary", Err("--prefer-binary")),
            ("--target /x", Err("--target")),
        ] {
            let found = uv_flags(&words(flags));
            let found = found.as_ref().map(|flags| flags.join(" "));
            assert_eq!(
                found.as_deref().map_err(|flag| flag.as_str()),
                expected,
                "{flags}"
            );
        }
    }

    #[test]
    fn versions_and_rules() {
        for (version, rule, expected) in [
            ("23.2.1", ">=20.3,<24.3", true),
            ("20.3", ">=20.3,<24.3", true),
            ("20.2.4", ">=20.3,<24.3", false),
            ("24.3", ">=20.3,<24.3", false),
            ("24.3.1", ">=20.3,<24.3", false),
            ("101.1", ">99", true),
            ("9.0", ">=20.3", false),
        ] {
            assert_eq!(fits(version, rule), expected, "{version} {rule}");
        }
        assert_eq!(pip_requirement("19.3.1"), "pip==19.3.1");
        assert_eq!(
            pip_requirement("<20.2 ; python_version < '3.10'"),
            "pip<20.2 ; python_version < '3.10'"
        );
    }
}

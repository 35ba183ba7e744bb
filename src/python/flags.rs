//! pip's ways of saying things, for uv: flags, version rules.

use std::path::Path;

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

/// Flags that name a file or a folder.
const PATHS: [&str; 6] = [
    "-c",
    "--constraint",
    "-r",
    "--requirement",
    "-e",
    "--editable",
];

/// The flags, each with its value where that is a path.
fn with_paths(flags: &[String]) -> Vec<(&str, Option<&str>)> {
    let mut pairs = Vec::new();
    let mut words = flags.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ if !word.starts_with("--") && word.is_char_boundary(2) && word.len() > 2 => {
                (&word[..2], Some(&word[2..]))
            }
            _ => (word, None),
        };
        pairs.push(match PATHS.contains(&name) {
            true => (name, inline.or_else(|| words.next())),
            false => (word, None),
        });
    }
    pairs
}

/// The paths in the flags, each with its flag.
pub fn paths(flags: &[String]) -> Vec<(&str, &str)> {
    let pairs = with_paths(flags).into_iter();
    pairs
        .filter_map(|(name, path)| Some((name, path?)))
        .collect()
}

/// The flags as they are for pip run in this folder, wherever it is run.
pub fn seen_from(folder: &Path, flags: &[String]) -> Vec<String> {
    let mut words = Vec::new();
    for (name, path) in with_paths(flags) {
        words.push(name.to_owned());
        words.extend(path.map(|path| path_seen_from(folder, path)));
    }
    words
}

/// A path in full, where it is one in this folder; else as it is.
pub fn path_seen_from(folder: &Path, path: &str) -> String {
    let full = folder.join(path);
    let without_extras = path.split('[').next().unwrap_or(path);
    match full.exists() || folder.join(without_extras).exists() {
        true => full.to_string_lossy().into_owned(),
        false => path.to_owned(),
    }
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
    fn paths_are_those_of_the_checkout() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("c.txt"), "").unwrap();
        std::fs::create_dir(root.path().join("pkg")).unwrap();
        for (flags, expected) in [
            ("--no-deps -c c.txt", "--no-deps -c ROOT/c.txt"),
            ("--constraint=c.txt --pre", "--constraint ROOT/c.txt --pre"),
            ("-cc.txt -q", "-c ROOT/c.txt -q"),
            ("-r ./c.txt", "-r ROOT/./c.txt"),
            ("-e pkg[x]", "-e ROOT/pkg[x]"),
            ("-e git+https://h/r", "-e git+https://h/r"),
            ("-c /abs/c.txt", "-c /abs/c.txt"),
            ("-c https://h/c.txt", "-c https://h/c.txt"),
            ("-c gone.txt", "-c gone.txt"),
            ("--no-binary c.txt -c", "--no-binary c.txt -c"),
        ] {
            let words: Vec<String> = flags.split(' ').map(str::to_owned).collect();
            let found = seen_from(root.path(), &words).join(" ");
            let found = found.replace(&*root.path().to_string_lossy(), "ROOT");
            assert_eq!(found, expected, "{flags}");
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

//! The `files` section: files that the agent writes before it does anything else, for credentials of
//! tools and the like.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::hocon::{Object, Value};
use super::{Config, ConfigError, bool_of, environment, expand, is_unset, text_of};
use crate::console::Console;

/// One entry, understood.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    path: PathBuf,
    contents: Vec<u8>,
    overwrite: bool,
    mode: Option<u32>,
}

impl Config {
    /// Writes what the `files` section asks for, unless `agent.apply_files` is off. As with the Python
    /// agent, an entry that cannot be written is said and left out.
    pub fn write_files(&self, console: &Console) -> Result<(), ConfigError> {
        let switch =
            environment::first_set(&self.env, &["CLEARML_AGENT_ENABLE_FILES_CONFIG_SECTION"]);
        let applied = match switch.and_then(bool_of) {
            Some(applied) => applied,
            None => self.flag("agent.apply_files")?.unwrap_or(false),
        };
        let section = match self.effective.at("files") {
            _ if !applied => return Ok(()),
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Object(section)) => section,
            Some(_) => return Err(self.wrong_type("files", "a section of files")),
        };
        for (name, entry) in section.iter() {
            let done = self.wanted(entry).and_then(|wanted| write(&wanted));
            match done {
                Ok(path) => console.say(format!(
                    "Configuration: files.{name} written to {}",
                    path.display()
                )),
                Err(cause) => console.say(format!("Configuration: files.{name} skipped: {cause}")),
            }
        }
        Ok(())
    }

    fn wanted(&self, entry: &Value) -> Result<Wanted, String> {
        let Value::Object(entry) = entry else {
            return Err("it is not a section with path and contents".to_owned());
        };
        let text = |key: &str| entry.get(key).and_then(text_of).unwrap_or_default();
        let path = text("path");
        if path.is_empty() {
            return Err("it has no path".to_owned());
        }
        let mode = match entry.get("mode") {
            value if is_unset(value) => None,
            _ => Some(mode_of(&text("mode"))?),
        };
        let overwrite = match entry.get("overwrite") {
            value if is_unset(value) => true,
            _ => bool_of(&text("overwrite")).ok_or("overwrite is neither true nor false")?,
        };
        Ok(Wanted {
            path: expand(&path, &self.env, self.home.as_deref()),
            contents: contents_of(entry, &text("format"), &text("target_format"))?,
            overwrite,
            mode,
        })
    }
}

/// `0o600`, `0600`, `600`, quoted or not.
fn mode_of(text: &str) -> Result<u32, String> {
    let digits = text.trim().trim_start_matches("0o");
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(format!("mode {text:?} is no file mode, such as \"0o600\"")),
    }
}

fn contents_of(entry: &Object, format: &str, target_format: &str) -> Result<Vec<u8>, String> {
    let contents = entry.get("contents").unwrap_or(&Value::Null);
    let decoded;
    let contents = match (format, contents) {
        ("base64", Value::Text(text)) => {
            let bytes = BASE64_STANDARD
                .decode(text.split_whitespace().collect::<String>())
                .map_err(|e| format!("contents are not base64: {e}"))?;
            if target_format == "bytes" {
                return Ok(bytes);
            }
            let text = String::from_utf8(bytes)
                .map_err(|_| "decoded contents are not text; target_format is bytes then")?;
            decoded = Value::Text(text);
            &decoded
        }
        (_, contents) => contents,
    };
    Ok(match (target_format, contents) {
        // JSON is YAML too.
        ("json" | "yaml" | "yml", value) | (_, value @ (Value::Array(_) | Value::Object(_))) => {
            format!("{:#}", value.to_json()).into_bytes()
        }
        (_, value) => text_of(value).unwrap_or_default().into_bytes(),
    })
}

fn write(wanted: &Wanted) -> Result<PathBuf, String> {
    let path = &wanted.path;
    let failed = |e: io::Error| format!("{}: {e}", path.display());
    if path.is_dir() {
        return Err(format!("{} is a folder", path.display()));
    }
    if !wanted.overwrite && path.exists() {
        return Err(format!("{} exists", path.display()));
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    // The mode is there from the beginning: contents may be secret.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(wanted.mode.unwrap_or(0o666))
        .open(path)
        .map_err(failed)?;
    if let Some(mode) = wanted.mode {
        file.set_permissions(Permissions::from_mode(mode))
            .map_err(failed)?;
    }
    file.write_all(&wanted.contents).map_err(failed)?;
    Ok(path.clone())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::config::{Lookup, Variables, load};

    /// Loads `text` as `~/clearml.conf`, writes its files, gives back what was said.
    fn said(home: &std::path::Path, text: &str) -> Vec<String> {
        fs::write(home.join("clearml.conf"), text).unwrap();
        let lookup = Lookup {
            config_file: None,
            env: &Variables::from([("SUB".to_owned(), "sub".to_owned())]),
            home: Some(home),
        };
        let lines = Arc::new(Mutex::new(vec![]));
        let sink = Arc::clone(&lines);
        let console = Console::new(move |line| sink.lock().unwrap().push(line.to_owned()));
        load(&lookup).unwrap().write_files(&console).unwrap();
        let lines = lines.lock().unwrap();
        let home = home.display().to_string();
        lines.iter().map(|l| l.replace(&home, "~")).collect()
    }

    #[test]
    fn files_are_written() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("kept"), "old").unwrap();
        let text = r#"files {
            plain { path: "~/$SUB/plain.txt", contents: "quick fox", mode: "0o600" }
            number { path: ~/number, contents: 5, mode: 640 }
            json { path: ~/x.json, contents { a: [1, b] }, target_format: json }
            decoded { path: ~/decoded, contents: "aMOp", format: base64 }
            bytes { path: ~/bytes, contents: "/w==", format: base64, target_format: bytes }
            kept { path: ~/kept, contents: new, overwrite: false }
            folder { path: "~", contents: x }
            broken { path: ~/broken, contents: "?", format: base64 }
            nowhere { contents: x }
            odd { path: ~/odd, mode: rw }
        }"#;
        assert_eq!(
            said(home.path(), text),
            [
                "Configuration: files.plain written to ~/sub/plain.txt",
                "Configuration: files.number written to ~/number",
                "Configuration: files.json written to ~/x.json",
                "Configuration: files.decoded written to ~/decoded",
                "Configuration: files.bytes written to ~/bytes",
                "Configuration: files.kept skipped: ~/kept exists",
                "Configuration: files.folder skipped: ~ is a folder",
                "Configuration: files.broken skipped: contents are not base64: Invalid symbol 63, offset 0.",
                "Configuration: files.nowhere skipped: it has no path",
                "Configuration: files.odd skipped: mode \"rw\" is no file mode, such as \"0o600\"",
            ]
        );
        for (name, contents) in [
            ("sub/plain.txt", b"quick fox".as_slice()),
            ("number", b"5"),
            ("x.json", b"{\n  \"a\": [\n    1,\n    \"b\"\n  ]\n}"),
            ("decoded", "hé".as_bytes()),
            ("bytes", b"\xff"),
            ("kept", b"old"),
        ] {
            assert_eq!(
                fs::read(home.path().join(name)).unwrap(),
                contents,
                "{name}"
            );
        }
        let mode = |name: &str| {
            let metadata = fs::metadata(home.path().join(name)).unwrap();
            metadata.permissions().mode() & 0o7777
        };
        assert_eq!((mode("sub/plain.txt"), mode("number")), (0o600, 0o640));
    }

    #[test]
    fn the_section_can_be_off() {
        let home = tempfile::tempdir().unwrap();
        let text = "agent.apply_files: false\nfiles.x { path: ~/x, contents: x }";
        assert!(said(home.path(), text).is_empty());
        assert!(!home.path().join("x").exists());
    }
}

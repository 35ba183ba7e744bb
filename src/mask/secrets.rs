//! Which values are hidden, and what each is called.

use percent_encoding::percent_decode_str;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use super::needles::Needles;
use super::urls;
use super::{KeyNames, forms, is_secret_variable};

/// Gathers the values to hide. Pure: whether a path exists is asked of the caller.
#[derive(Clone, Default)]
pub struct Secrets {
    /// Each with the name it was first given.
    values: BTreeMap<String, String>,
    too_short: BTreeSet<String>,
}

/// Without the values.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.values.values()).finish()
    }
}

enum Kind {
    Secret,
    /// Too short, or too common a word, to be hidden wherever it occurs.
    TooShort,
    /// A switch, nothing, a mask.
    NoSecret,
}

impl Secrets {
    pub fn new() -> Self {
        Self::default()
    }

    /// Hides `value`, which `name` (a variable, a key of the configuration) holds.
    pub fn add(&mut self, name: &str, value: &str) {
        let value = value.trim();
        match kind(value) {
            Kind::NoSecret => {}
            Kind::TooShort => {
                self.too_short.insert(name.to_owned());
            }
            Kind::Secret => {
                let entry = self.values.entry(value.to_owned());
                entry.or_insert_with(|| name.to_owned());
            }
        }
    }

    /// Hides the passwords in the addresses that `text` holds, as written and decoded.
    pub fn add_urls(&mut self, name: &str, text: &str) {
        for password in urls::passwords(text) {
            self.add(name, password);
            if let Some(decoded) = percent_decoded(password) {
                self.add(name, &decoded);
            }
        }
    }

    /// Hides the values of variables whose name says that they are secret or is in `more`
    /// (`agent.hide_docker_command_env_vars.extra_keys`), and passwords in addresses of any variable.
    pub fn add_environment<'a>(
        &mut self,
        variables: impl IntoIterator<Item = (&'a String, &'a String)>,
        more: &[String],
        path_exists: &dyn Fn(&str) -> bool,
    ) {
        for (name, value) in variables {
            let is_secret = more.contains(name) || is_secret_variable(name);
            if is_secret && !(is_path(value) && path_exists(value)) {
                self.add(name, value);
            }
            self.add_urls(name, value);
        }
    }

    /// Hides the values in a section of the configuration whose key says that they are secret,
    /// passwords in addresses, and what is given to variables (`-e NAME=value`).
    pub fn add_config(
        &mut self,
        section: &str,
        value: &Value,
        keys: &KeyNames,
        path_exists: &dyn Fn(&str) -> bool,
    ) {
        let key = section.rsplit('.').next().unwrap_or(section);
        self.add_entry(section, value, keys.is_secret(key), keys, path_exists);
    }

    fn add_entry(
        &mut self,
        name: &str,
        value: &Value,
        is_secret: bool,
        keys: &KeyNames,
        path_exists: &dyn Fn(&str) -> bool,
    ) {
        match value {
            Value::Object(entries) => {
                for (key, value) in entries {
                    // Its own entries are names of secrets.
                    if key == "sanitize_config_printout" {
                        continue;
                    }
                    let is_secret = keys.is_secret(key) || is_secret_variable(key);
                    let name = format!("{name}.{key}");
                    self.add_entry(&name, value, is_secret, keys, path_exists);
                }
            }
            Value::Array(items) => {
                for item in items {
                    self.add_entry(name, item, is_secret, keys, path_exists);
                }
            }
            Value::String(text) => {
                if is_secret && !(is_path(text) && path_exists(text)) {
                    self.add(name, text);
                }
                let assignment = text.strip_prefix("--env=").unwrap_or(text);
                if let Some((variable, value)) = assignment.split_once('=')
                    && is_secret_variable(variable)
                {
                    self.add(variable, value);
                }
                self.add_urls(name, text);
            }
            Value::Number(number) if is_secret => {
                self.add(name, &number.to_string());
            }
            Value::Number(_) | Value::Bool(_) | Value::Null => {}
        }
    }

    /// The names whose values are not hidden, because they are too short or too common.
    pub fn too_short(&self) -> impl Iterator<Item = &str> {
        self.too_short.iter().map(String::as_str)
    }

    pub(super) fn count(&self) -> usize {
        self.values.len()
    }

    pub(super) fn needles(&self) -> Needles {
        let forms = self.values.keys().flat_map(|value| forms::forms(value));
        Needles::new(forms.map(String::into_bytes))
    }
}

/// A number that is shorter is no password, but a count.
const SHORTEST_NUMBER: usize = 8;
const SWITCHES: [&str; 14] = [
    "true",
    "false",
    "yes",
    "no",
    "on",
    "off",
    "none",
    "null",
    "nil",
    "undefined",
    "default",
    "auto",
    "enabled",
    "disabled",
];
const COMMON: [&str; 14] = [
    "access", "admin", "changeme", "clearml", "docker", "example", "github", "gitlab", "passwd",
    "password", "python", "secret", "string", "testing",
];

fn kind(value: &str) -> Kind {
    let lower = value.to_lowercase();
    if value.chars().all(|c| c == '*') || SWITCHES.contains(&&*lower) {
        return Kind::NoSecret;
    }
    let length = value.chars().count();
    let is_number = value.chars().all(|c| c.is_ascii_digit());
    if length < forms::SHORTEST
        || (is_number && length < SHORTEST_NUMBER)
        || COMMON.contains(&&*lower)
        || !forms::has_line(value)
    {
        return Kind::TooShort;
    }
    Kind::Secret
}

fn is_path(value: &str) -> bool {
    ["/", "./", "../", "~"]
        .iter()
        .any(|start| value.starts_with(start))
}

fn percent_decoded(text: &str) -> Option<String> {
    if !text.contains('%') {
        return None;
    }
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn values(secrets: &Secrets) -> Vec<(&str, &str)> {
        let pairs = secrets.values.iter();
        pairs.map(|(value, name)| (&**name, &**value)).collect()
    }

    #[test]
    fn short_and_common_values_are_named_not_hidden() {
        let mut secrets = Secrets::new();
        for (name, value) in [
            ("GOOD_TOKEN", " abcdef\n"),
            ("SHORT_TOKEN", "abcde"),
            ("COUNT_TOKEN", "1234567"),
            ("PIN", "12345678"),
            ("WORD", "Password"),
            ("SWITCH_TOKEN", "True"),
            ("EMPTY_TOKEN", ""),
            ("MASKED_TOKEN", "********"),
            ("LINES", "a\nb\n"),
            ("TWICE", "abcdef"),
        ] {
            secrets.add(name, value);
        }
        assert_eq!(
            values(&secrets),
            [("PIN", "12345678"), ("GOOD_TOKEN", "abcdef")]
        );
        assert_eq!(
            secrets.too_short().collect::<Vec<_>>(),
            ["COUNT_TOKEN", "LINES", "SHORT_TOKEN", "WORD"]
        );
        assert_eq!(format!("{secrets:?}"), r#"["PIN", "GOOD_TOKEN"]"#);
    }

    #[test]
    fn variables_are_chosen_by_their_name() {
        let variables: BTreeMap<String, String> = [
            ("HF_TOKEN", "value-one"),
            ("SPECIAL", "value-two"),
            ("OTHER", "value-three"),
            ("GOOGLE_CREDENTIALS", "/there/key.json"),
            ("SLASH_TOKEN", "/not+a/path"),
            ("PIP_INDEX_URL", "https://u:p%40ssword@h/simple"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let mut secrets = Secrets::new();
        secrets.add_environment(&variables, &["SPECIAL".to_owned()], &|path| {
            path.starts_with("/there/")
        });
        assert_eq!(
            values(&secrets),
            [
                ("SLASH_TOKEN", "/not+a/path"),
                ("PIP_INDEX_URL", "p%40ssword"),
                ("PIP_INDEX_URL", "p@ssword"),
                ("HF_TOKEN", "value-one"),
                ("SPECIAL", "value-two"),
            ]
        );
    }

    #[test]
    fn configuration_is_chosen_by_its_keys() {
        let config = json!({
            "git_user": "someone",
            "git_pass": "value-1",
            "enable_git_ask_pass": true,
            "token_expiration": 3600,
            "sanitize_config_printout": {"hide_secrets": ["account_key", "contents"]},
            "package_manager": {"extra_index_url": ["https://u:value-2@h/simple"]},
            "extra_docker_arguments": ["-e", "MY_TOKEN=value-3", "--env=HF_TOKEN=value-4"],
            "containers": [{"account_name": "someone", "account_key": "value-5"}],
            "environment": {"DB_PASSWORD": "value-6", "MODE": "something"},
            "secrets": ["value-7"],
            "files": {"one": {"contents": "some text"}},
        });
        let keys = KeyNames::new(&[], &[]).unwrap();
        let mut secrets = Secrets::new();
        secrets.add_config("agent", &config, &keys, &|_| false);
        assert_eq!(
            values(&secrets),
            [
                ("agent.git_pass", "value-1"),
                ("agent.package_manager.extra_index_url", "value-2"),
                ("MY_TOKEN", "value-3"),
                ("HF_TOKEN", "value-4"),
                ("agent.containers.account_key", "value-5"),
                ("agent.environment.DB_PASSWORD", "value-6"),
                ("agent.secrets", "value-7"),
            ]
        );
        assert_eq!(
            secrets.too_short().collect::<Vec<_>>(),
            ["agent.token_expiration"]
        );
    }
}

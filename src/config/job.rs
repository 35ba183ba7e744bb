//! What leaves the configuration: the file that the job's SDK reads, the variables that the job gets,
//! and the print-out for `--debug`.

use std::sync::LazyLock;

use regex::Regex;

use super::hocon::{Object, Value};
use super::{Config, ConfigError, Variables, bool_of, environment, expand, text_of};
use crate::api::tls::Trust;
use crate::mask::{KeyNames, MASK, Secrets};
use crate::secret::mask_url_password;

/// The agent's way into repositories is not the job's.
const NOT_FOR_THE_JOB: [&str; 3] = [
    "agent.git_user",
    "agent.git_pass",
    "agent.git.extra_credentials",
];
/// The job is told which package indexes there are, and not how the agent logs in to them.
const WITHOUT_LOGINS: &str = "agent.package_manager";

/// Whether the job may inherit a variable of this name. One that sets a key of the configuration is
/// left out where that key is not the job's, or is told without logins: the job's file has the rest.
pub fn is_for_the_job(variable: &str) -> bool {
    !environment::sets_any_of(variable, &NOT_FOR_THE_JOB)
        && !environment::sets_any_of(variable, &[WITHOUT_LOGINS])
}

impl Config {
    /// The configuration as JSON, which is HOCON too: the user's file with everything looked up, the
    /// environment laid over it, the API server as the agent uses it; without the logins for repositories
    /// and package indexes.
    pub fn for_job(&self) -> String {
        let mut object = self.given.clone();
        for key in NOT_FOR_THE_JOB {
            object.remove_at(key);
        }
        if let Some(Value::Object(section)) = self.given.at("environment") {
            let variables = section.iter().map(|(name, _)| name);
            for name in variables.filter(|name| !is_for_the_job(name)) {
                object.remove_at(&format!("environment.{name}"));
            }
        }
        if let Some(value) = self.given.at(WITHOUT_LOGINS) {
            object.set_at(WITHOUT_LOGINS, without_logins(value));
        }
        if let Some(server) = self.text("api.api_server") {
            let server = server.trim().trim_end_matches('/').to_owned();
            object.set_at("api.api_server", Value::Text(server));
        }
        if object.at("api.verify_certificate").is_some()
            && let Ok(trust) = self.trust()
        {
            let verify = match trust {
                Trust::System => Value::Bool(true),
                Trust::Anything => Value::Bool(false),
                Trust::Bundle(path) => Value::Text(path.to_string_lossy().into_owned()),
            };
            object.set_at("api.verify_certificate", verify);
        }
        // `{:#}` writes one key a line; a value of JSON always can be written.
        format!("{:#}\n", object.to_json())
    }

    /// The configuration for the agent inside a container, as JSON: the user's file with everything
    /// looked up and the environment laid over it, and `changes` over that (dotted keys). It holds secrets.
    pub fn for_container(&self, changes: &[(&str, String)]) -> String {
        let mut object = self.given.clone();
        for (key, text) in changes {
            object.set_at(key, Value::Text(text.clone()));
        }
        format!("{:#}\n", object.to_json())
    }

    /// The `environment` section: variables to set for the job, over inherited ones.
    pub fn job_variables(&self) -> &Variables {
        &self.section_variables
    }

    /// Values read as the Python agent writes them (`True`, empty for null).
    pub(super) fn read_section_variables(&self) -> Result<Variables, ConfigError> {
        let switch =
            environment::first_set(&self.env, &["CLEARML_AGENT_ENABLE_ENV_CONFIG_SECTION"]);
        let applied = match switch.and_then(bool_of) {
            Some(applied) => applied,
            None => self.flag("agent.apply_environment")?.unwrap_or(false),
        };
        let section = match self.effective.at("environment") {
            _ if !applied => return Ok(Variables::new()),
            None | Some(Value::Null) => return Ok(Variables::new()),
            Some(Value::Object(section)) => section,
            Some(_) => return Err(self.wrong_type("environment", "a section of variables")),
        };
        let named = section.iter().filter(|(name, _)| !name.is_empty());
        Ok(named
            .map(|(name, value)| (name.to_owned(), variable_text(value)))
            .collect())
    }

    /// The agent's and the API's sections, one key a line, with secrets masked.
    pub fn printable(&self) -> String {
        let mut lines = vec![];
        for section in ["api", "agent"] {
            if let Some(value) = self.effective.get(section) {
                self.print_into(&mut lines, section, value);
            }
        }
        lines.join("\n")
    }
}

/// The value with no user and password in its addresses, also within flags for pip.
fn without_logins(value: &Value) -> Value {
    static LOGIN: LazyLock<Regex> = LazyLock::new(|| {
        #[expect(clippy::unwrap_used, reason = "a constant pattern, used by a test")]
        Regex::new(r"(?i)(https?://)[^\s/?#]*@").unwrap()
    });
    match value {
        Value::Text(text) => Value::Text(LOGIN.replace_all(text, "$1").into_owned()),
        Value::Array(items) => Value::Array(items.iter().map(without_logins).collect()),
        Value::Object(object) => {
            let mut plain = Object::default();
            for (name, value) in object.iter() {
                plain.set(name, without_logins(value));
            }
            Value::Object(plain)
        }
        other => other.clone(),
    }
}

fn variable_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        other => text_of(other).unwrap_or_else(|| other.to_json().to_string()),
    }
}

impl Config {
    /// `agent.sanitize_config_printout`.
    pub(super) fn read_secret_keys(&self) -> Result<KeyNames, ConfigError> {
        const SECTION: &str = "agent.sanitize_config_printout";
        let list = |name: &str| self.list(&format!("{SECTION}.{name}"));
        KeyNames::new(&list("hide_secrets")?, &list("dont_hide_secrets")?)
            .map_err(ConfigError::BadPattern)
    }

    /// What is configured and inherited and must not be shown.
    pub fn secrets_into(&self, secrets: &mut Secrets) -> Result<(), ConfigError> {
        let exists = |path: &str| expand(path, &self.env, self.home.as_deref()).exists();
        let more = self.list("agent.hide_docker_command_env_vars.extra_keys")?;
        secrets.add_environment(&self.env, &more, &exists);
        for section in ["api", "agent", "sdk", "environment"] {
            if let Some(value) = self.value(section) {
                secrets.add_config(section, value, &self.secret_keys, &exists);
            }
        }
        Ok(())
    }

    /// Whether what goes by this dotted key is a secret.
    pub(super) fn is_secret(&self, key: &str) -> bool {
        let name = key.rsplit('.').next().unwrap_or(key);
        self.secret_keys.is_secret(name) || name.to_lowercase().contains("contents")
    }

    fn print_into(&self, lines: &mut Vec<String>, key: &str, value: &Value) {
        match value {
            Value::Object(object) if !object.is_empty() => {
                for (name, value) in object.iter() {
                    self.print_into(lines, &format!("{key}.{name}"), value);
                }
            }
            value if self.is_secret(key) && !super::is_unset(Some(value)) => {
                lines.push(format!("{key} = {MASK}"));
            }
            value => lines.push(format!("{key} = {}", self.masked(value).to_json())),
        }
    }

    /// The value without passwords in addresses, and without `NAME=secret` in arguments.
    fn masked(&self, value: &Value) -> Value {
        match value {
            Value::Text(text) => Value::Text(match text.split_once('=') {
                Some((name, _)) if self.is_secret(name) => format!("{name}={MASK}"),
                _ => mask_url_password(text),
            }),
            Value::Array(items) => Value::Array(items.iter().map(|i| self.masked(i)).collect()),
            Value::Object(object) => {
                let mut shown = Object::default();
                for (name, value) in object.iter() {
                    let value = match self.is_secret(name) && !super::is_unset(Some(value)) {
                        true => Value::Text(MASK.into()),
                        false => self.masked(value),
                    };
                    shown.set(name, value);
                }
                Value::Object(shown)
            }
            other => other.clone(),
        }
    }
}

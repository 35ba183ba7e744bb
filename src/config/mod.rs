//! `clearml.conf` and the environment, read once and laid over one another: built-in defaults, the
//! file, `CLEARML_AGENT__SECTION__KEY`, variables that stand for one key. The command line is laid
//! over by its own reader. Nothing below asks the environment or reads a configuration file again.

pub mod error;
pub mod hocon;

mod api;
mod environment;
mod files;
mod job;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

pub use error::ConfigError;
use hocon::{Object, Value};
pub use job::is_for_the_job;

use crate::mask::KeyNames;
use crate::secret::Secret;

pub type Variables = BTreeMap<String, String>;

/// Where to look for a configuration.
#[derive(Debug)]
pub struct Lookup<'a> {
    /// `--config-file`
    pub config_file: Option<&'a Path>,
    pub env: &'a Variables,
    pub home: Option<&'a Path>,
}

/// Everything configured, before the command line.
pub struct Config {
    file: Option<PathBuf>,
    /// The file and the environment, without defaults: what the job's SDK is given.
    given: Object,
    /// All layers.
    effective: Object,
    json: serde_json::Value,
    auth_token: Option<Secret>,
    /// What the `environment` section sets.
    section_variables: Variables,
    /// What was inherited, with `section_variables` over it.
    env: Variables,
    home: Option<PathBuf>,
    /// Which keys hold secrets.
    secret_keys: KeyNames,
    host_name: String,
    process_id: u32,
}

const FILE_VARIABLES: [&str; 2] = ["CLEARML_CONFIG_FILE", "TRAINS_CONFIG_FILE"];
/// In the home folder; the last one is the strongest.
const FILE_NAMES: [&str; 2] = ["trains.conf", "clearml.conf"];

/// Reads the file, if there is one, and lays the environment over it.
pub fn load(lookup: &Lookup<'_>) -> Result<Config, ConfigError> {
    let Lookup { env, home, .. } = *lookup;
    let mut file = None;
    let mut given = Object::default();
    for path in files(lookup)? {
        given.merge(hocon::parse_file(&path, env).map_err(ConfigError::BadFile)?);
        file = Some(path);
    }
    given.merge(environment::any_key(env)?);
    let effective = hocon::parse_text("defaults", include_str!("defaults.conf"), env)
        .map_err(ConfigError::BadFile)?;
    let mut config = Config {
        file,
        given: Object::default(),
        effective,
        json: serde_json::Value::Null,
        auth_token: environment::first_set(env, &["CLEARML_AUTH_TOKEN"]).map(Secret::new),
        section_variables: Variables::new(),
        env: env.clone(),
        home: home.map(Path::to_owned),
        secret_keys: KeyNames::default(),
        host_name: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        process_id: std::process::id(),
    };
    config.lay_over(given);
    config.section_variables = config.read_section_variables()?;
    config.env.extend(config.section_variables.clone());
    config.lay_over(environment::named(env, &config.env));
    // The older name of the same key.
    if is_unset(config.given.at("api.api_server"))
        && let Some(host) = config.given.at("api.host").cloned()
    {
        config.given.set_at("api.api_server", host.clone());
        config.effective.set_at("api.api_server", host);
    }
    config.json = config.effective.to_json();
    config.secret_keys = config.read_secret_keys()?;
    Ok(config)
}

/// The files to read, the strongest last. One that was asked for must be there.
fn files(lookup: &Lookup<'_>) -> Result<Vec<PathBuf>, ConfigError> {
    let Lookup {
        config_file,
        env,
        home,
    } = *lookup;
    let flag = config_file.map(|path| ("--config-file", path.to_string_lossy()));
    let variable = FILE_VARIABLES.into_iter().find_map(|name| {
        let value = environment::first_set(env, &[name])?;
        Some((name, Cow::Borrowed(value)))
    });
    if let Some((named_by, text)) = flag.or(variable) {
        let path = expand(&text, env, home);
        return match path.is_file() {
            true => Ok(vec![path]),
            false => Err(ConfigError::NoSuchFile { path, named_by }),
        };
    }
    let in_home = FILE_NAMES.iter().filter_map(|name| Some(home?.join(name)));
    Ok(in_home.filter(|path| path.is_file()).collect())
}

/// Without the values: among them are secrets.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The file that was read; of two, the stronger one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The value at a dotted key.
    pub fn value(&self, key: &str) -> Option<&serde_json::Value> {
        key.split('.')
            .try_fold(&self.json, |value, segment| value.get(segment))
    }

    /// Text, or a number or boolean as text. Absent, null and empty are None; so is a section or list.
    pub fn text(&self, key: &str) -> Option<String> {
        text_of(self.effective.at(key)?).filter(|text| !text.is_empty())
    }

    /// A boolean, also in words. Absent, null and empty are None.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        if let Some(Value::Array(_) | Value::Object(_)) = self.effective.at(key) {
            return Err(self.wrong_type(key, "true or false"));
        }
        let Some(text) = self.text(key) else {
            return Ok(None);
        };
        match bool_of(&text) {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong_type(key, "true or false")),
        }
    }

    /// A number, also in quotes. Absent, null and empty are None.
    pub fn number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        match self.effective.at(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Text(text)) if text.is_empty() => Ok(None),
            Some(Value::Number(text) | Value::Text(text)) => match text.trim().parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(Some(number)),
                _ => Err(self.wrong_type(key, "a number")),
            },
            Some(_) => Err(self.wrong_type(key, "a number")),
        }
    }

    /// A list of texts. One text is a list of one; absent, null and empty texts give nothing.
    pub fn list(&self, key: &str) -> Result<Vec<String>, ConfigError> {
        let items = match self.effective.at(key) {
            None => return Ok(vec![]),
            Some(Value::Array(items)) => items.as_slice(),
            Some(single) => std::slice::from_ref(single),
        };
        let mut texts = vec![];
        for item in items {
            match item {
                Value::Null => {}
                Value::Array(_) | Value::Object(_) => {
                    return Err(self.wrong_type(key, "a list of texts"));
                }
                item => texts.extend(text_of(item).filter(|text| !text.is_empty())),
            }
        }
        Ok(texts)
    }

    /// A path with `~` and `$VARIABLE` replaced.
    pub fn path(&self, key: &str) -> Option<PathBuf> {
        Some(expand(&self.text(key)?, &self.env, self.home.as_deref()))
    }

    /// `~/NAME`, where there is a home.
    pub fn in_home(&self, name: &str) -> Option<PathBuf> {
        Some(self.home.as_ref()?.join(name))
    }

    /// The name of this machine.
    pub fn machine(&self) -> &str {
        &self.host_name
    }

    /// The name under which this run is known to the server.
    pub fn worker_id(&self) -> String {
        worker_id(
            self.text("agent.worker_id").as_deref(),
            self.text("agent.worker_name").as_deref(),
            &self.host_name,
            self.process_id,
        )
    }

    fn lay_over(&mut self, layer: Object) {
        self.effective.merge(layer.clone());
        self.given.merge(layer);
    }

    /// Where the configuration came from, for messages.
    fn origin(&self) -> String {
        match &self.file {
            Some(file) => format!("read {} and the environment", file.display()),
            None => "no configuration file: looked for ~/clearml.conf, \
                     CLEARML_CONFIG_FILE and --config-file; read the environment"
                .to_owned(),
        }
    }

    fn wrong_type(&self, key: &str, expected: &'static str) -> ConfigError {
        let found = match self.effective.at(key) {
            Some(Value::Text(text)) if !self.is_secret(key) => format!("{text:?}"),
            Some(value) => value.kind().to_owned(),
            None => "absent".to_owned(),
        };
        ConfigError::WrongType {
            key: key.to_owned(),
            found,
            expected,
            origin: self.origin(),
        }
    }
}

fn is_unset(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Text(text)) => text.is_empty(),
        Some(_) => false,
    }
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::Text(text) | Value::Number(text) => Some(text.clone()),
        Value::Bool(b) => Some(b.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A boolean in the words that the Python agent takes.
pub fn bool_of(text: &str) -> Option<bool> {
    match text.trim().to_lowercase().as_str() {
        "1" | "true" | "yes" | "on" | "t" | "y" => Some(true),
        "0" | "false" | "no" | "off" | "f" | "n" => Some(false),
        _ => None,
    }
}

/// An id that is set is taken as it is; else the worker's name, by default the host's, with the
/// process id, so that two runs on one machine are two workers.
fn worker_id(id: Option<&str>, name: Option<&str>, host_name: &str, process_id: u32) -> String {
    match id {
        Some(id) => id.to_owned(),
        None => format!("{}:{process_id}", name.unwrap_or(host_name)),
    }
}

/// Replaces a leading `~` and every `$NAME` and `${NAME}` that is set; the rest stays.
fn expand(text: &str, env: &Variables, home: Option<&Path>) -> PathBuf {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let name = match after.strip_prefix('{').and_then(|a| a.split_once('}')) {
            Some((name, _)) => name,
            None => {
                let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                &after[..end.unwrap_or(after.len())]
            }
        };
        let braces = if after.starts_with('{') && !name.is_empty() {
            2
        } else {
            0
        };
        match env.get(name) {
            Some(value) => {
                expanded.push_str(value);
                rest = &after[name.len() + braces..];
            }
            None => {
                expanded.push('$');
                rest = after;
            }
        }
    }
    expanded.push_str(rest);
    match (home, expanded.strip_prefix('~')) {
        (Some(home), Some("")) => home.to_owned(),
        (Some(home), Some(below)) if below.starts_with('/') => {
            home.join(below.trim_start_matches('/'))
        }
        _ => PathBuf::from(expanded),
    }
}

#[cfg(test)]
mod tests;

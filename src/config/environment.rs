//! What the environment says: variables that stand for one key, and `CLEARML_AGENT__SECTION__KEY`
//! for any key. Names and order are the Python agent's; a set but empty variable is unset.

use super::Variables;
use super::error::ConfigError;
use super::hocon::{self, HoconError, Object, Value};

/// Keys that have variables of their own, the stronger one first. These win over
/// `CLEARML_AGENT__…`, which wins over the file.
const NAMED: &[(&str, &[&str])] = &[
    ("api.api_server", &["CLEARML_API_HOST", "TRAINS_API_HOST"]),
    ("api.web_server", &["CLEARML_WEB_HOST", "TRAINS_WEB_HOST"]),
    (
        "api.files_server",
        &["CLEARML_FILES_HOST", "TRAINS_FILES_HOST"],
    ),
    (
        "api.credentials.access_key",
        &["CLEARML_API_ACCESS_KEY", "TRAINS_API_ACCESS_KEY"],
    ),
    (
        "api.credentials.secret_key",
        &["CLEARML_API_SECRET_KEY", "TRAINS_API_SECRET_KEY"],
    ),
    (
        "api.verify_certificate",
        &[
            "CLEARML_API_HOST_VERIFY_CERT",
            "TRAINS_API_HOST_VERIFY_CERT",
        ],
    ),
    (
        "agent.worker_id",
        &["CLEARML_WORKER_ID", "TRAINS_WORKER_ID"],
    ),
    (
        "agent.worker_name",
        &["CLEARML_WORKER_NAME", "TRAINS_WORKER_NAME"],
    ),
    (
        "agent.cuda_version",
        &[
            "CLEARML_CUDA_VERSION",
            "TRAINS_CUDA_VERSION",
            "CUDA_VERSION",
        ],
    ),
    (
        "agent.cudnn_version",
        &[
            "CLEARML_CUDNN_VERSION",
            "TRAINS_CUDNN_VERSION",
            "CUDNN_VERSION",
        ],
    ),
];

/// The same, for variables that the `environment` section of the file may set as well.
const NAMED_OR_IN_SECTION: &[(&str, &[&str])] = &[
    (
        "agent.git_user",
        &["CLEARML_AGENT_GIT_USER", "TRAINS_AGENT_GIT_USER"],
    ),
    (
        "agent.git_pass",
        &["CLEARML_AGENT_GIT_PASS", "TRAINS_AGENT_GIT_PASS"],
    ),
    (
        "agent.git_host",
        &["CLEARML_AGENT_GIT_HOST", "TRAINS_AGENT_GIT_HOST"],
    ),
    (
        "agent.git_use_ms_entra_token",
        &["CLEARML_AGENT_GIT_USE_MS_ENTRA_TOKEN"],
    ),
    (
        "agent.git_use_azure_pat",
        &["CLEARML_AGENT_GIT_USE_AZURE_PAT"],
    ),
    ("agent.venvs_cache.path", &["CLEARML_AGENT_VENV_CACHE_PATH"]),
    (
        "agent.package_manager.pytorch_resolve",
        &["CLEARML_AGENT_PACKAGE_PYTORCH_RESOLVE"],
    ),
    (
        "agent.custom_build_script",
        &["CLEARML_AGENT_CUSTOM_BUILD_SCRIPT"],
    ),
    (
        "agent.translate_ssl_replacement_scheme",
        &["CLEARML_AGENT_SSH_URL_REPLACEMENT_SCHEME"],
    ),
];

/// The value of the first variable that is set to something.
pub(super) fn first_set<'a>(env: &'a Variables, names: &[&'static str]) -> Option<&'a str> {
    names
        .iter()
        .filter_map(|name| env.get(*name))
        .map(|value| value.trim())
        .find(|value| !value.is_empty())
}

/// The keys set by variables of their own: inherited ones, and those with the file's `environment`
/// section laid over them.
pub(super) fn named(inherited: &Variables, with_section: &Variables) -> Object {
    let at_start = NAMED.iter().map(|row| (row, inherited));
    let in_section = NAMED_OR_IN_SECTION.iter().map(|row| (row, with_section));
    let mut object = Object::default();
    for ((key, names), variables) in at_start.chain(in_section) {
        if let Some(value) = first_set(variables, names) {
            object.set_at(key, Value::Text(value.to_owned()));
        }
    }
    object
}

/// The variables whose value is a key's value in the language of the file: the name gives the key in
/// lower case, `__` standing for the dot. The first form is the Python agent's and wins over the
/// short one.
const ANY_KEY: [&str; 2] = ["CLEARML_AGENT__", "CLEARML__"];

/// The keys set by `CLEARML_AGENT__SECTION__KEY` and `CLEARML__SECTION__KEY`.
pub(super) fn any_key(env: &Variables) -> Result<Object, ConfigError> {
    let mut object = Object::default();
    let with_prefix = |prefix: &'static str| {
        env.iter()
            .filter_map(move |(name, text)| Some((name, name.strip_prefix(prefix)?, text)))
    };
    for (variable, name, text) in ANY_KEY.into_iter().rev().flat_map(with_prefix) {
        let key = key_named(name);
        let line = format!("{key}: {text}");
        let set = hocon::parse_text(variable, &line, env).map_err(|e| {
            let (found, expected) = match e {
                HoconError::Syntax(e) => (e.found, e.expected),
                HoconError::Unreadable { cause, .. } => (cause, "a value".to_owned()),
            };
            ConfigError::BadOverride {
                variable: variable.clone(),
                found,
                expected,
            }
        })?;
        object.merge(set);
    }
    Ok(object)
}

/// Whether a variable of this name sets one of these keys, a section that holds one, or a part of one.
pub(super) fn sets_any_of(variable: &str, keys: &[&str]) -> bool {
    let of_its_own = NAMED.iter().chain(NAMED_OR_IN_SECTION);
    let named = of_its_own
        .filter(|(_, names)| names.contains(&variable))
        .map(|(key, _)| (*key).to_owned());
    let any = ANY_KEY
        .iter()
        .filter_map(|prefix| variable.strip_prefix(prefix))
        .map(key_named);
    let within = |outer: &str, inner: &str| {
        let rest = inner.strip_prefix(outer);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    named.chain(any).any(|set| {
        keys.iter()
            .any(|key| within(&set, key) || within(key, &set))
    })
}

/// The key that the end of such a name means.
fn key_named(name: &str) -> String {
    name.replace("__", ".").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> Variables {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn the_first_name_that_is_set_counts() {
        let env = vars(&[
            ("CLEARML_API_HOST", ""),
            ("TRAINS_API_HOST", " http://old "),
            ("CLEARML_WORKER_ID", "w1"),
            ("TRAINS_WORKER_ID", "w2"),
            ("CUDA_VERSION", "12.1.0"),
        ]);
        let mut with_section = env.clone();
        with_section.extend(vars(&[
            ("CLEARML_AGENT_GIT_USER", "ci"),
            ("CLEARML_WORKER_ID", "w3"),
        ]));
        assert_eq!(
            named(&env, &with_section).to_json(),
            serde_json::json!({
                "api": {"api_server": "http://old"},
                "agent": {"worker_id": "w1", "cuda_version": "12.1.0", "git_user": "ci"},
            })
        );
    }

    #[test]
    fn any_key_can_be_set() {
        let env = vars(&[
            ("CLEARML_AGENT__AGENT__PACKAGE_MANAGER__TYPE", "uv"),
            (
                "CLEARML_AGENT__AGENT__PACKAGE_MANAGER__EXTRA_INDEX_URL",
                r#"["https://a/simple", "https://b"]"#,
            ),
            ("CLEARML_AGENT__AGENT__VENVS_CACHE", "{max_entries: 3}"),
            ("CLEARML_AGENT__API__API_SERVER", "http://h:8008"),
            ("CLEARML_AGENT__AGENT__ENABLE_TASK_ENV", "True"),
            ("CLEARML__AGENT__ENABLE_TASK_ENV", "False"),
            ("CLEARML__AGENT__VENVS_DIR", "/scratch/venvs"),
            ("CLEARML_AGENT_GIT_USER", "u"),
        ]);
        assert_eq!(
            any_key(&env).unwrap().to_json(),
            serde_json::json!({
                "agent": {
                    "enable_task_env": true,
                    "venvs_dir": "/scratch/venvs",
                    "package_manager": {
                        "extra_index_url": ["https://a/simple", "https://b"],
                        "type": "uv",
                    },
                    "venvs_cache": {"max_entries": 3},
                },
                "api": {"api_server": "http://h:8008"},
            })
        );
    }

    #[test]
    fn a_value_that_is_none_is_named_but_not_shown() {
        let env = vars(&[("CLEARML_AGENT__AGENT__GIT_PASS", "hun@ter2")]);
        let error = any_key(&env).unwrap_err().to_string();
        assert_eq!(
            error,
            "environment variable CLEARML_AGENT__AGENT__GIT_PASS does not hold a value of clearml.conf: \
             found `@`, expected the end of the value (text with `@` in it needs double quotes)\n\
             Put text with special characters in double quotes inside the value: \
             CLEARML_AGENT__AGENT__GIT_PASS='\"…\"'."
        );
    }
}
